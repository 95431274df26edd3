"""Format the numbers of a study as text, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinbud.core.progress import duration
from twinbud.report.page import number
from twinbud.study.statistics import MIN_PAIRS_FOR_VERDICT, Spread
from twinbud.study.tables import Row, Section, Tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        heads: The heads of the columns.
        num_text_columns: Number of leading columns with text, aligned left; the others hold numbers.
        rows: The cells of each row.
        marked: Whether each row is the baseline.
    """

    heads: tuple[str, ...]
    num_text_columns: int
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[bool, ...]


def accuracy_table(section: Section) -> Table:
    """Make a table of accuracy, its differences to baseline and paper, balanced accuracy and AUROC."""
    has_difference = section.baseline is not None and any(row.difference for row in section.rows)
    has_paper = any(row.paper for row in section.rows)
    heads = [*_axis_heads(section), "accuracy"]
    heads += [f"difference to {section.baseline} (95 % t interval)", "verdict"] if has_difference else []
    heads += ["samplings"]
    heads += [str(section.paper_head)] if has_paper else []
    heads += ["balanced accuracy", "macro AUROC"]
    return Table(
        heads=tuple(heads),
        num_text_columns=len(section.axes),
        rows=tuple(
            _accuracy_cells(section, row, has_difference=has_difference, has_paper=has_paper) for row in section.rows
        ),
        marked=tuple(row.is_baseline for row in section.rows),
    )


def _accuracy_cells(section: Section, row: Row, *, has_difference: bool, has_paper: bool) -> tuple[str, ...]:
    cells = [*_axis_cells(section, row), plus_minus(row.measures["accuracy"])]
    cells += [_difference(row), _verdict(row)] if has_difference else []
    cells.append(row.samplings)
    if has_paper:
        cells.append(f"{row.paper[0]:.3f} ± {row.paper[1]:.3f}" if row.paper else "–")
    return (*cells, plus_minus(row.measures["balanced_accuracy"]), plus_minus(row.measures["auroc_macro"]))


def cost_table(section: Section) -> Table:
    """Make a table of the network's size and latency and the time and memory of training, with the paper's."""
    has_paper = any(row.paper_cost for row in section.rows)
    has_network = any(row.costs["num_parameters"] for row in section.rows)
    heads = (*_axis_heads(section), *(_NETWORK_HEADS if has_network else ()))
    heads += ("labelled images", "steps", "image passes", "training", "images/s in training", "peak memory")
    if has_paper:
        heads = (*heads, f"{section.paper_head}: training, RTX A6000", "memory")
    rows = []
    for row in section.rows:
        costs = row.costs
        cells = [
            *_axis_cells(section, row),
            *(_network_cells(costs) if has_network else ()),
            *(_mean(costs[name], 0) for name in ("num_train", "num_steps", "num_passes")),
        ]
        seconds, rate = costs["train_seconds"], costs["images_per_second"]
        cells += [duration(seconds.mean) if seconds else "–", _mean(rate if rate and rate.mean else None, 0)]
        cells.append(f"{_mean(costs['peak_memory_mib'], 0)} MiB" if costs["peak_memory_mib"] else "–")
        if has_paper:
            paper = row.paper_cost
            cells += [duration(paper["train_seconds"]) if paper else "–"]
            cells += [f"{number(paper['peak_memory_mib'], 0)} MiB" if paper else "–"]
        rows.append(tuple(cells))
    marked = tuple(row.is_baseline for row in section.rows)
    return Table(heads=heads, num_text_columns=len(section.axes), rows=tuple(rows), marked=marked)


_NETWORK_HEADS = ("parameters", "multiplications", "one image on a CPU thread")
_NETWORK_UNITS = {
    "num_parameters": (1e-6, 2, "M"),
    "num_multiplications": (1e-9, 3, "G"),
    "latency_seconds": (1e3, 1, "ms"),
}
"""Factor, decimals and unit of each of these columns."""


def _network_cells(costs: Mapping[str, Spread | None]) -> Iterator[str]:
    """Yield ``5.50 M``, ``0.367 G`` and ``12.1 ms``."""
    for name, (factor, decimals, unit) in _NETWORK_UNITS.items():
        value = costs[name]
        yield f"{number(value.mean * factor, decimals)} {unit}" if value else "–"


def plus_minus(value: Spread | None) -> str:
    """Return ``0.750 ± 0.012``, ``0.750`` for a single sampling, or a dash."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" + ("" if value.deviation is None else f" ± {value.deviation:.3f}")


def section_notes(section: Section) -> list[str]:
    """Return the notes on the table of a section."""
    notes = [f"{note}." for note in section.protocol_notes]
    if any(row.difference for row in section.rows):
        notes.append(
            "Differences are paired: both methods use the same labelled images in each sampling. Intervals are over "
            "samplings of one split and are not adjusted for the number of rows. A verdict needs "
            f"{MIN_PAIRS_FOR_VERDICT} samplings."
        )
    unpaired = [describe_row(section, row) for row in section.rows if row.num_unpaired]
    if unpaired:
        notes.append(
            f"Not compared with {section.baseline}, which has other labelled or test images: {'; '.join(unpaired)}."
        )
    if section.differs:
        differences = "; ".join(f"{name}: {text}" for name, text in section.differs.items())
        notes.append(f"Differences from the paper's runs: {differences}.")
    if section.differs is not None:
        notes.append(
            "The paper does not give optimizer, batch size and augmentation; docs/method.md lists the values used here."
        )
    notes += [f"Machine: {machine}." for machine in section.machines]
    return notes


def tables_notes(tables: Tables) -> list[str]:
    """Return the notes on the whole study: failed runs, and records that are not used."""
    failures = [f"Failed ({count}): {reason}" for reason, count in tables.failures.items()]
    return [*failures, *tables.notes]


def describe_row(section: Section, row: Row) -> str:
    """Return the values of a row on the axes of its section, in one line."""
    return " · ".join(_axis_cells(section, row))


def _axis_cells(section: Section, row: Row) -> list[str]:
    return [axis_value(axis, row.coordinates) for axis in section.axes]


def axis_value(axis: str, coordinates: Mapping[str, Any]) -> str:
    """Return ``5 %`` for a fraction, else the value."""
    value = coordinates[axis]
    if axis == "fraction":
        return f"{100 * value:g}\u00a0%"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axis_heads(section: Section) -> list[str]:
    """Return the heads of the first columns."""
    heads = {"fraction": "labels", "value": str(section.coordinates.get("sweep"))}
    return [heads.get(axis, axis).replace("_", " ") for axis in section.axes]


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
    """Make the table of architectures, as in the paper's Table 1."""
    heads = ("pair", "role", "model", "depth", "width", "heads", f"parameters ({num_classes} classes)", "paper")
    rows = []
    for one in architectures:
        paper = one.paper or "–"
        if one.agrees is False:
            paper += " (different shape)"
        cells = (one.pair, one.role, one.name, one.depth, one.width, one.heads, f"{one.num_parameters:,}", paper)
        rows.append(cells)
    return Table(heads=heads, num_text_columns=3, rows=tuple(rows), marked=(False,) * len(rows))
