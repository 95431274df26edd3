"""From the name of a task to the task."""

from __future__ import annotations

from twinbud.config.combinations import require
from twinbud.config.schema import TrainingConfig
from twinbud.config.task import TaskName
from twinbud.tasks.base import Task
from twinbud.tasks.ordinal import Ordinal
from twinbud.tasks.single import SingleLabel

_TASKS: dict[TaskName, type[Task]] = {"single": SingleLabel, "ordinal": Ordinal}


def open_task(name: TaskName, classes: tuple[str, ...]) -> Task:
    """Return the task of this name for these classes."""
    return _TASKS[name](classes)


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
