"""One run of a study: trained or gone on with, recorded, and its folder made small."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from twinbud.files import read_json
from twinbud.materials import Materials
from twinbud.pipeline import train
from twinbud.progress import Progress
from twinbud.run_folder import MARKER, METRICS
from twinbud.settings import run_config
from twinbud.study.grid import PlannedRun
from twinbud.study.records import RunsFolder

_MEASURES = (
    "accuracy", "balanced_accuracy", "auroc_macro", "f1_macro", "mcc", "ece", "brier", "confusion_matrix", "per_class",
    "num_test", "confidence_intervals",
)  # fmt: skip
_COST = (
    "num_train", "num_steps", "epochs", "train_seconds", "images_per_second", "peak_memory_mib",
    "memory_before_training_mib",
)  # fmt: skip
_MODEL = "model"


def carry_out(
    run: PlannedRun,
    folder: RunsFolder,
    materials: Materials,
    progress: Progress,
    *,
    num_workers: int = 1,
    keep_model: bool = False,
) -> str:
    """Do a claimed run to its end, from its last checkpoint if there is one, and record it.

    A run that was finished, but not recorded, when its process died is recorded as it is.

    Args:
        run: Which.
        folder: Where to; the caller holds the claim.
        materials: What earlier runs of this process have opened.
        progress: Where to report.
        num_workers: How many runs share the machine, for the record.
        keep_model: Whether the run folder keeps the trained model.

    Returns:
        One line on how it went.

    Raises:
        TwinbudError: See ``twinbud.pipeline.train``.
        Stopped: The system asked for a stop.
    """
    place = folder.work(run.identity)
    if not _has_finished(folder, run):
        config = run_config(run.settings, output=place, resume=True)
        train(config, progress, materials=materials)
    if not keep_model:
        shutil.rmtree(place / _MODEL, ignore_errors=True)
    metrics, environment = read_json(place / METRICS), read_json(place / "environment.json")
    record = make_record(run, metrics, environment | {"num_workers": num_workers})
    folder.write(run.identity, record)
    return f"accuracy {metrics['accuracy']:.3f}"


def make_record(run: PlannedRun, metrics: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a finished run, as plain JSON.

    Returns:
        ``facts`` that its identity is the checksum of, ``settings`` as they were given, ``classes``, ``metrics``,
        ``cost`` and ``environment`` (which hold all that may differ between two doings of one run).
    """
    return {
        "facts": dict(run.facts),
        "settings": {name: value for name, value in run.settings.items() if name != "data"},
        "classes": list(metrics["per_class"]),
        "metrics": {name: metrics[name] for name in _MEASURES},
        "cost": {name: metrics[name] for name in _COST},
        "environment": {name: value for name, value in environment.items() if name != "commit"},
    }


def _has_finished(folder: RunsFolder, run: PlannedRun) -> bool:
    place = folder.work(run.identity)
    return (place / METRICS).exists() and not (place / MARKER).exists()
