"""The figures of a study: confusion matrices, sweeps, accuracy by labels, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from twinbud.report.figures import COLORS, INK, STYLE, STYLES, as_svg, confusion_matrix_figure
from twinbud.study.statistics import Spread
from twinbud.study.table_text import axis_value, describe_row
from twinbud.study.tables import Row, Section

_MARKS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its caption.

    Attributes:
        name: Name within the section, part of a file name.
        title: The heading.
        text: The caption, one or two sentences.
        svg: The figure.
        is_wide: Whether it takes the whole width of a page.
    """

    name: str
    title: str
    text: str
    svg: str
    is_wide: bool = False


def draw(section: Section, name: str) -> list[Drawing]:
    """Draw the figures of a section.

    Args:
        section: The section.
        name: Prefix of the ids in the SVG, different for every section of a page.
    """
    measured = [row for row in section.rows if row.measures["accuracy"]]
    drawings = []
    if section.is_sweep:
        drawings += [_sweep(section, measured, name)] if measured else []
        return drawings
    if len({row.coordinates["fraction"] for row in measured}) > 1:
        drawings.append(_by_labels(section, measured, name))
    drawings += [_confusion(section, row, name, place) for place, row in enumerate(_confusion_rows(measured))]
    if measured:
        drawings.append(_costs(section, measured, name))
    return drawings


