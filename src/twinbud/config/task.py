"""What is asked of the images: the task, its classes, and how the images of a patient are judged together."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic.dataclasses import dataclass

from twinbud.config.fields import Checked, setting

TaskName = Literal["single", "multi-label", "ordinal"]
TaskChoice = Literal["auto", "single", "multi-label", "ordinal"]
Balance = Literal["none", "weights", "sampler", "logit-adjusted"]
Aggregate = Literal["mean", "max", "noisy-or"]

TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Checked):
    """What is asked of the images."""

    task: TaskChoice = setting(
        "auto",
        "single: one class per image; multi-label: several labels; ordinal: grades with an order; auto: what the labels"
        " say, an error where they are numbers, which may be grades.",
    )
    label_columns: str | None = setting(
        None,
        "CSV columns of several labels, A,B,C: 1, 0, and nothing or -1 where unknown; replaces --label-column.",
        min_length=1,
    )
    classes: str | None = setting(
        None,
        "All class names, A,B,C, in the order of the outputs, which is the order of grades; none: sorted.",
        min_length=1,
    )
    aggregate: Aggregate = setting(
        "mean", "How the probabilities of a patient's images are joined for the metrics per patient."
    )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names in ``classes``; None where it is not given."""
        return _names(self.classes)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names in ``label_columns``; None where it is not given."""
        return _names(self.label_columns)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))
