"""Figures of a calibrated run: ROC curves with operating points, and decision curves; in the style of ``figures``."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from twinbud.report.figures import COLORS, INK, STYLE, STYLES, as_svg
from twinbud.trust.report import NET_BENEFIT_THRESHOLDS, TrustReport

MAX_CLASSES = 12
"""Classes that one figure shows, each in its own color and style; a page lists all in its tables."""
_MARKERS = {"specificity 0.95": "s", "youden": "o", "sensitivity 0.95": "^"}


def roc_figure(report: TrustReport) -> str:
    """Draw sensitivity against 1 - specificity of each class, with its operating points as measured."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.8))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.5, linestyle=(0, (4, 3)))
        for index, (name, curve) in enumerate(list(report.roc_curves.items())[:MAX_CLASSES]):
            color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
            axes.plot(curve.false_positive_rate, curve.sensitivity, color=color, linestyle=style, label=_short(name))
            for criterion, point in report.points.get(name, {}).items():
                if point.sensitivity is not None and point.specificity is not None:
                    axes.plot(1 - point.specificity, point.sensitivity, _MARKERS[criterion], color=color, markersize=5)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel="1 − specificity", ylabel="sensitivity")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8)
        return as_svg(figure, "roc", "ROC curve of each class against the rest, with operating points", tight=True)


def decision_figure(report: TrustReport) -> str:
    """Draw the net benefit of each class over the threshold probability; dotted lines treat every image."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.8))
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=1, alpha=0.5)
        highest = 0.0
        for index, (name, curve) in enumerate(list(report.decision_curves.items())[:MAX_CLASSES]):
            color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
            axes.plot(NET_BENEFIT_THRESHOLDS, curve.model, color=color, linestyle=style, label=_short(name))
            axes.plot(NET_BENEFIT_THRESHOLDS, curve.treat_all, color=color, linestyle=":", linewidth=1, alpha=0.7)
            highest = max(highest, *curve.model, curve.treat_all[0])
        axes.set(xlim=(0, 1), ylim=(-0.15 * (highest or 1), 1.1 * (highest or 1)))
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8)
        return as_svg(figure, "decision", "Net benefit of each class over the threshold probability", tight=True)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
