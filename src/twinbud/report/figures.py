"""The figures of the report, as SVG text that takes its ink from the page around it.

Matplotlib's object-oriented interface only, no pyplot. Lines and letters are `currentColor` and fills are
translucent, so one figure serves a light page, a dark page and paper. The same input gives the same bytes.
Colours are those of Okabe and Ito (2008), the blue a little lighter for dark pages, told apart by line style as well.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

Histories = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows an epoch (keys epoch, loss, loss_ce, ...) for each named arm; one arm may have an empty name."""

INK = "#010203"
"""Drawn with this, shown as `currentColor`."""
COLOURS = ("#1A80BB", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (3, 1)))
PIXELS_PER_INCH = 96
STYLE: Any = {
    "svg.hashsalt": "twinbud",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0,
    "legend.frameon": False,
}


def loss_curves(histories: Histories) -> str:
    """Training loss an epoch: the parts of one arm's loss, or the cross-entropy of several arms."""
    if len(histories) == 1:
        (rows,) = histories.values()
        parts = {"loss": "whole loss", "loss_ce": "cross-entropy", "loss_skd": "self-distillation"}
        columns = [(label, *_column(rows, key)) for key, label in parts.items()]
        shown = [column for column in columns if any(column[2])]
    else:
        shown = [(name, *_column(rows, "loss_ce")) for name, rows in histories.items()]
    return _curves([_Line(*column, index, False) for index, column in enumerate(shown)], "loss")


def accuracy_curves(histories: Histories) -> str:
    """Accuracy in [0, 1] an epoch, on the training images and, where measured, dotted on the test images."""
    lines = []
    for key, part in (("accuracy", "training"), ("test_accuracy", "test")):
        for index, (name, rows) in enumerate(histories.items()):
            label = f"{name}, {part}" if len(histories) > 1 else part
            lines.append(_Line(label, *_column(rows, key), index, key == "test_accuracy"))
    return _curves(lines, "accuracy")


