"""One run in several processes, as ``torchrun`` starts them.

The first process executes the run, and alone reads checkpoints, writes files and reports. The others prepare the same
run, and train with it: the fine-tuning of the teacher and the training of the student divide each batch among all.
Recovery, logistic regressions, the naive run of ``--measure-leak`` and evaluation are the first one's; the others wait.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.launch import Launch, launched
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.typed_json import from_json, to_json
from twinbud.models.teacher import read_teacher_info
from twinbud.runs.context import Job
from twinbud.runs.fitting import END, FIT, fit_job
from twinbud.runs.joining import joined
from twinbud.runs.pipeline import prepare, train
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.result import RunResult
from twinbud.runs.resume import run_identity
from twinbud.runs.tuning import tuning_config
from twinbud.training.amp import PrecisionChoice, cpu_threads
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import Compilation
from twinbud.training.execution import Execution
from twinbud.training.phases import FIRST_PHASE
from twinbud.training.processes import Processes


def train_in_all_processes(config: RunConfig, progress: Progress) -> RunResult | None:
    """Train as ``runs.pipeline.train`` does, with the processes that were started together with this one.

    Args:
        config: The settings, the same in all processes.
        progress: Receives progress and notes of the first process.

    Returns:
        The result in the first process, or in the only one; None in the others.

    Raises:
        TwinbudError, Stopped: See ``runs.pipeline.train``; the batch has fewer images than there are processes.
        ReportedElsewhereError: The first process, which this is not, tells why the run ends.
    """
    launch = launched()
    if launch is None:
        return train(config, progress)
    _require_images_for_all(config, launch)
    with joined(launch, config.training.device) as processes:
        if not processes.is_first:
            _train_with_first(config, processes)
            return None
        result = train(config, progress, processes=processes)
        processes.share_json(END)
    return result


def _require_images_for_all(config: RunConfig, launch: Launch) -> None:
    batch_size = config.training.batch_size
    if batch_size < launch.count:
        raise TwinbudError(
            f"a batch of {batch_size} images cannot be divided among {launch.count} processes",
            where="--batch-size",
            fix=f"Start at most {batch_size} processes, or take --batch-size {launch.count} or more",
        )


def _train_with_first(config: RunConfig, processes: Processes) -> None:
    """Do what the first process says, until it says that the run is over."""
    checkpoints = CheckpointManager(phases={FIRST_PHASE: CheckpointManager()})
    resource_cache, job = ResourceCache(), None
    with cpu_threads(config.training.threads), checkpoints.stop_on_signal(repeatedly=True):
        while (notice := processes.share_json()) != END:
            if notice == FIT:
                assert job is not None
                fit_job(job, Execution(checkpoints=checkpoints))
            else:
                job = _prepare_like_first(config, notice, resource_cache, processes)
                processes.any(False)


def _prepare_like_first(
    config: RunConfig, notice: dict[str, Any], resource_cache: ResourceCache, processes: Processes
) -> Job:
    """Prepare the run that the first process has prepared.

    Raises:
        TwinbudError: This process sees other images, other weights or other settings.
    """
    tuned_teacher = read_teacher_info(notice["tuned"]) if notice["tuned"] else None
    tunes = config.tuning.tune_teacher and tuned_teacher is None
    stage = tuning_config(config) if tunes else config
    job = replace(
        prepare(stage, SilentProgress(), resource_cache, tuned_teacher, processes),
        precision=from_json(PrecisionChoice, notice["precision"]),
        compilation=from_json(Compilation, notice["compilation"]),
    )
    own, first = to_json(run_identity(job)), notice["identity"]
    other = sorted(name for name in {*own, *first} if own.get(name) != first.get(name))
    if other:
        raise TwinbudError(
            f"this process has other {first_few(other)} than the first one",
            where=platform.node(),
            fix="Give all processes the same command, images and teacher, and on several machines the same --output",
        )
    return job
