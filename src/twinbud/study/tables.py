"""Make tables of records: means over samplings, paired differences and the paper's results. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinbud.evaluation.metrics import POINT_METRICS
from twinbud.runs.result import COST_NAMES
from twinbud.study.pairing import Samplings, paired_runs
from twinbud.study.paper import ComparisonContext, differences, paper_accuracy, paper_cost
from twinbud.study.protocol_notes import protocol_notes
from twinbud.study.recipe import Recipe
from twinbud.study.requests import RequestedRun
from twinbud.study.statistics import Difference, Spread, paired_difference, spread

_SECTION_AXES = ("data", "pair", "sweep")
"""Each value of these axes has a section of its own, unless the baseline compares them."""

Place = tuple[Any, ...]
"""The values of a row on the axes of its section."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """All samplings of one place in the recipe.

    Attributes:
        coordinates: The value on each axis except ``sampling``.
        runs: The requested runs by sampling.
        measures: Each measure over the samplings.
        costs: Each cost over the samplings.
        difference: Paired difference in accuracy to the baseline; None for the baseline itself, and without pairs.
        num_unpaired: Number of samplings in which the baseline has other labelled or test images.
        is_baseline: Whether other rows are compared with this row.
        paper: The paper's mean and standard deviation of the accuracy.
        paper_cost: The paper's memory and time.
        confusion: Sum of the confusion matrices over the samplings, true classes in rows.
    """

    coordinates: Mapping[str, Any]
    runs: Samplings
    measures: Mapping[str, Spread | None]
    costs: Mapping[str, Spread | None]
    difference: Difference | None
    num_unpaired: int
    is_baseline: bool
    paper: tuple[float, float] | None
    paper_cost: Mapping[str, float] | None
    confusion: tuple[tuple[int, ...], ...] | None

    @property
    def num_done(self) -> int:
        """Number of samplings with a record."""
        return sum(run.record is not None for run in self.runs.values())

    @property
    def num_failed(self) -> int:
        """Number of samplings whose last attempt failed."""
        return sum(run.reason is not None for run in self.runs.values())

    @property
    def samplings(self) -> str:
        """``5``, ``3 of 5``, or ``3 of 5, 1 failed``."""
        requested = len(self.runs)
        text = str(requested) if self.num_done == requested else f"{self.num_done} of {requested}"
        return f"{text}, {self.num_failed} failed" if self.num_failed else text


@dataclass(frozen=True, kw_only=True)
class Section:
    """The rows of one table: one image set and one pair, or one sweep of them.

    Attributes:
        coordinates: The coordinates that all rows share.
        profile: The profile that supplies the defaults of all settings.
        axes: The axes along which the rows differ.
        rows: The rows, in the recipe's order.
        baseline: Name of the baseline; None if nothing is compared.
        classes: Classes of the image set.
        num_images: Size of the image set.
        differs: How the runs differ from the paper's, see ``differences``; None without results of the paper.
        machines: The machines and software of the runs.
        protocol_notes: See ``protocol_notes``.
    """

    coordinates: Mapping[str, Any]
    profile: str
    axes: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    classes: tuple[str, ...]
    num_images: int
    differs: Mapping[str, str] | None
    machines: tuple[str, ...]
    protocol_notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """``brain-mri · dinov2 · profile quick``."""
        return " · ".join([*map(str, self.coordinates.values()), f"profile {self.profile}"])

    @property
    def is_sweep(self) -> bool:
        """Whether the rows differ in the value of one setting, which does not change time or memory."""
        return "sweep" in self.coordinates

    @property
    def paper_head(self) -> str | None:
        """The head of the paper's column, with the names of the differences; None without such a column."""
        if self.differs is None:
            return None
        if not any(row.num_done for row in self.rows):
            return "paper (no run yet)"
        return f"paper (different: {', '.join(self.differs)})" if self.differs else "paper"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All tables of a recipe.

    Attributes:
        recipe: The recipe.
        sections: The sections.
        failures: Number of failed runs by reason.
        notes: Notes on the whole study.
    """

    recipe: Recipe
    sections: tuple[Section, ...]
    failures: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_tables(
    recipe: Recipe,
    requested: Sequence[RequestedRun],
    images: Mapping[str, Mapping[str, Any]],
    notes: Iterable[str] = (),
) -> Tables:
    """Make the tables of the requested runs.

    Args:
        recipe: The recipe, which defines the baseline and the results of the paper to show.
        requested: Its runs.
        images: ``num_images`` and ``classes`` of each image set.
        notes: Notes on the whole study.
    """
    groups: dict[tuple[Any, ...], list[RequestedRun]] = {}
    shared = tuple(axis for axis in _SECTION_AXES if axis not in recipe.baseline)
    for run in requested:
        key = (run.profile, *((axis, run.coordinates[axis]) for axis in shared if axis in run.coordinates))
        groups.setdefault(key, []).append(run)
    return Tables(
        recipe=recipe,
        sections=tuple(_section(recipe, key[0], dict(key[1:]), runs, images) for key, runs in groups.items()),
        failures=Counter(run.reason for run in requested if run.reason is not None),
        notes=tuple(notes),
    )


def _section(
    recipe: Recipe,
    profile: str,
    coordinates: Mapping[str, Any],
    requested: Sequence[RequestedRun],
    images: Mapping[str, Mapping[str, Any]],
) -> Section:
    axes = [axis for axis in requested[0].coordinates if axis not in coordinates and axis != "sampling"]
    order = ["fraction", *(axis for axis in axes if axis != "fraction")]
    groups: dict[Place, dict[int, RequestedRun]] = {}
    for run in requested:
        groups.setdefault(tuple(run.coordinates[axis] for axis in order), {})[run.sampling] = run
    baselines = _baselines(recipe, order, groups)
    image_set = images.get(str(coordinates.get("data")), {})
    classes = tuple(image_set.get("classes", ()))
    rows = tuple(
        _row(recipe, dict(zip(order, place, strict=True)), runs, baselines.get(place), classes)
        for place, runs in groups.items()
    )
    return Section(
        coordinates=coordinates,
        profile=profile,
        axes=tuple(axis for axis in order if len({row.coordinates[axis] for row in rows}) > 1) or ("method",),
        rows=tuple(sorted(rows, key=lambda row: row.coordinates["fraction"])),
        baseline=_baseline_name(recipe, requested),
        classes=classes,
        num_images=int(image_set.get("num_images", 0)),
        differs=_paper_differences(recipe, rows, images),
        machines=tuple(sorted({_machine(run.record) for run in requested if run.record is not None})),
        protocol_notes=protocol_notes(requested),
    )


def _baselines(recipe: Recipe, order: Sequence[str], groups: Mapping[Place, Samplings]) -> dict[Place, Samplings]:
    """Return the runs that those of each place are compared with, sampling by sampling.

    In a sweep these are the runs with the default value, else those with the values of the recipe's ``baseline``.
    """
    if "value" in order:
        index = order.index("value")
        defaults = {
            (*place[:index], *place[index + 1 :]): runs
            for place, runs in groups.items()
            if all(run.is_default for run in runs.values())
        }
        found = {place: defaults.get((*place[:index], *place[index + 1 :])) for place in groups}
    elif recipe.baseline:
        found = {
            place: groups.get(tuple(recipe.baseline.get(axis, value) for axis, value in zip(order, place, strict=True)))
            for place in groups
        }
    else:
        found = {}
    return {place: runs for place, runs in found.items() if runs is not None}


def _baseline_name(recipe: Recipe, requested: Sequence[RequestedRun]) -> str | None:
    if "sweep" in requested[0].coordinates:
        return "the default"
    return ", ".join(str(value) for value in recipe.baseline.values()) or None


def _row(
    recipe: Recipe,
    coordinates: Mapping[str, Any],
    runs: Samplings,
    baseline: Samplings | None,
    classes: Sequence[str],
) -> Row:
    is_baseline = baseline is runs
    others = {} if baseline is None or is_baseline else baseline
    paired, num_unpaired = paired_runs(runs, others)
    paper_cell = _paper_cell(recipe, next(iter(runs.values())).coordinates)
    return Row(
        coordinates=coordinates,
        runs=runs,
        measures={name: spread(list(_values(runs, "metrics", name).values())) for name in POINT_METRICS},
        costs={name: spread(list(_values(runs, "cost", name).values())) for name in COST_NAMES},
        difference=paired_difference(_values(paired, "metrics", "accuracy"), _values(others, "metrics", "accuracy")),
        num_unpaired=num_unpaired,
        is_baseline=is_baseline,
        paper=paper_accuracy(*paper_cell) if paper_cell else None,
        paper_cost=paper_cost(*paper_cell) if paper_cell else None,
        confusion=_sum_matrices([run.record for run in runs.values() if run.record is not None], classes),
    )


def _paper_cell(recipe: Recipe, coordinates: Mapping[str, Any]) -> tuple[str, str, str, str, float] | None:
    """Return the table, image set, pair, method and fraction of the paper's result; None if the recipe names none."""
    pair = recipe.pairs[coordinates["pair"]].paper
    if recipe.paper is None or pair is None or coordinates["method"] not in recipe.paper.methods:
        return None
    method = recipe.paper.methods[coordinates["method"]]
    return recipe.paper.table, coordinates["data"], pair, method, coordinates["fraction"]


