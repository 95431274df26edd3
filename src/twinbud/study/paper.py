"""The results of the paper, and how the runs of a study differ from those of the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_SIZE_TOLERANCE = 0.01
"""Image sets whose sizes differ by at most this share count as the same set."""

_SETS_BY_NAME = {"covid19-radiography": "chest-xray", "covid-ct-slices": "lung-ct", "brain-tumor-mri": "brain-mri"}
"""The paper's sets as ``--data`` names them, and as ``paper-tables.json`` does."""


@cache
def paper_numbers() -> Mapping[str, Any]:
    """Read ``paper-tables.json``, transcribed from arXiv 2508.20461."""
    return json.loads(files("twinbud.study").joinpath("paper-tables.json").read_text(encoding="utf-8"))


def paper_pairs() -> tuple[str, ...]:
    """Return the names of the paper's teacher-student pairs."""
    return tuple(paper_numbers()["pairs"])


def paper_tables() -> tuple[str, ...]:
    """Return the names of the paper's tables of accuracy and cost."""
    return (*paper_numbers()["accuracy"], *paper_numbers()["cost"])


@dataclass(frozen=True, kw_only=True)
class ComparisonContext:
    """What decides whether a run can be compared with a result of the paper.

    Attributes:
        data: Name of the image set.
        classes: Classes of the image set.
        num_images: Size of the image set.
        teacher: The teacher in the recipe.
        student: The student in the recipe.
        paper_pair: The corresponding pair of the paper.
        settings: Settings of the run by name, ``temperature`` resolved.
        epochs: Number of training epochs.
    """

    data: str
    classes: tuple[str, ...]
    num_images: int
    teacher: str
    student: str
    paper_pair: str
    settings: Mapping[str, Any]
    epochs: int


def paper_accuracy(table: str, data: str, pair: str, label: str, fraction: float) -> tuple[float, float] | None:
    """Return the paper's mean and standard deviation over five samplings, or None without such a cell."""
    cell = _cell("accuracy", table, data, pair, label, fraction)
    return (float(cell[0]), float(cell[1])) if cell else None


def paper_cost(table: str, data: str, pair: str, label: str, fraction: float) -> Mapping[str, float] | None:
    """Return the paper's ``peak_memory_mib`` and ``train_seconds`` on an RTX A6000, or None without such a cell."""
    return _cell("cost", table, data, pair, label, fraction)


def _cell(kind: str, table: str, data: str, pair: str, label: str, fraction: float) -> Any:
    cell: Any = paper_numbers()[kind]
    for key in (table, _SETS_BY_NAME.get(data, data), pair, label, f"{100 * fraction:g}%"):
        cell = cell.get(key)
        if cell is None:
            return None
    return cell


def differences(context: ComparisonContext) -> dict[str, str]:
    """List how a run differs from those of the paper.

    The paper gives the classes, the pair, 224 pixels, 300 epochs, α, β and τ, and no other setting.

    Returns:
        A description of each difference, by a short name for the head of a column.
    """
    paper = paper_numbers()
    dataset = paper["datasets"].get(_SETS_BY_NAME.get(context.data, context.data))
    pair, settings = paper["pairs"][context.paper_pair], paper["settings"]
    found: dict[str, str] = {}
    if dataset and sorted(map(_normalize, dataset["classes"])) != sorted(map(_normalize, context.classes)):
        found["classes"] = f"{', '.join(context.classes)} instead of {', '.join(dataset['classes'])}"
    if dataset and abs(context.num_images - dataset["images"]) > _SIZE_TOLERANCE * dataset["images"]:
        found["images"] = f"{context.num_images:,} instead of {dataset['images']:,}"
    if (context.teacher, context.student) != (pair["teacher"], pair["student"]):
        found["pair"] = f"{context.teacher} → {context.student} instead of {pair['teacher']} → {pair['student']}"
    if context.settings["image_size"] != settings["image_size"]:
        found["image size"] = f"{context.settings['image_size']} instead of {settings['image_size']} pixels"
    if context.epochs != settings["epochs"]:
        found["epochs"] = f"{context.epochs} instead of {settings['epochs']}"
    if context.settings.get("develop"):
        found["test images"] = "one fifth of the training part instead of the test part"
    if (recover := context.settings.get("recover", "none")) != "none":
        found["recovery"] = f"the student was recovered from the teacher on {recover} images"
    expected = {"alpha": settings["alpha"], "beta": settings["beta"]}
    expected["temperature"] = settings["temperature"][context.paper_pair]
    for name, value in expected.items():
        if context.settings[name] != value:
            found[name] = f"{context.settings[name]:g} instead of {value:g}"
    return found


def _normalize(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum()).replace("covid19", "covid")
