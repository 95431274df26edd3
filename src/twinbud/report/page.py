"""One run as one page: a single HTML file that opens offline, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from twinbud.core.files import write_text
from twinbud.core.progress import duration
from twinbud.report import figures

LARGEST_PICTURE = 320
"""Pixels; pictures with a longer side are reduced to it."""
METRIC_WORDS = {
    "accuracy": ("Accuracy", "images classified correctly"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
    "f1_macro": ("Macro F1", "precision and sensitivity together, mean of the classes"),
    "auroc_macro": ("Macro AUROC", "one class against the rest; 0.5 is chance, 1 is perfect"),
    "mcc": ("Matthews correlation", "0 is chance, 1 is perfect"),
    "ece": ("Calibration error", "ECE, 15 bins: confidence against accuracy; 0 is best"),
    "brier": ("Brier score", "squared error of the probabilities; 0 is best, 2 the worst"),
}


class Mistake(NamedTuple):
    """A wrongly classified image."""

    image: np.ndarray
    """(H, W) or (H, W, 3) uint8."""
    path: str
    truth: str
    prediction: str
    confidence: float
    """Probability of the prediction, in [0, 1]."""


class Example(NamedTuple):
    """An image to show what the model was trained on: (H, W) or (H, W, 3) uint8, and its class."""

    image: np.ndarray
    label: str


class Width(NamedTuple):
    """A width of the selection: its size in teacher and student, and what S and S′ share of it in [0, 1]."""

    name: str
    teacher: int
    student: int
    overlap: float | None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the comparison; None where not measured."""

    name: str
    accuracy: float
    accuracy_interval: Sequence[float] | None = None
    balanced_accuracy: float | None = None
    auroc_macro: float | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    marked: bool = False
    """The arm whose results the rest of the page shows."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """All that the page and the model card show. Every text is escaped where it is shown."""

    title: str
    facts: Mapping[str, str]
    """What was trained, label to text: teacher, student, method, labelled images, device, time…"""
    metrics: Mapping[str, Any]
    """As `evaluate` gives them, on the test part."""
    history: Sequence[Mapping[str, Any]] | figures.Histories = ()
    """Rows an epoch (epoch, learning_rate, loss, loss_ce, loss_skd, accuracy[, test_accuracy]), or arm to rows."""
    comparison: Sequence[Arm] = ()
    mistakes: Sequence[Mistake] = ()
    examples: Sequence[Example] = ()
    selection: Sequence[Width] = ()
    notes: Sequence[str] = ()
    """Plain sentences on how the numbers came about and where they end."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the confusion matrix."""
        return list(self.metrics["per_class"])

    @property
    def histories(self) -> figures.Histories:
        """The history as arm to rows, without empty arms; a single run's arm has an empty name."""
        arms = self.history if isinstance(self.history, Mapping) else {"": self.history}
        return {name: rows for name, rows in arms.items() if rows}


def write_report(path: Path, summary: RunSummary) -> None:
    """Write the page to `path`, replacing it whole. Nothing in it is fetched; the browser is told to refuse.

    Raises:
        TwinbudError: If the disk is full or the folder may not be written.
    """
    filters = {"picture": _picture, "figure": _figure, "value": _setting}
    write_text(path, render("page.html.jinja", summary, filters, autoescape=True))


def render(
    template: str,
    summary: RunSummary,
    filters: Mapping[str, Callable[..., Any]],
    *,
    autoescape: bool,
    **values: Any,
) -> str:
    """Fill a template of this folder with the summary, what is derived from it, and further values."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, number=number, duration=duration, **filters)
    return environment.get_template(template).render(
        summary=summary,
        metrics=summary.metrics,
        words=METRIC_WORDS,
        headline=headline(summary.metrics),
        certainty=certainty(summary.metrics),
        perspective=perspective(summary.metrics),
        **values,
    )


def headline(metrics: Mapping[str, Any]) -> str:
    """What share of how many images was right."""
    count = metrics["num_test"]
    if metrics["accuracy"] == 1:
        return f"of {count:,} test images classified correctly: every one"
    return f"of {count:,} test images classified correctly"


def certainty(metrics: Mapping[str, Any]) -> str:
    """The 95 % interval of the accuracy in words, or why there is none."""
    interval, count = metrics["confidence_intervals"]["accuracy"], metrics["num_test"]
    if metrics["accuracy"] in (0, 1):
        kind = "mistakes" if metrics["accuracy"] == 1 else "hits"
        bound = percent(min(1.0, 3 / count))
        return (
            f"Without any {kind} a bootstrap has nothing to vary. By the rule of three, up to about {bound} "
            f"of further images like these may be {kind}."
        )
    if interval is None:
        return "No 95 % interval could be computed: it needs at least two patients (or images) and a bootstrap."
    unit = metrics["bootstrap_unit"]
    units = f"{metrics.get('num_bootstrap_units', count):,} {unit}s"
    return (
        f"95\u00a0% interval: {percent(interval[0])} to {percent(interval[1])}, from {metrics['num_bootstrap']:,} "
        f"bootstrap resamples of the {units}. It covers the choice of test {unit}s, not another training run."
    )


def perspective(metrics: Mapping[str, Any]) -> str:
    """What a blind guess would score, and the class that is found least often."""
    supports = {name: row["support"] for name, row in metrics["per_class"].items()}
    common = max(supports, key=lambda name: supports[name])
    share = supports[common] / metrics["num_test"]
    found = {n: r["sensitivity"] for n, r in metrics["per_class"].items() if r["sensitivity"] is not None}
    least = min(found, key=lambda name: found[name])
    return (
        f"Always answering “{common}” would score {percent(share)}. "
        f"Least often found: “{least}”, {percent(found[least])} of its {supports[least]:,} images."
    )


def percent(share: float | None, decimals: int = 1) -> str:
    """``87.3 %`` with a no-break space, or a dash for an undefined share."""
    return "–" if share is None else f"{100 * share:.{decimals}f}\u00a0%"


def number(value: float | None, decimals: int = 3) -> str:
    """A number with its decimals, or a dash where undefined."""
    return "–" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "none" if value is None else str(value)


def _picture(image: np.ndarray) -> str:
    """The image as a PNG `data:` address, reduced to at most 320 pixels a side."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _figure(summary: RunSummary, name: str) -> Markup:
    """One of the page's figures; Matplotlib has escaped every text in it."""
    draw = {
        "loss": lambda: figures.loss_curves(summary.histories),
        "accuracy": lambda: figures.accuracy_curves(summary.histories),
        "confusion": lambda: figures.confusion_matrix_figure(summary.metrics["confusion_matrix"], summary.classes),
        "reliability": lambda: figures.reliability_diagram(summary.metrics["reliability"]),
    }
    return Markup(draw[name]())
