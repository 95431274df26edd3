"""Runs killed as a user's machine would kill them, and gone on with by the command line."""

from __future__ import annotations

import csv
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from helpers.builders import save_images, save_vit_teacher
from helpers.command import Answer, twinbud
from helpers.processes import Command, start

RECOVERING = ("--recover", "labelled", "--recover-epochs", "8", "--recover-batch-size", "4")
"""What makes the small run recover student and auxiliary from its teacher before it trains them."""

Moment = Callable[[Path, Command, random.Random], None]
"""Waits, in a run's folder and beside its process, for the time to kill it."""


def small_run(folder: Path) -> list[str]:
    """The words, but for ``--output``, of a run of a few seconds that saves a checkpoint after each epoch."""
    images = save_images(folder / "images", {"bright": 12, "dark": 12})
    teacher = save_vit_teacher(folder / "teacher")
    words = "--profile paper --image-size 28 --epochs 30 --batch-size 4 --threads 1 --precision float32"
    return ["train", "--data", str(images), "--teacher", teacher, *words.split(), "--checkpoint-seconds", "0"]


def finish(words: list[str], output: Path) -> Answer:
    """Run to the end."""
    answer = twinbud(*words, "--output", output)
    assert answer.code == 0, answer.err
    return answer


def results(run: Path) -> list[bytes]:
    """What must be bit-identical: the model, the predictions, history and recovery but for their seconds."""
    recovery = run / "recovery.json"
    recovered = recovery.read_text().splitlines() if recovery.exists() else []
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        history = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return [
        (run / "model" / "model.safetensors").read_bytes(),
        (run / "predictions.csv").read_bytes(),
        repr(history).encode(),
        "\n".join(line for line in recovered if '"seconds"' not in line).encode(),
    ]


def wait_for(path: Path, command: Command) -> None:
    """Until there is something at ``path``, or the process has ended."""
    while not path.exists() and command.is_running:
        time.sleep(0.001)


def checkpoints(run: Path, pattern: str) -> set[Path]:
    """Those of every phase whose names match, while they come and go."""
    folder = run / "checkpoints"
    while True:
        with suppress(FileNotFoundError):  # one went while it was listed
            return {*folder.glob(pattern), *folder.glob(f"*/{pattern}")}


def at_random(run: Path, command: Command, generator: random.Random) -> None:
    """Between a hundredth and six tenths of a second after the first file of a run."""
    del run, command
    time.sleep(generator.uniform(0.01, 0.6))


def inside_a_save(run: Path, command: Command, generator: random.Random) -> None:
    """While a checkpoint is being written aside."""
    del generator
    while not checkpoints(run, ".step-*.draft") and command.is_running:
        pass


def at_an_epochs_end(run: Path, command: Command, generator: random.Random) -> None:
    """When a checkpoint of an epoch has just got its name."""
    del generator
    before = checkpoints(run, "step-*")
    while checkpoints(run, "step-*") <= before and command.is_running:
        pass


def during_evaluation(run: Path, command: Command, generator: random.Random) -> None:
    """Between the end of training, which writes the history, and the result."""
    wait_for(run / "history.csv", command)
    time.sleep(generator.uniform(0, 0.02))


def at_its_first_checkpoint(run: Path, command: Command, generator: random.Random) -> None:
    """As soon as it has one: one of recovery, in a run that recovers."""
    del generator
    while not checkpoints(run, "step-*") and command.is_running:
        pass


MOMENTS: tuple[Moment, ...] = (at_random, inside_a_save, at_an_epochs_end, during_evaluation)


def kill_once(words: list[str], run: Path, moment: Moment, generator: random.Random) -> bool:
    """Begin the run or go on with it, and send SIGKILL at the moment; whether it was still at work."""
    for name in ("environment.json", "history.csv"):
        (run / name).unlink(missing_ok=True)
    command = start([*words, "--resume", "--output", str(run)], run.with_suffix(".log"))
    wait_for(run / "environment.json", command)
    moment(run, command, generator)
    command.process.kill()
    return command.wait().code == -signal.SIGKILL


def is_recovering(run: Path) -> bool:
    """Whether the run has checkpoints of recovery and none of training yet."""
    folder = run / "checkpoints"
    return any(folder.glob("recovery-*/step-*")) and not any(folder.glob("step-*"))


def has_finished(run: Path) -> bool:
    """Whether the run has its result."""
    return (run / "metrics.json").exists() and not (run / "UNFINISHED").exists()
