"""What is too long for the suite, ``make soak``.

25,000 damaged images, 60 killed runs, Ctrl-C under torchrun, 1,800 faulty ONNX files, 2,000 damaged folders.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from helpers.dicom_mutations import dicom_mutation
from helpers.limits import Damage, decode_mutations
from helpers.mutations import mutation
from helpers.volumes import volume_mutation

KILLS_PER_RUN = 12
FIRST_SEED = 1000
"""The seeds below are the suite's."""


def main() -> int:
    """Print counts as N/N; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--volumes", type=int, default=5_000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--interrupts", type=int, default=3)
    parser.add_argument("--faults", type=int, default=200, help="faulty ONNX files of each family")
    parser.add_argument("--exports", type=int, default=100, help="good exports, of all families in turns")
    parser.add_argument("--folders", type=int, default=2000, help="run folders and others with a damaged file")
    wanted = parser.parse_args()
    failures = [*soak_decoding(wanted.mutations, mutation, "PNG and JPEG")]
    failures += soak_decoding(wanted.mutations, dicom_mutation, "DICOM")
    failures += soak_decoding(wanted.volumes, volume_mutation, "NIfTI")
    failures += soak_resuming(wanted.kills)
    failures += soak_torchrun(wanted.interrupts)
    failures += soak_export(wanted.faults, wanted.exports)
    failures += soak_folders(wanted.folders)
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def soak_decoding(count: int, damage: Damage, kind: str) -> list[str]:
    """Damaged images: decoded, or refused by name."""
    start = time.perf_counter()
    counts, failures = decode_mutations(range(FIRST_SEED, FIRST_SEED + count), damage)
    sound = counts["decoded"] + counts["refused"]
    seconds = time.perf_counter() - start
    told = f"{counts['decoded']} decoded, {counts['refused']} refused by name"
    print(f"damaged {kind} images survived: {sound}/{count} ({told}), {seconds:.0f} s", flush=True)
    return failures


def soak_resuming(count: int) -> list[str]:
    """Killed runs, every other one with a recovery: each ends bit for bit like the run that was left alone."""
    # here and not above: the decoder's processes import this file, and torch would count as their memory
    from helpers.killing import (
        MOMENTS,
        RECOVERING,
        at_its_first_checkpoint,
        finish,
        has_finished,
        kill_once,
        results,
        small_run,
    )

    start = time.perf_counter()
    generator = random.Random(0)
    kills: Counter[str] = Counter()
    same: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        plain = [*small_run(Path(folder)), "--evaluate-every", "1"]
        commands = (plain, [*plain, *RECOVERING])
        expected = []
        for number, command in enumerate(commands):
            finish(command, Path(folder) / f"whole-{number}")
            expected.append(results(Path(folder) / f"whole-{number}"))
        while kills.total() < count:
            command = commands[len(same) % 2]
            run = Path(folder) / f"killed-{len(same)}"
            for number in range(min(KILLS_PER_RUN, count - kills.total())):
                moment = generator.choice(MOMENTS) if number else at_its_first_checkpoint
                kills[moment.__name__] += kill_once(command, run, moment, generator)
                if has_finished(run):
                    break
            if not has_finished(run):
                finish([*command, "--resume"], run)
            same.append(results(run) == expected[len(same) % 2])
            print(
                f"  run {len(same)}: {kills.total()} kills so far, {'identical' if same[-1] else 'different'}",
                flush=True,
            )
    told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in sorted(kills.items()))
    print(f"kills survived: {kills.total()}/{count} ({told})")
    print(f"killed runs bit-identical to a whole one: {sum(same)}/{len(same)}, {time.perf_counter() - start:.0f} s")
    return [f"run {number} differs" for number, equal in enumerate(same, start=1) if not equal]


def soak_torchrun(count: int) -> list[str]:
    """Runs of two processes, stopped by Ctrl-C: each ends bit for bit like the run that was left alone."""
    from helpers.killing import results, small_run
    from helpers.torchrun import finish_under_torchrun, interrupt_under_torchrun

    start, generator, failures = time.perf_counter(), random.Random(0), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        words = [*small_run(Path(folder)), "--epochs", "100"]
        if count:
            finish_under_torchrun(words, Path(folder) / "whole")
        for number in range(count):
            run = Path(folder) / f"run-{number}"
            failures += interrupt_under_torchrun(words, run, generator)
            finish_under_torchrun([*words, "--resume"], run)
            if results(run) != results(Path(folder) / "whole"):
                failures.append(f"the run of two processes that was stopped as number {number} ended otherwise")
    seconds = time.perf_counter() - start
    print(f"runs of two processes stopped by Ctrl-C: {count}, failures: {len(failures)}, {seconds:.0f} s", flush=True)
    return failures


def soak_export(num_faults: int, num_exports: int) -> list[str]:
    """ONNX files: the gate refuses every one with a fault and passes every good one."""
    # here and not above: as in soak_resuming
    from helpers.exporting import FAMILIES, missed_faults, sound_export

    start, failures, refused, passed = time.perf_counter(), list[str](), 0, 0
    for family in FAMILIES if num_faults else ():
        missed = missed_faults(family, range(FIRST_SEED, FIRST_SEED + num_faults))
        refused += num_faults - len(missed)
        failures += [f"the gate passed {family} with {fault}" for fault in missed]
        print(f"  {family}: {num_faults - len(missed)}/{num_faults} faults refused", flush=True)
    for number in range(num_exports):
        # each family by both exporters, the slower one in every fourth round
        family = FAMILIES[number % len(FAMILIES)]
        refusal = sound_export(family, FIRST_SEED + number, "dynamo" if number // len(FAMILIES) % 4 == 0 else "legacy")
        passed += refusal is None
        failures += [] if refusal is None else [f"the gate refused a good export of {family}: {refusal}"]
    seconds = time.perf_counter() - start
    told = f"{num_faults} of each of {len(FAMILIES)} families"
    print(f"faulty ONNX files refused: {refused}/{num_faults * len(FAMILIES)} ({told})")
    print(f"good ONNX files passed: {passed}/{num_exports}, {seconds:.0f} s", flush=True)
    return failures


def soak_folders(count: int) -> list[str]:
    """Folders with a damaged file: every command that reads them gives the right result, or one line."""
    # here and not above: as in soak_resuming
    from helpers.damaged_folders import judge
    from helpers.sound_folders import Place

    start, failures, counts = time.perf_counter(), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            verdict = judge(place, seed)
            counts[verdict.answer] += verdict.is_sound
            failures += [] if verdict.is_sound else [f"{verdict.story}: {verdict.answer}"]
            if (seed + 1 - FIRST_SEED) % 100 == 0:
                print(f"  {counts.total()}/{seed + 1 - FIRST_SEED} damaged folders survived", flush=True)
    seconds = time.perf_counter() - start
    told = f"{counts['right']} right, {counts['refused']} refused in one line"
    print(f"damaged folders survived: {counts.total()}/{count} ({told}), {seconds:.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
