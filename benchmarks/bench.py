"""`make bench`: twinbud against a plain loop and Hugging Face's Trainer, and against what the machine can do.

    python benchmarks/bench.py [--data FOLDER] [--quick] [--models vit,convnext] [--sizes 112,224]

Every measurement is a fresh process, taken in turns; medians of five. Nothing else should run on the machine. By
default on a quarter of twinbud's generated set (160 labelled images), with --data on 5 % of a folder. `--raw FILE`
keeps every number. About two hours on two cores; --quick, a smoke run, about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench_table import Found, Row, Target, limit_lines, table, twin_targets, whole_run_targets
from material import TEACHERS, TITLES, Material, prepare
from measuring import PROGRAMS, Measurement, command_seconds, measure, measure_limit
from task import METHODS, Task
from twinbud.training.amp import choose_device, choose_precision

WHOLE = ("twinbud", "Trainer")
"""What is measured from the command to the finished run."""
WHOLE_SIZE = 112


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="twinbud-bench-") as folder:
        say("preparing images and student pairs")
        material = prepare(Path(folder), data=options.data, fraction=options.fraction, models=options.models)
        bench = Bench(material, options)
        found = bench.rows()
        limits = bench.limits()
        whole = bench.whole_runs()
    help_seconds = command_seconds([sys.executable, "-m", "twinbud", "--help"], max(options.repeats, 5))
    for line in report(bench, found, limits, whole, help_seconds):
        print(line)
    if options.raw:
        write_raw(options.raw, found, limits, whole, help_seconds)


class Bench:
    """All measurements of one call."""

    def __init__(self, material: Material, options: argparse.Namespace) -> None:
        self.material, self.options = material, options
        self.cells = [(model, size) for model in options.models for size in options.sizes]
        self.precision: str = options.precision
        if self.precision == "auto":
            self.precision = choose_precision("auto", choose_device(options.device)).name

    def rows(self) -> dict[Row, list[Measurement]]:
        """Every row of the table; the rows of one model and size take turns."""
        found: dict[Row, list[Measurement]] = {}
        for model, size in self.cells if self.options.epochs else ():
            rows = [Row(model, size, method, program) for program in self.options.programs for method in METHODS]
            self._turns(rows, self.options.epochs, found)
        return found

    def limits(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What the machine can do, for each model and size."""
        limits: dict[tuple[str, int], dict[str, Any]] = {}
        for model, size in self.cells if self.options.epochs else ():
            say(f"limit of {model} at {size} px")
            limits[model, size] = measure_limit(self.task(Row(model, size, "dual", "twinbud"), epochs=1))
        return limits

    def whole_runs(self) -> dict[Row, list[Measurement]]:
        """From the command to the finished run, for the first model."""
        found: dict[Row, list[Measurement]] = {}
        if self.options.whole_epochs and set(WHOLE) <= set(self.options.programs):
            model = self.options.models[0]
            rows = [
                Row(model, WHOLE_SIZE, method, program) for method in self.options.whole_methods for program in WHOLE
            ]
            self._turns(rows, self.options.whole_epochs, found)
        return found

    def task(self, row: Row, epochs: int) -> Callable[[Path], Task]:
        """A task that still lacks the file of its result."""
        return lambda result: Task(
            data=self.material.data,
            fraction=self.material.fraction,
            listing=self.material.listing,
            selected=self.material.selected[row.model],
            result=result,
            method=row.method,
            image_size=row.image_size,
            epochs=epochs,
            precision=self.precision,
            device=self.options.device,
            profile="quick",
        )

    def _turns(self, rows: list[Row], epochs: int, found: dict[Row, list[Measurement]]) -> None:
        for turn in range(1, self.options.repeats + 1):
            for row in rows:
                taken = measure(row.program, self.task(row, epochs))
                found.setdefault(row, []).append(taken)
                speed = f"{taken.images_per_second:.1f} images/s, {taken.wall_seconds:.1f} s in all"
                say(f"turn {turn}/{self.options.repeats}: {' · '.join(map(str, row))}: {speed}")


def report(
    bench: Bench,
    found: Found,
    limits: Mapping[tuple[str, int], Mapping[str, Any]],
    whole: Found,
    help_seconds: float,
) -> Iterator[str]:
    """The table, the limit, and the targets."""
    options = bench.options
    yield from table(found, TITLES)
    yield ""
    yield (
        f"{options.repeats} turns of {options.epochs} epochs, the first of each left out; fresh processes; "
        f"{bench.precision}; {torch.get_num_threads()} threads; torch {torch.__version__}; images of "
        f"{Path(bench.material.data).name}, fraction {bench.material.fraction:g}."
    )
    yield ""
    targets: list[Target] = []
    for (model, size), limit in limits.items():
        row = Row(model, size, "selection", "twinbud")
        yield from limit_lines(row, limit, found, bench.precision, TITLES[model])
        if row in found:
            targets += twin_targets(row, limit, found, TITLES[model])
    for method in METHODS:
        rows = [row for row in whole if row.method == method]
        if rows:
            own, rival = (whole[row] for row in rows)
            targets += whole_run_targets(method, own, rival, epochs=options.whole_epochs)
    targets.append(Target("start of `twinbud --help`", help_seconds, 0.3, " s"))
    yield ""
    yield from map(str, targets)


def write_raw(
    path: Path,
    found: Found,
    limits: Mapping[tuple[str, int], Mapping[str, Any]],
    whole: Found,
    help_seconds: float,
) -> None:
    """Every number, as JSON."""

    def plain(rows: Found) -> list[dict[str, Any]]:
        return [row._asdict() | {"turns": [asdict(m) for m in turns]} for row, turns in rows.items()]

    raw = {
        "rows": plain(found),
        "limits": [{"model": model, "image_size": size} | dict(limit) for (model, size), limit in limits.items()],
        "whole_runs": plain(whole),
        "help_seconds": help_seconds,
    }
    path.write_text(json.dumps(raw, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Folder of images; the generated set by default.")
    parser.add_argument("--fraction", type=float, help="Share of labels used.")
    parser.add_argument("--models", type=partial(words, choices=TEACHERS), default=tuple(TEACHERS))
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=(112, 224))
    parser.add_argument("--programs", type=partial(words, choices=PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="Of each row; the first is not counted; 0: no rows.")
    parser.add_argument("--whole-epochs", type=int, default=40, help="Of the runs timed from end to end; 0: none.")
    parser.add_argument("--whole-methods", type=partial(words, choices=dict.fromkeys(METHODS)), default=METHODS)
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--raw", type=Path, help="Also write every number to this JSON file.")
    parser.add_argument("--quick", action="store_true", help="Smoke run: 2 turns of 2 epochs, 112 px only.")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.epochs, options.whole_epochs, options.sizes = 2, 2, 2, (112,)
    return options


def words(text: str, choices: Mapping[str, Any]) -> tuple[str, ...]:
    """Comma-separated words, each one of ``choices``."""
    chosen = tuple(text.split(","))
    if unknown := [word for word in chosen if word not in choices]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: one of {', '.join(choices)}")
    return chosen


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
