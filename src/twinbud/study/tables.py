"""From records to rows: means over samplings, paired differences, the paper's numbers, and what is missing. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinbud.study.paper import ComparisonContext, differences, paper_accuracy, paper_cost
from twinbud.study.protocol_notes import protocol_notes
from twinbud.study.recipe import Recipe
from twinbud.study.requests import RequestedRun
from twinbud.study.statistics import Difference, Spread, paired_difference, spread

MEASURES = ("accuracy", "balanced_accuracy", "auroc_macro")
COSTS = ("train_seconds", "images_per_second", "peak_memory_mib", "num_steps", "num_passes", "num_train")
_OF_SECTION = ("data", "pair", "sweep")


@dataclass(frozen=True, kw_only=True)
class Row:
    """All samplings of one place in the recipe.

    Attributes:
        coordinates: The place, sampling aside.
        runs: Those asked for, by sampling.
        measures: Each measure over the samplings.
        costs: Each cost over the samplings.
        difference: In accuracy, to the baseline, over the samplings of both; None of the baseline itself.
        is_baseline: Whether the others are compared with this.
        paper: The paper's mean and deviation of the accuracy.
        paper_cost: The paper's memory and time.
        confusion: Counts, truth in rows, added over the samplings.
    """

    coordinates: Mapping[str, Any]
    runs: Mapping[int, RequestedRun]
    measures: Mapping[str, Spread | None]
    costs: Mapping[str, Spread | None]
    difference: Difference | None
    is_baseline: bool
    paper: tuple[float, float] | None
    paper_cost: Mapping[str, float] | None
    confusion: tuple[tuple[int, ...], ...] | None

    @property
    def num_done(self) -> int:
        """Samplings with a record."""
        return sum(run.record is not None for run in self.runs.values())

    @property
    def num_failed(self) -> int:
        """Samplings that failed when they were last tried."""
        return sum(run.reason is not None for run in self.runs.values())

    @property
    def samplings(self) -> str:
        """``5``, ``3 of 5``, or ``3 of 5, 1 failed``."""
        requested = len(self.runs)
        words = str(requested) if self.num_done == requested else f"{self.num_done} of {requested}"
        return f"{words}, {self.num_failed} failed" if self.num_failed else words


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows that stand in one table: one set of images and one pair, or one sweep of them.

    Attributes:
        coordinates: What the rows share.
        profile: Where the defaults came from.
        axes: The axes along which the rows differ.
        rows: In the recipe's order.
        baseline: What the differences are to, in words; None where nothing is compared.
        classes: Of the set.
        num_images: Of the set.
        differs: In what the runs differ from the paper's; None where the paper's numbers do not stand beside.
        machines: Where and how the runs were made.
        protocol_notes: In what some runs saw or were measured on other images than the paper's would have been.
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
        words = [str(value) for value in self.coordinates.values()]
        return " · ".join([*words, f"profile {self.profile}"])

    @property
    def is_sweep(self) -> bool:
        """Whether the rows differ in one setting, which changes neither time nor memory."""
        return "sweep" in self.coordinates

    @property
    def paper_head(self) -> str | None:
        """What the paper's column is called; it says in what ours differ."""
        if self.differs is None:
            return None
        if not any(row.num_done for row in self.rows):
            return "paper (no run yet)"
        return f"paper (different: {', '.join(self.differs)})" if self.differs else "paper"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All tables of a recipe.

    Attributes:
        recipe: What they are of.
        sections: One table each.
        failures: How often each reason made a run fail.
        notes: What to know of them all.
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
    """The tables of the runs asked for.

    Args:
        recipe: Which also says what is compared with what, and with which of the paper's numbers.
        requested: Its runs.
        images: Of each named set, ``num_images`` and ``classes``.
        notes: Further lines for below the tables.
    """
    groups: dict[tuple[Any, ...], list[RequestedRun]] = {}
    shared = tuple(axis for axis in _OF_SECTION if axis not in recipe.baseline)
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
    places: dict[tuple[Any, ...], dict[int, RequestedRun]] = {}
    for run in requested:
        places.setdefault(tuple(run.coordinates[axis] for axis in order), {})[run.sampling] = run
    rows = tuple(
        _row(recipe, dict(zip(order, place, strict=True)), runs, _baseline(recipe, order, place, places))
        for place, runs in places.items()
    )
    shown = images.get(str(coordinates.get("data")), {})
    return Section(
        coordinates=coordinates,
        profile=profile,
        axes=tuple(axis for axis in order if len({row.coordinates[axis] for row in rows}) > 1) or ("method",),
        rows=tuple(sorted(rows, key=lambda row: row.coordinates["fraction"])),
        baseline=_baseline_words(recipe, requested),
        classes=tuple(shown.get("classes", ())),
        num_images=int(shown.get("num_images", 0)),
        differs=_differs(recipe, rows, images),
        machines=tuple(sorted({_machine(run.record) for run in requested if run.record is not None})),
        protocol_notes=protocol_notes(requested),
    )