def confusion_matrix_figure(matrix: Sequence[Sequence[int]], classes: Sequence[str], *, name: str = "confusion") -> str:
    """Counts and the share of each row (truth); blue where right, orange where wrong.

    Args:
        matrix: K x K counts, rows the truth, columns the prediction.
        classes: K names, shortened in the figure beyond 24 letters.
        name: Prefix of its ids; figures of one page need different ones.
    """
    with matplotlib.rc_context(STYLE):
        num_classes, cell = len(classes), 0.86 if len(classes) <= 6 else 0.62 if len(classes) <= 10 else 0.48
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
        longest = max(map(len, names))
        slanted = longest * 0.076 > cell * 0.95
        left, side = 0.5 + 0.078 * longest, cell * num_classes
        top = 0.5 + (0.045 * longest if slanted else 0)
        right = 0.055 * longest if slanted else 0.05
        width, height = left + side + right, top + side + 0.1
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, 0.1 / height, side / width, side / height))
        axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), ylabel="truth")
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                _cell(axes, row, column, count, sum(counts), large=cell > 0.5)
        smallest = 0.65 if num_classes <= 6 else 0.9
        middles = [k + 0.5 for k in range(num_classes)]
        axes.set_xticks(middles, names, rotation=35 if slanted else 0, ha="left" if slanted else "center")
        axes.set_yticks(middles, names)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("prediction")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return as_svg(figure, name, "Confusion matrix: rows are the truth, columns the prediction", smallest)


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against confidence in each bin, above how many images fall there.

    Args:
        bins: Rows with low, high, count, confidence and accuracy, as `evaluate` gives them.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.0))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        figure.subplots_adjust(left=0.16, right=0.95, bottom=0.12, top=0.97, hspace=0.12)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.5, linestyle=(0, (4, 3)))
        upper.text(0.03, 0.97, "above the line: too cautious\nbelow: too sure", va="top", alpha=0.75, fontsize=9)
        filled = [row for row in bins if row["count"]]
        for row in filled:
            gap = sorted((row["confidence"], row["accuracy"]))
            upper.vlines(row["confidence"], *gap, color=COLOURS[1], linewidth=4, alpha=0.35)
        confidence, accuracy = [r["confidence"] for r in filled], [r["accuracy"] for r in filled]
        upper.plot(confidence, accuracy, "o", color=COLOURS[0], markersize=5.5)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        lower.bar(
            [row["low"] for row in bins],
            [row["count"] for row in bins],
            width=0.92 / len(bins),
            align="edge",
            color=COLOURS[0],
            alpha=0.55,
        )
        lower.set(xlabel="confidence", ylabel="images")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for axes in (upper, lower):
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.align_ylabels()
        return as_svg(figure, "reliability", "Accuracy against confidence, and a histogram of confidence")


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have the key."""
    known = [row for row in rows if row.get(key) is not None]
    return [row["epoch"] for row in known], [row[key] for row in known]


class _Line(NamedTuple):
    label: str
    epochs: list[float]
    values: list[float]
    colour: int
    dotted: bool


def _curves(lines: Sequence[_Line], what: Literal["loss", "accuracy"]) -> str:
    shown = [line for line in lines if line.values]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.0))
        axes = figure.add_axes((0.11, 0.15, 0.86, 0.68))
        for line in shown:
            axes.plot(
                line.epochs,
                line.values,
                label=line.label,
                color=COLOURS[line.colour % len(COLOURS)],
                linestyle=":" if line.dotted else STYLES[line.colour % len(STYLES)],
                linewidth=1.8,
                marker="o" if line.dotted or len(line.values) < 3 else None,
                markersize=4,
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_ylim(bottom=0, top=1.02 if what == "accuracy" else None)
        if what == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if shown:
            columns = 3 if sum(len(line.label) for line in shown) < 34 else 2
            axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=columns, columnspacing=1.2)
        return as_svg(figure, what, f"Training {what} for each epoch")


def _cell(axes: Axes, row: int, column: int, count: int, total: int, *, large: bool) -> None:
    share = count / total if total else 0.0
    colour = COLOURS[0] if row == column else COLOURS[1]
    opacity = 0.06 + 0.5 * share**0.7 if count else 0.03
    axes.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor=colour, alpha=opacity, linewidth=0))
    weight, faint = ("bold", 1.0) if row == column else ("normal", 1.0 if count else 0.45)
    size = 11 if large else 9
    axes.text(column + 0.5, row + 0.43, f"{count:,}", ha="center", va="center", weight=weight, alpha=faint, size=size)
    if count:
        axes.text(column + 0.5, row + 0.75, f"{share:.0%}", ha="center", va="center", alpha=0.8, size=size - 2.5)


def as_svg(figure: Figure, name: str, description: str, smallest: float = 0.0) -> str:
    """The figure as an `<svg>` element: no size in points, ids of its own, no date, no foreign metadata.

    Args:
        figure: What to draw.
        name: Prefix of every id, so that several figures live in one page.
        description: For readers who hear the page.
        smallest: Share of the natural width below which the page scrolls instead of shrinking the letters.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that Matplotlib's font lacks: the reader's browser has it
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    width = figure.get_figwidth() * PIXELS_PER_INCH
    size = f"max-width:{width:.0f}px;min-width:{width * smallest:.0f}px"
    look = f"width:100%;{size};height:auto;stroke-linejoin:round"
    return f'{head} role="img" aria-label="{escape(description)}" style="{look}">{body}'


def standing_alone(svg: str) -> str:
    """The same figure as a file: ink and font no longer come from a page, but suit a light and a dark one."""
    ink = "svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    font = "svg text{font-family:'DejaVu Sans',Verdana,system-ui,sans-serif!important}"
    head, body = svg.split(">", 1)
    box = head[head.index('viewBox="') :].split('"')[1].split()
    width, height = (float(points) / 72 * PIXELS_PER_INCH for points in box[2:])
    head = f'{head} width="{width:.0f}" height="{height:.0f}"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{ink}{font}</style>{body}\n'
