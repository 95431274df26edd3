"""Open the teacher for recovery, and check that the students were selected from it."""

from __future__ import annotations

import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import RecoverySupport, TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.selection import PairRole, extract_weights
from twinbud.models.selection_io import Selection
from twinbud.models.student_spec import StudentSpec, make_student_spec
from twinbud.models.teacher import TeacherInfo, open_teacher_at
from twinbud.recovery.channel_map import ChannelMap


class TeacherProvider:
    """Opens the teacher on first use; a resumed run may never need it.

    Args:
        teacher_info: The teacher.
        selection: The weights that were selected from it.
        image_size: Side of the images in pixels.
        device: Device of the students.
        with_classifier: Whether the teacher keeps its classifier, which may be larger than the rest of the network.
    """

    def __init__(
        self,
        teacher_info: TeacherInfo,
        selection: Selection,
        image_size: int,
        device: torch.device,
        *,
        with_classifier: bool = False,
    ) -> None:
        self.info, self.selection, self.image_size, self.device = teacher_info, selection, image_size, device
        self.with_classifier = with_classifier
        self.teacher: TimmModel | None = None

    def open(self) -> TimmModel:
        """Return the teacher at the image size and on the device of the students.

        Raises:
            TwinbudError: It cannot be opened, or is not the one that was selected from.
        """
        if self.teacher is None:
            family = self.selection.student_spec.family
            teacher = open_teacher_at(self.info, family, self.image_size)
            require_same_teacher(teacher, self.selection, self.info.name)
            if not self.with_classifier:
                teacher.reset_classifier(0)
            self.teacher = teacher.to(self.device, memory_format=family.memory_format)
        return self.teacher

    def channel_map(self, student: TimmModel, pair_role: PairRole) -> ChannelMap:
        """Pair a student with the teacher.

        Raises:
            TwinbudError: See ``open``; or the teacher has another patch size, or its family does not support recovery.
        """
        family = self.selection.student_spec.family
        recovery, teacher = family.require_recovery(), self.open()
        student_positions, teacher_positions = (
            num_positions(network, recovery, self.image_size) for network in (student, teacher)
        )
        require_equal_positions(student_positions, teacher_positions)
        return ChannelMap(
            student=student, teacher=teacher, family=family, plan=self.selection.plan, pair_role=pair_role
        )


def require_comparable(student_spec: StudentSpec, teacher_info: TeacherInfo, image_size: int) -> None:
    """Refuse a student that recovery cannot compare with its teacher, without opening weights.

    Raises:
        TwinbudError: See ``require_equal_positions``.
    """
    recovery, positions = student_spec.family.require_recovery(), list[int]()
    teacher_spec = make_student_spec(
        teacher_info.architecture, teacher_info.model_args, mean=(), std=(), shapes=teacher_info.shapes
    )
    for spec in (student_spec, teacher_spec):
        network = spec.outline(num_classes=1, image_size=image_size)
        positions.append(num_positions(network, recovery, image_size))
    require_equal_positions(*positions)


def require_equal_positions(student_positions: int, teacher_positions: int) -> None:
    """Require that student and teacher divide an image alike.

    Raises:
        TwinbudError: They do not.
    """
    if student_positions != teacher_positions:
        raise TwinbudError(
            f"the student divides an image into {student_positions} positions, its teacher into {teacher_positions};"
            " recovery compares them position by position",
            where="--recover",
            fix="Use --student half, which has the teacher's patch size, or --recover none",
        )


def require_same_teacher(teacher: TimmModel, selection: Selection, name: str) -> None:
    """Refuse a teacher that the selection does not come from.

    Args:
        teacher: The network, in float32.
        selection: Its weights may have been stored as float16.
        name: How the user spelled the teacher.

    Raises:
        TwinbudError: It has other tensors, or selecting again gives other weights.
    """
    family, student_spec = selection.student_spec.family, selection.student_spec
    specs = family.specs(student_spec.template)
    try:
        again = extract_weights(selection.plan, teacher, student_spec.template, family, "student")
        same = all(
            torch.allclose(again[name], tensor, rtol=1e-3, atol=1e-4)
            for name, tensor in selection.student_weights.items()
            if not specs[name].depends_on_image_size
        )
    except (KeyError, IndexError, RuntimeError):
        same = False
    if not same:
        raise TwinbudError(
            f"the weights were selected from another teacher than '{name}'",
            where="--teacher",
            fix="Give the teacher that they were selected from, or run 'twinbud select' with this one",
        )


def num_positions(network: TimmModel, recovery: RecoverySupport, image_size: int) -> int:
    """Return the number of positions in the residual stream that enters the first block."""
    return recovery.tokens(_first_stream(network, recovery, image_size)).shape[1]


def num_stream_elements(network: TimmModel, recovery: RecoverySupport, image_size: int) -> int:
    """Return the number of elements, positions times channels, in the largest residual stream of one image."""
    stream = _first_stream(network, recovery, image_size)
    largest = stream.numel()
    if not recovery.has_largest_stream_first:
        for block in family_of(network).blocks(network).values():
            with torch.no_grad():
                stream = block(stream)
            largest = max(largest, stream.numel())
    return largest


@torch.no_grad()
def _first_stream(network: TimmModel, recovery: RecoverySupport, image_size: int) -> torch.Tensor:
    blank = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    return recovery.embed(network, blank)
