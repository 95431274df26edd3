"""Image sets with patients, as a CSV, whose labels need a task."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_table(folder: Path, rows: Sequence[Mapping[str, str]], levels: Sequence[int], seed: int = 0) -> Path:
    """Write one gray image a row, whose brightness is its level, and a CSV of the rows; returns the CSV."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number, level in enumerate(levels):
        pixels = random.normal(level, 12, (32, 32)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    path = folder / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image_path", *rows[0]])
        writer.writeheader()
        writer.writerows({"image_path": f"{number:03d}.png", **row} for number, row in enumerate(rows))
    return path


def save_grades(folder: Path, names: Sequence[str], num_patients: int = 8) -> Path:
    """Two images of each of ``num_patients`` patients of every grade; the brightness rises with the grade."""
    grades = [grade for grade in range(len(names)) for _ in range(2 * num_patients)]
    rows = [{"label": names[grade], "patient_id": f"P{place // 2}"} for place, grade in enumerate(grades)]
    return save_table(folder, rows, [40 + 50 * grade for grade in grades])


def save_findings(folder: Path, *, num_patients: int = 24, combined: bool = False) -> Path:
    """Two images of each patient, with labels in columns (some unknown) or, ``combined``, in one as ``a|b``.

    An image is bright where it shows ``left`` or ``right``, each on its half.
    """
    random = np.random.default_rng(1)
    states = np.repeat(random.random((num_patients, 2)) < 0.5, 2, axis=0)
    names = ("left", "right", "rare")
    rows: list[dict[str, str]] = []
    for number, (left, right) in enumerate(states):
        shown = (bool(left), bool(right), number // 2 % 8 == 0)
        cells = {name: str(int(state)) for name, state in zip(names, shown, strict=True)}
        if number % 7 == 0:
            cells["right"] = ("", "-1", "nan")[number // 7 % 3]
        present = [name for name, state in zip(names, shown, strict=True) if state]
        labels = {"label": "|".join(present) or "No Finding"} if combined else cells
        rows.append({**labels, "patient_id": f"P{number // 2}"})
    path = save_table(folder, rows, [80] * len(rows))
    for number, (left, right) in enumerate(states):
        pixels = random.normal(80, 12, (32, 32))
        pixels[:, :16] += 90 * left
        pixels[:, 16:] += 90 * right
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return path
