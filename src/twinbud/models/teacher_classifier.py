"""The teacher as a frozen classifier, whose logits are soft targets of the student.

Shape legend: B batch, C channels (3), S image side, K classes.
"""

from __future__ import annotations

import torch
from torch import nn

from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.teacher import TeacherInfo, arguments_from_weights, open_teacher_at
from twinbud.tasks.base import Task

_MAX_SHOWN = 20
"""Class names in an error."""


class TeacherClassifier(nn.Module):
    """The teacher, frozen, for images that are normalized for the student; it computes in a precision of its own.

    Args:
        network: Takes images in its own normalization.
        own: (mean, std) of the network.
        given: (mean, std) of the images.
        bf16: Whether the network computes in bf16 autocast.
    """

    scale_1C11: torch.Tensor
    shift_1C11: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        own: tuple[tuple[float, ...], tuple[float, ...]],
        given: tuple[tuple[float, ...], tuple[float, ...]],
        *,
        bf16: bool,
    ) -> None:
        super().__init__()
        self.network, self.bf16, self.is_renormalized = network, bf16, own != given
        (own_mean, own_std), (mean, std) = (
            [torch.tensor(values).view(1, -1, 1, 1) for values in normalization] for normalization in (own, given)
        )
        self.register_buffer("scale_1C11", std / own_std)
        self.register_buffer("shift_1C11", (mean - own_mean) / own_std)

    def forward(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K) for normalized images (B, C, S, S)."""
        if self.is_renormalized:
            images_BCSS = images_BCSS * self.scale_1C11 + self.shift_1C11
        with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(images_BCSS)


def require_classes(info: TeacherInfo, task: Task, *, off: str = "--distillation skd") -> None:
    """Refuse a teacher whose classifier has not the task and the classes of the run.

    Where the teacher's folder names its classes, names and order must agree; elsewhere the weights are read, and the
    number must agree.

    Args:
        info: The teacher.
        task: The task of the run, with its classes.
        off: The option that does without the teacher's classifier, for errors.

    Raises:
        TwinbudError: Task or classes differ, there is no classifier, or the weights cannot be read.
    """
    if info.task != task.name:
        raise TwinbudError(
            f"the teacher was trained for --task {info.task}, but the task of the run is {task.name}",
            where=info.name,
            fix=f"Fine-tune it for this task with --tune-teacher, or use {off}",
        )
    if info.classes is None:
        _require_number(info, arguments_from_weights(info, info.weights())["num_classes"], task, off)
    elif info.classes != task.classes:
        theirs, ours = (first_few(map(repr, names), _MAX_SHOWN) for names in (info.classes, task.classes))
        raise TwinbudError(
            f"the classes of the teacher are {theirs}, but those of the images are {ours}",
            where=info.name,
            fix=f"Fine-tune it on these classes with --tune-teacher, or use {off}",
        )


def open_teacher_classifier(
    info: TeacherInfo,
    task: Task,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    bf16: bool = False,
) -> TeacherClassifier:
    """Open the teacher with its classifier, for images that are preprocessed for the student.

    Args:
        info: The teacher; see ``require_classes``.
        task: The task of the run, with its classes.
        preprocessing: That of the student. The images are normalized again if the teacher's normalization differs.
        device: The device of training.
        bf16: Whether the machine is faster in bf16; the teacher then uses it where its family gains from it, whatever
            the student's precision.

    Returns:
        A frozen network in evaluation mode: images (B, C, S, S) to logits (B, K).

    Raises:
        TwinbudError: See ``require_classes`` and ``open_teacher_at``.
    """
    family = family_of(info.outline(num_classes=0))
    teacher: TimmModel = open_teacher_at(info, family, preprocessing.image_size)
    _require_number(info, teacher.num_classes, task)
    own, given = (info.mean, info.std), (preprocessing.mean, preprocessing.std)
    teacher.to(device, memory_format=family.memory_format)
    bf16 = bf16 and family.gains_from_bf16(teacher, device)
    return TeacherClassifier(teacher, own, given, bf16=bf16).eval().to(device)


def _require_number(info: TeacherInfo, num_classes: int, task: Task, off: str = "--distillation skd") -> None:
    fix = f"Fine-tune it on these classes with --tune-teacher, or use {off}"
    if num_classes == 0:
        raise TwinbudError("the teacher has no classifier to learn from", where=info.name, fix=fix)
    if num_classes != task.num_outputs:
        raise TwinbudError(
            f"the teacher's classifier has {num_classes:,} classes, but the images have {task.num_outputs:,}",
            where=info.name,
            fix=fix,
        )
