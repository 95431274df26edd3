"""The figures of the report, as SVG text in the text color of the page around it.

Only Matplotlib's object-oriented interface is used, not pyplot. Lines and letters are ``currentColor`` and fills are
translucent, so that one figure suits a light page, a dark page and print. The same input gives the same bytes. Colors
are those of Okabe and Ito (2008), the blue slightly lighter for dark pages; line styles differ as well.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from twinbud.evaluation.calibration import ReliabilityBin
from twinbud.report.model import Histories
from twinbud.training.checkpoint import EpochRecord

INK = "#010203"
"""Color to draw with; ``as_svg`` replaces it by ``currentColor``."""
COLORS = ("#1A80BB", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (3, 1)))
PIXELS_PER_INCH = 96
_MAX_CLASSES_WITH_ZEROS = 20
"""Classes up to which a confusion matrix shows its zeros, whose number grows with the square of the classes."""
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
    """Draw the training loss per epoch: the terms of the loss of one run, or the cross-entropy of several runs."""
    if len(histories) == 1:
        (records,) = histories.values()
        terms = (
            ("total", [record.loss for record in records]),
            ("cross-entropy", [record.loss_ce for record in records]),
            ("self-distillation", [record.loss_skd for record in records]),
        )
        shown = [(label, *_defined(records, values)) for label, values in terms if any(values)]
    else:
        shown = [
            (name, *_defined(records, [record.loss_ce for record in records])) for name, records in histories.items()
        ]
    return _curves([_Line(*column, index, False) for index, column in enumerate(shown)], "loss")


def accuracy_curves(histories: Histories) -> str:
    """Draw the accuracy per epoch on the training images and, dotted where measured, on the test images."""
    lines = []
    for part in ("training", "test"):
        for index, (name, records) in enumerate(histories.items()):
            label = f"{name}, {part}" if len(histories) > 1 else part
            values = [record.test_accuracy if part == "test" else record.accuracy for record in records]
            lines.append(_Line(label, *_defined(records, values), index, part == "test"))
    return _curves(lines, "accuracy")


def confusion_matrix_figure(matrix: Sequence[Sequence[int]], classes: Sequence[str], *, name: str = "confusion") -> str:
    """Draw counts and shares of each row; correct predictions are blue, incorrect ones orange.

    Args:
        matrix: (K, K) counts: rows are labels, columns are predictions.
        classes: K names; the figure shortens names of more than 24 letters.
        name: Prefix of the SVG ids; it must be unique within a page.
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
        axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), ylabel="label")
        for row, counts in enumerate(matrix):
            total = sum(counts)
            for column, count in enumerate(counts):
                if count or row == column or num_classes <= _MAX_CLASSES_WITH_ZEROS:
                    _cell(axes, row, column, count, total, large=cell > 0.5)
        smallest = 0.65 if num_classes <= 6 else 0.9
        middles = [k + 0.5 for k in range(num_classes)]
        axes.set_xticks(middles, names, rotation=35 if slanted else 0, ha="left" if slanted else "center")
        axes.set_yticks(middles, names)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("prediction")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return as_svg(figure, name, "Confusion matrix: rows are labels, columns are predictions", smallest)


def reliability_diagram(bins: Sequence[ReliabilityBin], *, name: str = "reliability") -> str:
    """Draw accuracy against confidence of each bin, above a histogram of the confidence.

    Args:
        bins: The bins.
        name: Prefix of the SVG ids; it must be unique within a page.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.0))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        figure.subplots_adjust(left=0.16, right=0.95, bottom=0.12, top=0.97, hspace=0.12)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.5, linestyle=(0, (4, 3)))
        upper.text(0.03, 0.97, "above the line: underconfident\nbelow: overconfident", va="top", alpha=0.75, fontsize=9)
        points = [(b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None]
        for point in points:
            upper.vlines(point[0], min(point), max(point), color=COLORS[1], linewidth=4, alpha=0.35)
        confidence, accuracy = [point[0] for point in points], [point[1] for point in points]
        upper.plot(confidence, accuracy, "o", color=COLORS[0], markersize=5.5)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        lower.bar(
            [reliability_bin.low for reliability_bin in bins],
            [reliability_bin.count for reliability_bin in bins],
            width=0.92 / len(bins),
            align="edge",
            color=COLORS[0],
            alpha=0.55,
        )
        lower.set(xlabel="confidence", ylabel="images")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for axes in (upper, lower):
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.align_ylabels()
        return as_svg(figure, name, "Accuracy against confidence, and a histogram of confidence")


def _defined(records: Sequence[EpochRecord], values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Return the epochs and values of the records whose value is defined."""
    known = [(record.epoch, value) for record, value in zip(records, values, strict=True) if value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]


class _Line(NamedTuple):
    label: str
    epochs: list[int]
    values: list[float]
    color: int
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
                color=COLORS[line.color % len(COLORS)],
                linestyle=":" if line.dotted else STYLES[line.color % len(STYLES)],
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
    color = COLORS[0] if row == column else COLORS[1]
    opacity = 0.06 + 0.5 * share**0.7 if count else 0.03
    axes.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor=color, alpha=opacity, linewidth=0))
    weight, faint = ("bold", 1.0) if row == column else ("normal", 1.0 if count else 0.45)
    size = 11 if large else 9
    axes.text(column + 0.5, row + 0.43, f"{count:,}", ha="center", va="center", weight=weight, alpha=faint, size=size)
    if count:
        axes.text(column + 0.5, row + 0.75, f"{share:.0%}", ha="center", va="center", alpha=0.8, size=size - 2.5)


def as_svg(figure: Figure, name: str, description: str, smallest: float = 0.0, *, tight: bool = False) -> str:
    """Convert a figure to an ``<svg>`` element without size in points, date or metadata.

    Args:
        figure: Figure to convert.
        name: Prefix of every id, unique within a page.
        description: Text for screen readers.
        smallest: Share of the natural width below which the page scrolls instead of shrinking the figure.
        tight: Make room for all text outside of the axes.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs missing from Matplotlib's font: the browser has them
        if tight:
            figure.tight_layout()
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
    style = f"width:100%;{size};height:auto;stroke-linejoin:round"
    return f'{head} role="img" aria-label="{escape(description)}" style="{style}">{body}'


def standing_alone(svg: str) -> str:
    """Convert the element to a file of its own, with text colors and fonts for light and dark backgrounds."""
    ink = "svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    font = "svg text{font-family:'DejaVu Sans',Verdana,system-ui,sans-serif!important}"
    head, body = svg.split(">", 1)
    box = head[head.index('viewBox="') :].split('"')[1].split()
    width, height = (float(points) / 72 * PIXELS_PER_INCH for points in box[2:])
    head = f'{head} width="{width:.0f}" height="{height:.0f}"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{ink}{font}</style>{body}\n'