def _baseline(
    recipe: Recipe,
    order: Sequence[str],
    place: Sequence[Any],
    places: Mapping[tuple[Any, ...], Mapping[int, RequestedRun]],
) -> Mapping[int, RequestedRun] | None:
    """The runs that those of a place are compared with, sampling by sampling."""
    if "value" in order:
        sweep = dict(zip(order, place, strict=True))
        for other, runs in places.items():
            found = dict(zip(order, other, strict=True))
            same = all(found[axis] == sweep[axis] for axis in order if axis != "value")
            if same and all(run.is_default for run in runs.values()):
                return runs
        return None
    if not recipe.baseline:
        return None
    return places.get(tuple(recipe.baseline.get(axis, value) for axis, value in zip(order, place, strict=True)))


def _baseline_words(recipe: Recipe, requested: Sequence[RequestedRun]) -> str | None:
    if "sweep" in requested[0].coordinates:
        return "the default"
    return ", ".join(str(value) for value in recipe.baseline.values()) or None


def _row(
    recipe: Recipe,
    coordinates: Mapping[str, Any],
    runs: Mapping[int, RequestedRun],
    baseline: Mapping[int, RequestedRun] | None,
) -> Row:
    is_baseline = baseline is runs
    done = [run for run in runs.values() if run.record is not None]
    full = next(iter(runs.values())).coordinates
    beside = _beside(recipe, full)
    return Row(
        coordinates=coordinates,
        runs=runs,
        measures={name: spread(list(_values(runs, "metrics", name).values())) for name in MEASURES},
        costs={name: spread(list(_values(runs, "cost", name).values())) for name in COSTS},
        difference=None
        if baseline is None or is_baseline
        else paired_difference(_values(runs, "metrics", "accuracy"), _values(baseline, "metrics", "accuracy")),
        is_baseline=is_baseline,
        paper=paper_accuracy(*beside) if beside else None,
        paper_cost=paper_cost(*beside) if beside else None,
        confusion=_added([run.record["metrics"]["confusion_matrix"] for run in done if run.record]),
    )


def _beside(recipe: Recipe, coordinates: Mapping[str, Any]) -> tuple[str, str, str, str, float] | None:
    """Where the paper's numbers of a place are: table, set, pair, method and fraction."""
    pair = recipe.pairs[coordinates["pair"]].paper
    if recipe.paper is None or pair is None or coordinates["method"] not in recipe.paper.methods:
        return None
    label = recipe.paper.methods[coordinates["method"]]
    return recipe.paper.table, coordinates["data"], pair, label, coordinates["fraction"]


def _values(runs: Mapping[int, RequestedRun], part: str, name: str) -> dict[int, float]:
    """A number of every finished sampling that has it."""
    found = {sampling: run.record[part].get(name) for sampling, run in runs.items() if run.record is not None}
    return {sampling: float(value) for sampling, value in found.items() if value is not None}


def _added(matrices: Sequence[Sequence[Sequence[int]]]) -> tuple[tuple[int, ...], ...] | None:
    if not matrices:
        return None
    sides = range(len(matrices[0]))
    return tuple(tuple(sum(matrix[row][column] for matrix in matrices) for column in sides) for row in sides)


def _differs(recipe: Recipe, rows: Sequence[Row], images: Mapping[str, Mapping[str, Any]]) -> Mapping[str, str] | None:
    """All in which the runs beside a number of the paper differ from those that made it."""
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
    assert pair.paper is not None, "only a pair that stands for one of the paper's has its numbers beside"
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
    threads = f"{record['facts']['threads']} thread{'s' if record['facts']['threads'] > 1 else ''} a run"
    at_once = f"{environment['num_workers']} run{'s' if environment['num_workers'] > 1 else ''} at once"
    torch = environment["packages"]["torch"]
    return f"{environment['device_name']}, {threads}, {at_once}, {environment['precision']}, torch {torch}"