def _confusion_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose confusion matrix is drawn: the recipe's first method at the largest fraction.

    None where images have several labels, and so no confusion matrix.
    """
    rows = [row for row in rows if row.confusion is not None]
    if not rows:
        return []
    largest = max(row.coordinates["fraction"] for row in rows)
    rows = [row for row in rows if row.coordinates["fraction"] == largest]
    return [row for row in rows if row.coordinates["method"] == rows[0].coordinates["method"]]


def _confusion(section: Section, row: Row, name: str, place: int) -> Drawing:
    assert row.confusion is not None, "only rows with a confusion matrix are drawn"
    samplings = f"the sum of {row.num_done} samplings" if row.num_done > 1 else "one sampling"
    return Drawing(
        name=f"confusion-{place + 1}",
        title=f"Confusion: {describe_row(section, row)}",
        text=f"True classes in rows, predicted classes in columns: {samplings}, as counts and as shares of the row.",
        svg=confusion_matrix_figure(row.confusion, section.classes, name=f"{name}-confusion-{place}"),
    )


def _by_labels(section: Section, rows: Sequence[Row], name: str) -> Drawing:
    fractions = sorted({row.coordinates["fraction"] for row in rows})
    lines: dict[str, dict[int, Spread]] = {}
    for row in rows:
        lines.setdefault(_line_label(section, row, "fraction"), {})[fractions.index(row.coordinates["fraction"])] = (
            _accuracy(row)
        )
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel()
        for index, (label, points) in enumerate(lines.items()):
            shift = (index - (len(lines) - 1) / 2) * 0.05  # so that error bars do not hide one another
            places = [place + shift for place in points]
            axes.errorbar(
                places,
                [point.mean for point in points.values()],
                yerr=[point.deviation or 0.0 for point in points.values()],
                label=label,
                color=_color(index),
                linestyle=STYLES[index % len(STYLES)],
                linewidth=1.6,
                elinewidth=1.0,
                marker=_MARKS[index % len(_MARKS)],
                markersize=4.5,
            )
        axes.set_xticks(range(len(fractions)), [axis_value("fraction", {"fraction": value}) for value in fractions])
        _finish(axes, "share of the labels used")
        return Drawing(
            name="accuracy-by-labels",
            title="Accuracy against labels",
            text="Means over samplings, with their standard deviation.",
            svg=as_svg(figure, f"{name}-labels", "Test accuracy against the share of labels used"),
        )


def _line_label(section: Section, row: Row, x_axis: str) -> str:
    """Return the values that a line stands for; the method where the rows differ in nothing else."""
    others = [axis for axis in section.axes if axis != x_axis]
    return " · ".join(axis_value(axis, row.coordinates) for axis in others) or str(row.coordinates["method"])


def _numbers_first(value: Any) -> tuple[bool, Any]:
    """Sort key that puts numbers before text such as ``auto``."""
    return (False, value) if isinstance(value, int | float) else (True, str(value))


def _sweep(section: Section, rows: Sequence[Row], name: str) -> Drawing:
    """Draw a curve with its range for each fraction, and a dashed line at the default's accuracy, as in Fig. 6."""
    setting = str(section.coordinates["sweep"])
    values = sorted({row.coordinates["value"] for row in rows}, key=_numbers_first)
    lines: dict[str, dict[int, Row]] = {}
    for row in rows:
        lines.setdefault(_line_label(section, row, "value"), {})[values.index(row.coordinates["value"])] = row
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel()
        for index, (label, points) in enumerate(lines.items()):
            points = dict(sorted(points.items()))
            spreads = [_accuracy(row) for row in points.values()]
            lowest, highest = [point.lowest for point in spreads], [point.highest for point in spreads]
            axes.fill_between(list(points), lowest, highest, color=_color(index), alpha=0.18, linewidth=0)
            means = [point.mean for point in spreads]
            axes.plot(
                list(points), means, label=label, color=_color(index), marker=_MARKS[index % len(_MARKS)], markersize=4
            )
            for row in points.values():
                if row.is_baseline:
                    axes.axhline(_accuracy(row).mean, color=_color(index), linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xticks(range(len(values)), [axis_value("value", {"value": value}) for value in values])
        _finish(axes, setting.replace("_", " "))
        return Drawing(
            name=f"accuracy-by-{setting.replace('_', '-')}",
            title=f"Accuracy against {setting.replace('_', ' ')}",
            text="Means over samplings; the band is the range over samplings. Dashed: the default value.",
            svg=as_svg(figure, f"{name}-sweep", f"Test accuracy against {setting}"),
        )


def _costs(section: Section, rows: Sequence[Row], name: str) -> Drawing:
    labels = [describe_row(section, row) for row in rows]
    bars = {"training, seconds": "train_seconds", "peak memory, MiB": "peak_memory_mib"}
    left = 0.3 + 0.075 * max(map(len, labels))
    with matplotlib.rc_context(STYLE):
        width, height = left + 5.2, 0.75 + 0.27 * len(rows)
        figure = Figure(figsize=(width, height))
        panels = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=left / width, right=0.97, bottom=0.5 / height, top=1 - 0.1 / height, wspace=0.22)
        for index, (axes, (label, cost)) in enumerate(zip(panels, bars.items(), strict=True)):
            values = [spread.mean if (spread := row.costs[cost]) else 0.0 for row in rows]
            axes.barh(range(len(rows)), values, height=0.62, color=COLORS[index], alpha=0.6)
            for place, value in enumerate(values):
                axes.text(value, place, f" {value:,.0f}", va="center", fontsize=8.5)
            axes.set(xlabel=label, xlim=(0, 1.25 * max(values) or 1))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
        panels[0].set_yticks(range(len(rows)), labels)
        panels[0].invert_yaxis()
        return Drawing(
            name="time-and-memory",
            title="Time and memory",
            text="Training, means over samplings. On a CPU the memory is that of the whole process.",
            svg=as_svg(figure, f"{name}-costs", "Training time and peak memory of each row", smallest=0.65),
            is_wide=True,
        )


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.3))
    return figure, figure.add_axes((0.17, 0.14, 0.8, 0.66))


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy")
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.margins(x=0.06)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1.0), ncols=3, columnspacing=1.2)


def _accuracy(row: Row) -> Spread:
    accuracy = row.measures["accuracy"]
    assert accuracy is not None, "only measured rows are drawn"
    return accuracy


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
