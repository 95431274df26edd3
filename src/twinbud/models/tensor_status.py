"""What becomes of each tensor of teacher and student under selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import State, TimmModel
from twinbud.models.widths import TensorSpec

StatusKind = Literal["selected", "resampled", "fresh", "folded", "dropped"]
_NEW_CLASSIFIER = "the classifier is always new"


@dataclass(frozen=True)
class TensorStatus:
    """What becomes of one tensor.

    Attributes:
        kind: For a student's tensor: ``selected`` from the teacher, selected and ``resampled``, or ``fresh``. For a
            teacher's also ``folded`` into another tensor, or ``dropped``.
        reason: Why, or how, for the reader of ``plan.json``; empty where ``kind`` says it all.
    """

    kind: StatusKind
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind

    @classmethod
    def parse(cls, text: str) -> TensorStatus:
        """Read ``str(status)``.

        >>> TensorStatus.parse("dropped: the classifier is always new").kind
        'dropped'

        Raises:
            ValueError: ``text`` starts with no kind of status.
        """
        kind, _, reason = text.partition(": ")
        for known in get_args(StatusKind):
            if kind == known:
                return cls(known, reason)
        raise ValueError(f"'{text}' is not a status of a tensor")


def student_tensor_status(student: TimmModel, specs: dict[str, TensorSpec], teacher: State) -> dict[str, TensorStatus]:
    """Return the status of each student tensor.

    Raises:
        TwinbudError: The teacher has no tensor of that name, or one of another form.
    """
    tensor_status: dict[str, TensorStatus] = {}
    for name, tensor in student.state_dict().items():
        spec = specs[name]
        if spec.role == "classifier":
            tensor_status[name] = TensorStatus("fresh", _NEW_CLASSIFIER)
        elif name not in teacher and spec.role == "layer-scale":
            tensor_status[name] = TensorStatus("fresh", "ones, since the teacher has no LayerScale")
        elif name not in teacher or not _same_form(spec, teacher[name], tensor):
            found = f"has shape {tuple(teacher[name].shape)}" if name in teacher else "is missing"
            raise TwinbudError(
                f"the student's '{name}' of shape {tuple(tensor.shape)} cannot be selected: in the teacher it {found}",
                where="--student",
                fix="Use --student half, or a student with the same layer types and at most its depth",
            )
        else:
            tensor_status[name] = _inherited(spec, teacher[name], tensor)
    return tensor_status


def _same_form(spec: TensorSpec, teacher: torch.Tensor, student: torch.Tensor) -> bool:
    """Return whether the tensors agree in every dimension that is neither selected nor resampled."""
    return teacher.dim() == student.dim() and all(teacher.shape[d] == student.shape[d] for d in spec.fixed_dimensions)


def _inherited(spec: TensorSpec, teacher: torch.Tensor, student: torch.Tensor) -> TensorStatus:
    if spec.role == "position":
        return TensorStatus("selected", "resampled to the image size when training starts")
    if spec.role == "relative-position":
        if teacher.shape[0] != student.shape[0]:
            return TensorStatus("resampled", "to the student's window when training starts")
        return TensorStatus("selected", "resampled when training starts if the image size changes the window")
    if spec.role == "patch" and teacher.shape[-2:] != student.shape[-2:]:
        sizes = ["×".join(map(str, tensor.shape[-2:])) for tensor in (teacher, student)]
        return TensorStatus("resampled", f"{sizes[0]} → {sizes[1]}")
    return TensorStatus("selected")


def teacher_tensor_status(
    teacher: TimmModel,
    specs: dict[str, TensorSpec],
    student_status: dict[str, TensorStatus],
    student_specs: dict[str, TensorSpec],
    folded: dict[str, str],
) -> dict[str, TensorStatus]:
    """Return the status of each teacher tensor.

    Args:
        teacher: The teacher.
        specs: Those of its tensors.
        student_status: Status of each student tensor, by the name of the teacher's tensor that it is selected from.
        student_specs: Those of the student's tensors, by the student's names.
        folded: The layer that each folded tensor went into.

    Raises:
        TwinbudError: The student lacks one that is neither the classifier's nor a deeper layer's.
    """
    layers = {spec.layer for spec in student_specs.values()}
    tensor_status: dict[str, TensorStatus] = {}
    for name in teacher.state_dict():
        spec = specs[name]
        if spec.role == "classifier":
            tensor_status[name] = TensorStatus("dropped", _NEW_CLASSIFIER)
        elif name in folded:
            tensor_status[name] = TensorStatus("folded", f"into {folded[name]}")
        elif name in student_status:
            tensor_status[name] = student_status[name]
        elif spec.layer is not None and spec.layer not in layers:
            tensor_status[name] = TensorStatus("dropped", f"{spec.layer} is beyond the student's depth")
        else:
            raise TwinbudError(
                f"the student has no '{name}', which the teacher has",
                where="--student",
                fix="Use --student half, which has the teacher's layers",
            )
    return tensor_status
