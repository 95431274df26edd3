"""The main job in a few minutes: one small network, three ways to its weights, the same labelled images.

All methods see the same images of the phantom set for the same number of epochs; in the third it is the teacher that is
trained, and the small network is fitted to it. Half of the patients are test patients, so that the 95 % intervals of
the three accuracies are narrow enough to tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinbud.config.data_config import DataConfig
from twinbud.config.loading import run_config
from twinbud.core.errors import explained_writes
from twinbud.core.files import require_free
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.source import read_index
from twinbud.data.split_file import SplitRow, write_split
from twinbud.models.dinov2 import DINOV2_SMALL
from twinbud.report.model import Arm
from twinbud.report.page import write_report
from twinbud.runs.pipeline import train
from twinbud.runs.result import RunResult
from twinbud.training.amp import choose_device, choose_precision

SETTINGS: dict[str, Any] = {
    "data": "phantom",
    "teacher": "dinov2-small",
    "near_duplicates": "ignore",  # each phantom is generated for one patient
    "fraction": 0.3,  # 120 labelled images
    "image_size": 70,
    "epochs": 16,
}
"""Settings of all methods."""
ARMS: dict[str, dict[str, Any]] = {
    "random start": {"profile": "quick", "method": "timm", "min_steps": 0},
    "paper (dual)": {"profile": "quick", "method": "dual", "min_steps": 0},
    "best": {"profile": "best", "epochs": 0, "tune_epochs": 16, "tune_min_steps": 0},
}
"""Further settings of each method."""
_MARKED = "best"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The finished runs and the page that compares them."""

    runs: dict[str, RunResult]
    """By the name of the method."""
    report: Path


def demo(output: Path, *, force: bool = False, progress: Progress | None = None) -> Demo:
    """Train with each method on the phantom set and compare them.

    Args:
        output: Folder for the runs, ``split.csv`` and ``report.html``.
        force: Replace an earlier demo.
        progress: Shows notes and bars; silent by default.

    Raises:
        TwinbudError: The wheel of the teacher is not installed, or the output folder is not free.
    """
    progress = progress or SilentProgress()
    require_free(output, force=force)
    progress.note("loading the teacher: DINOv2 ViT-S/14, pretrained")
    DINOV2_SMALL.load()
    # chosen once: a second measurement could choose another precision, and the methods would differ in two things
    precision = choose_precision("auto", choose_device("auto"))
    progress.note(f"precision: {precision.name} ({precision.reason})")
    settings = SETTINGS | {"precision": precision.name, "split": _write_demo_split(output)}
    runs: dict[str, RunResult] = {}
    for number, (name, own) in enumerate(ARMS.items(), start=1):
        progress.note(f"{number} of {len(ARMS)}: {name}")
        folder = output / own.get("method", own["profile"])
        runs[name] = train(run_config({**settings, **own}, output=folder, force=force), progress)
    report = output / "report.html"
    summary = replace(
        runs[_MARKED].summary,
        title="twinbud demo: phantom brain MRI",
        comparison=tuple(_arm(name, run) for name, run in runs.items()),
        histories={name: records for name, run in runs.items() for records in run.summary.histories.values()},
    )
    write_report(report, summary)
    return Demo(runs=runs, report=report)


def _write_demo_split(output: Path) -> Path:
    """Write a split of the phantom set with every second patient of each class in the test part."""
    with explained_writes(output):
        output.mkdir(parents=True, exist_ok=True)
    index = read_index(DataConfig(data="phantom"))
    rows, tested = index.rows, set[str | None]()
    for label in index.classes:
        patients = dict.fromkeys(row.patient_id for row in rows if row.label == label)
        tested.update(list(patients)[1::2])
    path = output / "split.csv"
    write_split(
        path,
        (
            SplitRow(
                image_path=row.path,
                label=row.label,
                patient_id=row.patient_id,
                split="test" if row.patient_id in tested else "train",
                labelled=False,
            )
            for row in rows
        ),
    )
    return path


def _arm(name: str, run: RunResult) -> Arm:
    metrics = run.metrics
    return Arm(
        name=name,
        accuracy=metrics.accuracy,
        accuracy_interval=metrics.confidence_intervals["accuracy"],
        balanced_accuracy=metrics.balanced_accuracy,
        auroc_macro=metrics.auroc_macro,
        train_seconds=metrics.train_seconds,
        images_per_second=metrics.images_per_second or None,
        marked=name == _MARKED,
    )
