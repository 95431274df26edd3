"""From the name of a task to the task."""

from __future__ import annotations

from dataclasses import replace

from twinbud.config.combinations import require
from twinbud.config.schema import TrainingConfig
from twinbud.config.task import TaskName
from twinbud.tasks.base import Task
from twinbud.tasks.multi_label import MultiLabel
from twinbud.tasks.ordinal import Ordinal
from twinbud.tasks.single import SingleLabel

_TASKS: dict[TaskName, type[Task]] = {"single": SingleLabel, "ordinal": Ordinal, "multi-label": MultiLabel}


def open_task(name: TaskName, classes: tuple[str, ...], *, thresholds: tuple[float, ...] = ()) -> Task:
    """Return the task of this name for these classes, with the thresholds of a model, if it has any."""
    task = _TASKS[name](classes)
    return replace(task, thresholds=thresholds) if isinstance(task, MultiLabel) else task


def require_supported(task: Task, training: TrainingConfig) -> None:
    """Refuse a source of soft targets that does not fit the task.

    Raises:
        TwinbudError: It does not fit.
    """
    reason = task.unsupported.get(training.distillation)
    require(
        reason is None,
        "distillation",
        training.distillation,
        f"--task {task.name}, {reason}",
        "skd (or tf-kd, tf-kd-self, teacher)",
    )
