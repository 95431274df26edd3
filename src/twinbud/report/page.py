"""The page of a run: one HTML file that needs no network and suits small screens, dark mode and print."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from twinbud.core.files import write_text
from twinbud.core.progress import duration
from twinbud.evaluation.metrics import IMBALANCE, EvaluationMetrics
from twinbud.report import figures
from twinbud.report.model import RunSummary
from twinbud.report.trust_figures import MAX_CLASSES, decision_figure, roc_figure
from twinbud.tasks.opening import open_task
from twinbud.trust.measure import Calibration
from twinbud.trust.operating_points import CRITERIA
from twinbud.trust.report import broken_promises
from twinbud.trust.shifts import MAX_SHIFTED_IMAGES


def write_report(path: Path, summary: RunSummary) -> None:
    """Write the page to ``path``, replacing it as a whole. A content security policy forbids all network access.

    Raises:
        TwinbudError: The disk is full or the folder cannot be written.
    """
    filters = {"picture": picture_url, "figure": _figure, "value": _setting}
    write_text(path, render("page.html.jinja", summary, filters, autoescape=True))


def render(
    template: str,
    summary: RunSummary,
    filters: Mapping[str, Callable[..., Any]],
    *,
    autoescape: bool,
    **values: Any,
) -> str:
    """Fill a template of this folder with the summary, sentences derived from it, and further values."""
    return render_template(
        template,
        {"broken": broken_promises, **filters},
        autoescape=autoescape,
        summary=summary,
        metrics=summary.metrics,
        texts=summary.metrics.texts,
        usage=open_task(summary.metrics.task or "single", summary.classes).usage,
        is_imbalanced=summary.metrics.imbalance >= IMBALANCE,
        figure_of_merit=shown_value(summary.metrics.lead, getattr(summary.metrics, summary.metrics.lead)),
        headline=headline(summary.metrics),
        certainty=certainty(summary.metrics),
        perspective=perspective(summary.metrics),
        calibration_names={part.name: part.metadata["label"] for part in fields(Calibration) if part.metadata},
        criterion_names=CRITERIA,
        max_classes=MAX_CLASSES,
        max_shifted=MAX_SHIFTED_IMAGES,
        **values,
    )


def render_template(
    template: str, filters: Mapping[str, Callable[..., Any]], *, autoescape: bool, **values: Any
) -> str:
    """Fill a template of this folder with values; ``percent``, ``number`` and ``duration`` are filters of all."""
    environment = _environment(autoescape)
    environment.filters.update(percent=percent, number=number, duration=duration, shown_as=shown_as, **filters)
    return environment.get_template(template).render(**values)


@cache
def _environment(autoescape: bool) -> Environment:
    """Return the environment that keeps the compiled templates, for runs that follow in one process."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def headline(metrics: EvaluationMetrics) -> str:
    """Complete the sentence that starts with the leading metric."""
    images = f"{metrics.num_test:,} test images"
    return {
        "accuracy": f"of {images} classified correctly",
        "balanced_accuracy": f"of the images of a class classified correctly, on average over the classes, on {images}",
        "auroc_macro": f"macro AUROC of {len(metrics.classes)} labels on {images}: 0.5 is chance, 1 is perfect",
        "kappa": f"quadratic-weighted kappa of the grades of {images}: 0 is chance, 1 is perfect",
    }[metrics.lead]


def certainty(metrics: EvaluationMetrics) -> str:
    """State the 95 % interval of the leading metric, or why there is none."""
    interval, count = metrics.confidence_intervals[metrics.lead], metrics.num_test
    if metrics.accuracy in (0, 1) and metrics.task != "multi-label":
        kind = "incorrect" if metrics.accuracy == 1 else "correct"
        bound = percent(min(1.0, 3 / count))
        return (
            f"No prediction is {kind}, so that a bootstrap interval would have no width. By the rule of three, up to "
            f"about {bound} of further images like these may be classified {kind}ly."
        )
    if interval is None:
        return "There is no 95 % interval: it needs at least two patients (or images) and a bootstrap."
    unit, ends = metrics.bootstrap_unit, " to ".join(shown_value(metrics.lead, end) for end in interval)
    return (
        f"95\u00a0% interval: {ends}, from {metrics.num_bootstrap:,} "
        f"bootstrap replicates of the {metrics.num_bootstrap_units:,} {unit}s. It covers the choice of test {unit}s, "
        "not the variation between training runs."
    )


def perspective(metrics: EvaluationMetrics) -> str:
    """Compare with a constant prediction, and name the class with the lowest sensitivity (of labels, AUROC)."""
    if metrics.task == "multi-label":
        return _weakest_label(metrics)
    supports = {name: row.support for name, row in metrics.per_class.items()}
    common = max(supports, key=lambda name: supports[name])
    share = supports[common] / metrics.num_test
    found = {name: row.sensitivity for name, row in metrics.per_class.items() if row.sensitivity is not None}
    least = min(found, key=lambda name: found[name])
    start = "Always" if metrics.lead == "accuracy" else f"The accuracy is {percent(metrics.accuracy)}; always"
    return (
        f"{start} predicting “{common}” would reach {percent(share)}. "
        f"Lowest sensitivity: “{least}”, {percent(found[least])} of its {supports[least]:,} images."
    )


def _weakest_label(metrics: EvaluationMetrics) -> str:
    aurocs = {name: row.auroc for name, row in metrics.per_class.items() if row.auroc is not None}
    if not aurocs:
        return "No label has both images that show it and images that do not: there is no AUROC."
    least = min(aurocs, key=lambda name: aurocs[name])
    row = metrics.per_class[least]
    return f"Lowest AUROC: “{least}”, {number(aurocs[least])}; {row.support:,} of {row.num_known:,} known show it."


def shown_value(name: str, value: float | None) -> str:
    """Format the value of a metric as a share in percent or as a number."""
    return percent(value) if name in _SHARES else number(value)


def shown_as(value: float | None, name: str) -> str:
    """See ``shown_value``; a filter."""
    return shown_value(name, value)


_SHARES = frozenset({"accuracy", "balanced_accuracy", "within_one"})


def percent(share: float | None, decimals: int = 1) -> str:
    """Format a share as ``87.3 %`` with a no-break space, or as a dash if it is undefined."""
    return "–" if share is None else f"{100 * share:.{decimals}f}\u00a0%"


def number(value: float | None, decimals: int = 3) -> str:
    """Format a number with the given decimals, or as a dash if it is undefined."""
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "none" if value is None else str(value)


def picture_url(png: bytes) -> str:
    """Return the picture as a ``data:`` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _figure(summary: RunSummary, name: str) -> Markup:
    """Return one of the page's figures; Matplotlib escapes every text in it."""
    metrics = summary.metrics
    draw = {
        "loss": lambda: figures.loss_curves(summary.histories),
        "accuracy": lambda: figures.accuracy_curves(summary.histories),
        "confusion": lambda: figures.confusion_matrix_figure(metrics.confusion_matrix, metrics.classes),
        "reliability": lambda: figures.reliability_diagram(metrics.reliability),
    }
    if summary.trust is not None:
        bins = summary.trust.after.reliability
        draw |= {
            "calibrated": partial(figures.reliability_diagram, bins, name="calibrated"),
            "roc": partial(roc_figure, summary.trust),
            "decision": partial(decision_figure, summary.trust),
        }
    return Markup(draw[name]())
