"""The teacher, lent to S and S′ for as long as they recover: opened when it is needed, and checked to be theirs."""

from __future__ import annotations

import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import Family, TimmModel
from twinbud.models.selection import PairRole, extract_weights
from twinbud.models.selection_io import Selection
from twinbud.models.teacher import TeacherCard, open_teacher_at
from twinbud.recovery.channel_map import ChannelMap


class TeacherProvider:
    """Opens the teacher when it is first needed, which after a resume may be never.

    Args:
        card: The teacher.
        selection: What was cut out of it.
        image_size: In pixels.
        device: Where the students are.
    """

    def __init__(self, card: TeacherCard, selection: Selection, image_size: int, device: torch.device) -> None:
        self.card, self.selection, self.image_size, self.device = card, selection, image_size, device
        self.teacher: TimmModel | None = None

    def channel_map(self, student: TimmModel, pair_role: PairRole) -> ChannelMap:
        """A student beside the teacher.

        Raises:
            TwinbudError: The teacher cannot be opened, is not the one that was cut, or has other patches.
        """
        family = self.selection.student_spec.family
        if self.teacher is None:
            teacher = open_teacher_at(self.card, family, self.image_size)
            require_same_teacher(teacher, self.selection, self.card.name)
            teacher.reset_classifier(0)  # it may be larger than all the rest
            self.teacher = teacher.to(self.device, memory_format=family.memory_format)
        pair = ChannelMap(
            student=student, teacher=self.teacher, family=family, plan=self.selection.plan, pair_role=pair_role
        )
        student_positions, teacher_positions = (
            num_positions(network, family, self.image_size) for network in (student, self.teacher)
        )
        if student_positions != teacher_positions:
            raise TwinbudError(
                f"a student that sees an image at its teacher's {teacher_positions} positions",
                got=f"one that sees it at {student_positions}",
                where="--recover",
                fix="Use --student half, which has the teacher's patches, or --recover none",
            )
        return pair


def require_same_teacher(teacher: TimmModel, selection: Selection, name: str) -> None:
    """Refuse a teacher that the selection was not cut out of.

    Raises:
        TwinbudError: It has other tensors, or what the plan cuts out of it is not what S inherited.
    """
    family, student_spec = selection.student_spec.family, selection.student_spec
    specs = family.specs(student_spec.template, selection.plan.attention)
    try:
        again = extract_weights(selection.plan, teacher, student_spec.template, family, "student")
        pairs = [
            (again[name], tensor)
            for name, tensor in selection.student_weights.items()
            if specs[name].role != "position"
        ]
        same = all(
            torch.allclose(student_positions, teacher_positions, rtol=1e-3, atol=1e-4)
            for student_positions, teacher_positions in pairs
        )  # it may be float16
    except (KeyError, IndexError, RuntimeError):
        same = False
    if not same:
        raise TwinbudError(
            "the teacher that the weights were selected from",
            got="another",
            where=f"--teacher {name}",
            fix="Give that teacher, or select from this one again",
        )


def num_positions(network: TimmModel, family: Family, image_size: int) -> int:
    """How many positions the residual stream of an image has where it begins."""
    return _first_tokens(network, family, image_size).shape[1]


def num_numbers(network: TimmModel, family: Family, image_size: int) -> int:
    """How many numbers it has there."""
    return _first_tokens(network, family, image_size).numel()


@torch.no_grad()
def _first_tokens(network: TimmModel, family: Family, image_size: int) -> torch.Tensor:
    blank = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    return family.tokens(family.embed(network, blank))
