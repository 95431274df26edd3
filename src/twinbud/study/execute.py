"""One run of a study: trained or gone on with, recorded, and its folder made small."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinbud.config.loading import run_config
from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_json
from twinbud.core.progress import Progress
from twinbud.runs.context import open_images
from twinbud.runs.pipeline import train
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_dir import MARKER, METRICS
from twinbud.study.grid import PlannedRun
from twinbud.study.run_id import images_fingerprint, teacher_fingerprint
from twinbud.study.store import RunStore
from twinbud.training.checkpoint import OtherRunError

_MEASURES = (
    "accuracy", "balanced_accuracy", "auroc_macro", "f1_macro", "mcc", "ece", "brier", "confusion_matrix", "per_class",
    "num_test", "confidence_intervals",
)  # fmt: skip
_COST = (
    "num_train", "num_steps", "num_passes", "epochs", "train_seconds", "images_per_second", "peak_memory_mib",
    "memory_before_training_mib",
)  # fmt: skip
_RECOVERY = ("recover_num_images", "recover_num_views", "recover_num_views_asked", "recover_seconds")
_MODEL = "model"


def execute_run(
    run: PlannedRun,
    folder: RunStore,
    resource_cache: ResourceCache,
    progress: Progress,
    *,
    num_workers: int = 1,
    keep_model: bool = False,
    pixel_cache: bool = True,
) -> str:
    """Do a claimed run to its end, from its last checkpoint if there is one, and record it.

    A run that was finished, but not recorded, when its process died is recorded as it is.

    Args:
        run: Which.
        folder: Where to; the caller holds the claim.
        resource_cache: What earlier runs of this process have opened.
        progress: Where to report.
        num_workers: How many runs share the machine, for the record.
        keep_model: Whether the run folder keeps the trained model.
        pixel_cache: Whether decoded images are kept for other processes.

    Returns:
        One line on how it went.

    Raises:
        TwinbudError: See ``twinbud.runs.pipeline.train``.
        Stopped: The system asked for a stop.
    """
    place = folder.work(run.run_id)
    record = _finished(run, place, num_workers)
    if record is None:
        config = run_config(run.settings, output=place, resume=True, pixel_cache=pixel_cache)
        _require_same_material(run, config, resource_cache, progress)
        try:
            train(config, progress, resource_cache=resource_cache)
        except OtherRunError:  # begun on another kind of machine, where steps are computed otherwise
            shutil.rmtree(place)
            train(config, progress, resource_cache=resource_cache)
        record = _finished(run, place, num_workers)
        assert record is not None, "a run that has ended has its results"
    if not keep_model:
        shutil.rmtree(place / _MODEL, ignore_errors=True)
    folder.write(run.run_id, record)
    return f"accuracy {record['metrics']['accuracy']:.3f}"


def _finished(run: PlannedRun, place: Path, num_workers: int) -> dict[str, Any] | None:
    """The record of a run that has ended; None, and nothing left of it, where its results cannot be read."""
    if (place / MARKER).exists() or not (place / METRICS).exists():
        return None
    try:
        environment = read_json(place / "environment.json") | {"num_workers": num_workers}
        return make_record(run, read_json(place / METRICS), environment)
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(place)
        return None


def _require_same_material(
    run: PlannedRun, config: RunConfig, resource_cache: ResourceCache, progress: Progress
) -> None:
    """Refuse images and teachers that are not those the run was planned with.

    Raises:
        TwinbudError: They have changed since the study began.
    """
    image_index, image_store = open_images(config, progress, resource_cache)
    for what, found, planned in (
        ("images", images_fingerprint(image_index, image_store.digests), run.facts["images"]),
        ("teacher", teacher_fingerprint(config.model.teacher or ""), run.facts["teacher"]),
    ):
        if found != planned:
            raise TwinbudError(
                f"the {what} that the study began with",
                got="others",
                where=config.data.data if what == "images" else str(config.model.teacher),
                fix="Put them back, or give the command again",
            )


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
        "cost": {name: metrics[name] for name in _COST} | {n: metrics[n] for n in _RECOVERY if n in metrics},
        "environment": dict(environment),
    }
