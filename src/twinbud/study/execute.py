"""Execute one run of a study: train or resume it, write its record, and delete the model."""

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
from twinbud.core.typed_json import to_json
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.runs.context import open_images
from twinbud.runs.pipeline import train
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.result import RunMetrics
from twinbud.runs.run_dir import MARKER, METRICS
from twinbud.study.grid import PlannedRun
from twinbud.study.run_id import has_own_network, images_fingerprint
from twinbud.study.store import RunStore
from twinbud.training.checkpoint import OtherRunError

_MODEL = "model"


class ChangedInputError(TwinbudError):
    """Images or a network are not those that the run was planned with.

    Args:
        name: "images", "teacher" or "student".
        where: Their path.
    """

    def __init__(self, name: str, where: str) -> None:
        problem = f"the {name} changed after the study was planned"
        super().__init__(problem, where=where, fix="Restore them, or give the command again")
        self.name = name


def execute_run(
    run: PlannedRun,
    store: RunStore,
    resource_cache: ResourceCache,
    progress: Progress,
    *,
    num_workers: int = 1,
    keep_model: bool = False,
    pixel_cache: bool = True,
    local_settings: Mapping[str, Any] | None = None,
) -> str:
    """Execute a claimed run, from its last checkpoint if there is one, and write its record.

    If the process died after the run and before its record, only the record is written.

    Args:
        run: The run.
        store: The runs folder; the caller holds the claim.
        resource_cache: Images, teachers and selections of earlier runs of this process.
        progress: Reports the progress of the run.
        num_workers: How many runs share the machine, for the record.
        keep_model: Whether the run folder keeps the trained model.
        pixel_cache: Whether decoded images are cached on the disk for other processes.
        local_settings: See ``Assignment``.

    Returns:
        The accuracy, as text.

    Raises:
        TwinbudError: See ``twinbud.runs.pipeline.train``.
        Stopped: The system requested a stop.
    """
    folder = store.run_dir(run.run_id)
    record = _read_finished(run, folder, num_workers)
    if record is None:
        settings = {**run.settings, **(local_settings or {})}
        config = run_config(settings, output=folder, resume=True, pixel_cache=pixel_cache, teacher_cache=store.teachers)
        require_planned_inputs(run, config, resource_cache, progress)
        try:
            train(config, progress, resource_cache=resource_cache)
        except OtherRunError:  # the checkpoint is of another kind of machine, which computes steps differently
            shutil.rmtree(folder)
            train(config, progress, resource_cache=resource_cache)
        record = _read_finished(run, folder, num_workers)
        assert record is not None, "train() writes the results"
    if not keep_model:
        shutil.rmtree(folder / _MODEL, ignore_errors=True)
    store.write(run.run_id, record)
    return describe_result(record)


def describe_result(record: Mapping[str, Any]) -> str:
    """Return the result of a record in a few words."""
    return f"accuracy {record['metrics']['accuracy']:.3f}"


def _read_finished(run: PlannedRun, folder: Path, num_workers: int) -> dict[str, Any] | None:
    """Make the record of a finished run. If its results cannot be read, delete the folder and return None."""
    if (folder / MARKER).exists() or not (folder / METRICS).exists():
        return None
    try:
        environment = read_json(folder / "environment.json") | {"num_workers": num_workers}
        return make_record(run, RunMetrics.from_json(read_json(folder / METRICS)), environment)
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder)
        return None


def require_planned_inputs(
    run: PlannedRun, config: RunConfig, resource_cache: ResourceCache, progress: Progress
) -> None:
    """Refuse images, a teacher or a student that differ from those the run was planned with.

    Args:
        run: The run.
        config: Its configuration on this machine.
        resource_cache: Receives the decoded images.
        progress: Shows the decoding of images.

    Raises:
        ChangedInputError: They have changed since the study was planned, or differ on this machine.
        TwinbudError: They cannot be read.
    """
    image_index, image_store = open_images(config, progress, resource_cache)
    if images_fingerprint(image_index, image_store.digests) != run.facts["images"]:
        raise ChangedInputError("images", config.data.data)
    teacher, student = config.model.teacher or "", config.model.student
    if teacher_fingerprint(teacher) != run.facts["teacher"]:
        raise ChangedInputError("teacher", teacher)
    if has_own_network(config) and teacher_fingerprint(student) != run.facts["settings"]["student"]:
        raise ChangedInputError("student", student)


def make_record(run: PlannedRun, metrics: RunMetrics, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a finished run, as a JSON object.

    Returns:
        ``facts``, which the run id is the checksum of; ``settings`` without the path of the images; ``classes``;
        ``metrics``; and ``cost`` and ``environment``, which can differ between two executions of one run.
    """
    return {
        "facts": dict(run.facts),
        "settings": {name: value for name, value in run.settings.items() if name != "data"},
        "classes": list(metrics.classes),
        "metrics": metrics.evaluation.to_json(),
        "cost": to_json(metrics.cost),
        "environment": dict(environment),
    }
