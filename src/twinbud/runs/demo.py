"""The main job in a few minutes: the same small network, grown from a teacher and trained from scratch.

Both arms see the embedded phantom images, in the same order and views, for the same number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinbud.config.loading import run_config
from twinbud.core.files import require_free
from twinbud.core.progress import Progress, SilentProgress
from twinbud.models.dinov2 import load_dinov2_small
from twinbud.report.model import Arm
from twinbud.report.page import write_report
from twinbud.runs.pipeline import train
from twinbud.runs.result import RunResult
from twinbud.training.amp import choose_device, choose_precision

SETTINGS: dict[str, Any] = {
    "data": "phantom",
    "teacher": "dinov2-small",
    "profile": "quick",
    "epochs": 12,
    "min_steps": 0,
}
ARMS = {"dual": "grown (dual)", "timm": "from scratch (timm)"}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The two finished runs and the page that compares them."""

    runs: dict[str, RunResult]
    """By how S started, in the words of ``ARMS``."""
    report: Path


def demo(output: Path, *, force: bool = False, progress: Progress | None = None) -> Demo:
    """Train ``dual`` and ``timm`` on the phantom set with the same budget and compare them.

    Args:
        output: Folder for both runs and ``report.html``.
        force: Replace an earlier demo.
        progress: Where to report.

    Raises:
        TwinbudError: The teacher's wheel is not installed, or the output folder is in use.
    """
    progress = progress or SilentProgress()
    require_free(output, force=force)
    progress.note("opening the teacher: DINOv2 ViT-S/14, pretrained")
    load_dinov2_small()
    # chosen once: measured again for the second arm, the speeds may say otherwise, and the arms differ in two things
    precision = choose_precision("auto", choose_device("auto"))
    progress.note(f"precision: {precision.name} ({precision.reason})")
    settings = SETTINGS | {"precision": precision.name}
    runs = {
        method: train(run_config({**settings, "method": method}, output=output / method, force=force), progress)
        for method in ARMS
    }
    report = output / "report.html"
    grown = runs["dual"].summary
    write_report(
        report,
        replace(
            grown,
            title="twinbud demo: phantom brain MRI",
            comparison=tuple(_arm(name, runs[name], marked=name == "dual") for name in ARMS),
            histories={ARMS[name]: run.history.epochs for name, run in runs.items()},
        ),
    )
    return Demo(runs={ARMS[name]: run for name, run in runs.items()}, report=report)


def _arm(name: str, run: RunResult, *, marked: bool) -> Arm:
    metrics = run.metrics
    return Arm(
        name=ARMS[name],
        accuracy=metrics.accuracy,
        accuracy_interval=metrics.confidence_intervals["accuracy"],
        balanced_accuracy=metrics.balanced_accuracy,
        auroc_macro=metrics.auroc_macro,
        train_seconds=metrics.train_seconds,
        images_per_second=metrics.images_per_second,
        marked=marked,
    )
