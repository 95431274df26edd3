"""Rows on a GPU: 169 images for 300 epochs at 224 px in batches of 32, from process start; started by gpu.sh.

    python benchmarks/gpu_rows.py SELECTED DATA --results FOLDER [--device cpu --epochs 2 --images 32 --image-size 56]

SELECTED is what ``twinbud select`` made, DATA a folder of class folders. `selection` and `dual` take turns; the test
pass is timed apart, on 4,233 images or as many as there are. Only what twinbud itself needs is imported.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from bench_table import Found, Row, Target, limit_lines, table, twin_targets
from measuring import Measurement, measure, measure_limit
from task import METHODS, Task
from twinbud.config.data_config import DataConfig
from twinbud.data.source import read_index
from twinbud.training.amp import choose_device, choose_precision

NUM_TEST = 4233
"""Test images of the paper's largest set."""
WHOLE_SECONDS = 20.0
RATIO = 1.20


def main() -> None:
    """Measure, print and write."""
    options = parse()
    options.results.mkdir(parents=True, exist_ok=True)
    listing = options.results / "images.csv"
    write_split(listing, options.data, num_train=options.images, num_test=options.test_images)
    precision = choose_precision("auto", choose_device(options.device)).name

    def task(row: Row, result: Path) -> Task:
        return Task(
            data=str(listing),
            fraction=1.0,
            listing=listing,
            selected=options.selected,
            result=result,
            method=row.method,
            image_size=options.image_size,
            epochs=options.epochs,
            precision=precision,
            device=options.device,
            profile="paper",
        )

    def run(row: Row) -> Measurement:
        return measure("twinbud", partial(task, row))

    rows = [Row(options.selected.name, options.image_size, method, "twinbud") for method in METHODS]
    run(rows[0])  # fills the caches
    found: dict[Row, list[Measurement]] = {row: [] for row in rows}
    for turn in range(1, options.repeats + 1):
        for row in rows:
            found[row].append(run(row))
            print(f"turn {turn}: {row.method}: {found[row][-1].wall_seconds:.1f} s", file=sys.stderr, flush=True)
    limit = measure_limit(partial(task, rows[1]))
    text = "\n".join(report(found, limit, precision, options))
    print(text)
    (options.results / "rows.md").write_text(text + "\n", encoding="utf-8")
    raw = {
        "precision": precision,
        "limit": limit,
        "rows": [row._asdict() | {"turns": [asdict(m) for m in turns]} for row, turns in found.items()],
    }
    (options.results / "rows.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")


def report(found: Found, limit: Mapping[str, Any], precision: str, options: argparse.Namespace) -> Iterator[str]:
    """The table and the targets."""
    alone = next(iter(found))
    yield from table(found, {})
    yield ""
    yield from limit_lines(alone, limit, found, precision, alone.model)
    yield ""
    for row, measurements in found.items():
        wall = statistics.median(m.wall_seconds - m.found["test_seconds"] for m in measurements)
        tested = statistics.median(m.found["test_seconds"] for m in measurements)
        start = statistics.median(m.found["to_training_seconds"] for m in measurements)
        num_test = measurements[0].found["num_test"]
        yield str(
            Target(
                f"{measurements[0].num_train} images × {options.epochs} epochs at {row.image_size} px, `{row.method}`, "
                "from process start, test pass left out",
                wall,
                WHOLE_SECONDS,
                " s",
                note=f"{start:.1f} s before training; test pass of {num_test} images {tested:.2f} s",
            )
        )
    time, memory = twin_targets(alone, limit, found, alone.model)
    yield str(Target(f"`dual` / `selection`, an epoch's time ({time.note})", time.value, RATIO, " ×"))
    yield str(memory)


def write_split(listing: Path, data: str, *, num_train: int, num_test: int) -> None:
    """A CSV with a given split: ``num_train`` images in turns over the classes, then up to ``num_test`` others."""
    image_index = read_index(DataConfig(data=data))
    by_class = [[row for row in image_index.rows if row.label == label] for label in image_index.classes]
    rows = [row for row in chain.from_iterable(zip_longest(*by_class)) if row is not None]
    with listing.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "label", "split"))
        for place, row in enumerate(rows[: num_train + num_test]):
            writer.writerow((row.image.file.absolute(), row.label, "train" if place < num_train else "test"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selected", type=Path, help="Output of 'twinbud select'.")
    parser.add_argument("data", help="Folder of class folders.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--images", type=int, default=169)
    parser.add_argument("--test-images", type=int, default=NUM_TEST)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
