"""How numbers of a study are written, alike in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinbud.core.progress import duration
from twinbud.report.page import number
from twinbud.study.statistics import LEAST_FOR_VERDICT, Spread
from twinbud.study.tables import Row, Section, Tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in words.

    Attributes:
        heads: Of its columns.
        num_words: How many of the first columns are words and stand left; the others are numbers.
        rows: Cells, as many as heads.
        marked: Of each row, whether it is the one that the others are compared with.
    """

    heads: tuple[str, ...]
    num_words: int
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[bool, ...]


def accuracy_table(section: Section) -> Table:
    """Accuracy, what it is beside the baseline, and the paper's; balanced accuracy and AUROC."""
    compared = section.baseline is not None and any(row.difference for row in section.rows)
    beside = any(row.paper for row in section.rows)
    heads = [*_axes(section), "accuracy"]
    heads += [f"difference to {section.baseline} (95 % t interval)", "verdict"] if compared else []
    heads += ["samplings"]
    heads += [str(section.paper_head)] if beside else []
    heads += ["balanced accuracy", "macro AUROC"]
    return Table(
        heads=tuple(heads),
        num_words=len(section.axes),
        rows=tuple(_accuracy_cells(section, row, compared=compared, beside=beside) for row in section.rows),
        marked=tuple(row.is_baseline for row in section.rows),
    )


def _accuracy_cells(section: Section, row: Row, *, compared: bool, beside: bool) -> tuple[str, ...]:
    cells = [*_place(section, row), plus_minus(row.measures["accuracy"])]
    cells += [_difference(row), _verdict(row)] if compared else []
    cells.append(row.samplings)
    if beside:
        cells.append(f"{row.paper[0]:.3f} ± {row.paper[1]:.3f}" if row.paper else "–")
    return (*cells, plus_minus(row.measures["balanced_accuracy"]), plus_minus(row.measures["auroc_macro"]))


def cost_table(section: Section) -> Table:
    """Time and memory of training, and the paper's."""
    beside = any(row.paper_cost for row in section.rows)
    heads = ("labelled images", "steps", "image passes", "training", "images/s while training", "peak memory")
    heads = (*_axes(section), *heads)
    if beside:
        heads = (*heads, f"{section.paper_head}: training, RTX A6000", "memory")
    rows = []
    for row in section.rows:
        costs = row.costs
        cells = [*_place(section, row), *(_mean(costs[name], 0) for name in ("num_train", "num_steps", "num_passes"))]
        seconds = costs["train_seconds"]
        cells += [duration(seconds.mean) if seconds else "–", _mean(costs["images_per_second"], 0)]
        cells.append(f"{_mean(costs['peak_memory_mib'], 0)} MiB" if costs["peak_memory_mib"] else "–")
        if beside:
            paper = row.paper_cost
            cells += [duration(paper["train_seconds"]) if paper else "–"]
            cells += [f"{number(paper['peak_memory_mib'], 0)} MiB" if paper else "–"]
        rows.append(tuple(cells))
    marked = tuple(row.is_baseline for row in section.rows)
    return Table(heads=heads, num_words=len(section.axes), rows=tuple(rows), marked=marked)


def plus_minus(value: Spread | None) -> str:
    """``0.750 ± 0.012``, ``0.750`` of a single sampling, or a dash."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" + ("" if value.deviation is None else f" ± {value.deviation:.3f}")


def section_notes(section: Section) -> list[str]:
    """What to keep in mind of one table."""
    notes = [f"{protocol}." for protocol in section.protocol_notes]
    if any(row.difference for row in section.rows):
        notes.append(
            "Differences are paired: the same labelled images, sampling by sampling. The intervals are over "
            "samplings, one split; they are not adjusted for the number of rows. Fewer than "
            f"{LEAST_FOR_VERDICT} samplings give no verdict."
        )
    if section.differs:
        words = "; ".join(f"{name}: {text}" for name, text in section.differs.items())
        notes.append(f"The paper's runs were other ones. {words}.")
    if section.differs is not None:
        notes.append(
            "Of the paper's optimiser, batch size and augmentation nothing is known; docs/method.md says what stands "
            "for them."
        )
    notes += [f"Made on: {machine}." for machine in section.machines]
    return notes


def tables_notes(tables: Tables) -> list[str]:
    """What to keep in mind of all tables: runs that failed, and what their reader met."""
    failures = [f"Failed ({count}): {reason}" for reason, count in tables.failures.items()]
    return [*failures, *tables.notes]


def place_words(section: Section, row: Row) -> str:
    """Where a row stands, in one line."""
    return " · ".join(_place(section, row))


def _place(section: Section, row: Row) -> list[str]:
    return [axis_value(axis, row.coordinates) for axis in section.axes]


def axis_value(axis: str, coordinates: Mapping[str, Any]) -> str:
    """``5 %`` of a fraction, else the value itself."""
    value = coordinates[axis]
    if axis == "fraction":
        return f"{100 * value:g}\u00a0%"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axes(section: Section) -> list[str]:
    """What the first columns are called."""
    words = {"fraction": "labels", "value": str(section.coordinates.get("sweep"))}
    return [words.get(axis, axis).replace("_", " ") for axis in section.axes]


def _difference(row: Row) -> str:
    if row.difference is None:
        return "–"
    text, interval = _signed(row.difference.mean), row.difference.interval
    if interval is not None:
        text += f" ({_signed(interval[0])} to {_signed(interval[1])})"
    count = row.difference.count
    return text if count == row.num_done else f"{text}, {count} pair{'s' if count != 1 else ''}"


def _verdict(row: Row) -> str:
    return row.difference.verdict or "–" if row.difference else "–"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _mean(value: Spread | None, decimals: int) -> str:
    return number(value.mean if value else None, decimals)


def architecture_table(architectures: Sequence[Any], num_classes: int) -> Table:
    """The paper's Table 1."""
    heads = ("pair", "role", "model", "depth", "width", "heads", f"parameters ({num_classes} classes)", "paper")
    rows = []
    for one in architectures:
        paper = one.paper or "–"
        if one.agrees is False:
            paper += " (another shape)"
        cells = (one.pair, one.role, one.name, one.depth, one.width, one.heads, f"{one.num_parameters:,}", paper)
        rows.append(cells)
    return Table(heads=heads, num_words=3, rows=tuple(rows), marked=(False,) * len(rows))
