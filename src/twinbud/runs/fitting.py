"""The training stage of a run; and what the first of several processes tells the others of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.core.typed_json import to_json
from twinbud.models.teacher import TeacherInfo
from twinbud.models.teacher_classifier import open_teacher_classifier
from twinbud.runs.context import Job, labelled_images
from twinbud.runs.resume import run_identity
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution
from twinbud.training.fit import fit
from twinbud.training.two_phase import fit_in_two_phases

FIT: dict[str, Any] = {"do": "fit"}
"""Tells the other processes to train with the first one."""
END: dict[str, Any] = {"do": "end"}
"""Tells them that the run is over."""


def fit_job(job: Job, execution: Execution) -> History:
    """Train the student of a run on its labelled images, with the other processes if there are any.

    Args:
        job: The run, or the fine-tuning of its teacher.
        execution: Checkpoints and reports; precision, compilation and processes are those of the job.

    Raises:
        TwinbudError, Stopped: See ``fit``.
    """
    training, teacher = job.config.training, None
    if training.learns_from_teacher:
        assert job.teacher is not None
        teacher = open_teacher_classifier(
            job.teacher,
            job.task,
            preprocessing=job.initialization.student_spec.preprocessing(training.image_size),
            device=job.device,
            bf16=job.precision.bf16,
        )
    data = labelled_images(job)
    if job.processes is not None and job.processes.is_first:
        job.processes.share_json(FIT)
    execution = replace(execution, bf16=job.bf16, compilation=job.compilation, processes=job.processes)
    fit_function = fit_in_two_phases if training.num_phases == 2 else partial(fit, teacher=teacher)
    return fit_function(job.student_pair, data, training, execution)


def announce_job(job: Job, tuned_teacher: TeacherInfo | None = None) -> None:
    """Let the other processes prepare the same run, and wait until each has found that it sees the same.

    Args:
        job: The run, or the fine-tuning of its teacher; without other processes, nothing happens.
        tuned_teacher: The teacher, where this run has fine-tuned it.

    Raises:
        TwinbudError: The network cannot be trained by several processes.
        ConnectionLostError: A process has refused, and says why.
    """
    if job.processes is None:
        return
    _require_no_batch_norm(job)
    notice = {
        "do": "prepare",
        "tuned": tuned_teacher.name if tuned_teacher else None,
        "identity": to_json(run_identity(job)),
        "precision": to_json(job.precision),
        "compilation": to_json(job.compilation),
    }
    job.processes.share_json(notice)
    job.processes.any(False)


def _require_no_batch_norm(job: Job) -> None:
    trains = job.config.training.epochs and job.config.model.method != "probe"
    modules = job.student_pair.student.modules() if trains else ()
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        name = job.initialization.student_spec.architecture
        raise TwinbudError(
            f"'{name}' has batch norms, whose statistics are those of a whole batch, not of the part of one process",
            where="a run of several processes",
            fix="Train it in one process, without torchrun, or choose a network without batch norm, such as a ViT",
        )