def _values(runs: Samplings, part: str, name: str) -> dict[int, float]:
    """Return one number of each finished sampling that has it."""
    found = {sampling: run.record[part].get(name) for sampling, run in runs.items() if run.record is not None}
    return {sampling: float(value) for sampling, value in found.items() if value is not None}


def _sum_matrices(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> tuple[tuple[int, ...], ...] | None:
    """Return the sum in the order of ``classes``: runs can have another one (``--classes``)."""
    if not all(record["metrics"]["confusion_matrix"] for record in records) or not records:
        return None  # several labels an image have none
    total = [[0] * len(classes) for _ in classes]
    for record in records:
        places = [classes.index(name) for name in record["classes"]]
        for row, counts in zip(places, record["metrics"]["confusion_matrix"], strict=True):
            for column, count in zip(places, counts, strict=True):
                total[row][column] += count
    return tuple(map(tuple, total))


def _paper_differences(
    recipe: Recipe, rows: Sequence[Row], images: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, str] | None:
    """Return all differences to the paper's runs that are shown beside them; None if none are shown."""
    found: dict[str, str] | None = None
    for row in rows:
        if row.paper is None and row.paper_cost is None:
            continue
        found = found or {}
        for run in row.runs.values():
            if run.record is not None:
                found |= differences(_comparison_context(recipe, run, run.record, images))
    return found


def _comparison_context(
    recipe: Recipe, run: RequestedRun, record: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]
) -> ComparisonContext:
    name, pair = str(run.coordinates["data"]), recipe.pairs[run.coordinates["pair"]]
    assert pair.paper is not None, "rows with results of the paper have a pair of the paper"
    return ComparisonContext(
        data=name,
        classes=tuple(record["classes"]),
        num_images=int(images[name]["num_images"]),
        teacher=pair.teacher,
        student=pair.student,
        paper_pair=pair.paper,
        settings=record["facts"]["settings"],
        epochs=int(record["cost"]["epochs"]),
    )


def _machine(record: Mapping[str, Any]) -> str:
    environment = record["environment"]
    threads = _count(record["facts"]["threads"], "thread")
    runs = _count(environment["num_workers"], "run")
    torch = environment["packages"]["torch"]
    return (
        f"{environment['device_name']}, {threads} per run, {runs} at a time, {environment['precision']}, torch {torch}"
    )


def _count(count: int, noun: str) -> str:
    """Return ``1 run`` or ``2 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
