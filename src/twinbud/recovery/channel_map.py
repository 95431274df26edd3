"""A student beside the teacher that it was cut out of: which of the teacher's channels each of its own stands for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from twinbud.config.schema import Attention
from twinbud.models.families.base import Family, TimmModel
from twinbud.models.selection import PairRole, SelectionPlan


@dataclass(frozen=True, kw_only=True)
class BlockPair:
    """A block of the student, and the blocks of the teacher that it stands for.

    Attributes:
        name: The student's block, which has the name of the teacher's that it was cut out of.
        student: The block.
        teacher: That block of the teacher and, at the end of a student or a stage that is shallower, all that follow.
    """

    name: str
    student: TimmModel
    teacher: tuple[TimmModel, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelMap:
    """S or S′ beside its teacher, at one image size and on one device.

    Attributes:
        student: S or S′.
        teacher: The teacher, frozen.
        family: That of both.
        plan: What was cut where; every width has one index set, so not that of ``random-inconsistent``.
        pair_role: Which of the two students it is.
    """

    student: TimmModel
    teacher: TimmModel
    family: Family
    plan: SelectionPlan
    pair_role: PairRole
    blocks: tuple[BlockPair, ...] = field(init=False)

    def __post_init__(self) -> None:
        student_blocks, teacher_blocks = self.family.blocks(self.student), self.family.blocks(self.teacher)
        pairs = (
            BlockPair(name=name, student=student_blocks[name], teacher=tuple(teacher_blocks[other] for other in span))
            for name, span in self.family.spans(self.student, self.teacher).items()
        )
        object.__setattr__(self, "blocks", tuple(pairs))

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return next(self.student.parameters()).device

    def stream_channels(self, block: str) -> torch.Tensor:
        """(d,) int64: the channels of the teacher's residual stream after ``block`` that the student has."""
        return self._index(self.plan.widths[self.family.stream_width(block)].of(self.pair_role))

    def output_channels(self, layer: str) -> torch.Tensor:
        """(d,) int64: the outputs of the teacher's ``layer``, by its full name, that the student's layer has."""
        attention: Attention = self.plan.attention
        axis = self.family.specs(self.student, attention)[f"{layer}.weight"].axes[0]
        assert axis is not None, f"{layer} is never cut"
        width = self.plan.widths[axis.width]
        return self._index(axis.positions(width.of(self.pair_role), width.teacher_size))

    def student_streams(self, images_BCSS: torch.Tensor) -> Iterator[torch.Tensor]:
        """The student's residual stream after each block, then its final tokens."""
        stream = self.family.embed(self.student, images_BCSS)
        for block in self.blocks:
            stream = block.student(stream)
            yield stream
        yield self.family.finish(self.student, stream)

    @torch.no_grad()
    def teacher_streams(self, images_BCSS: torch.Tensor) -> Iterator[torch.Tensor]:
        """The teacher's residual stream at the same places."""
        stream = self.family.embed(self.teacher, images_BCSS)
        for block in self.blocks:
            stream = through(block.teacher, stream)
            yield stream
        yield self.family.finish(self.teacher, stream)

    def _index(self, indices: object) -> torch.Tensor:
        return torch.tensor(indices, dtype=torch.int64, device=self.device)


def through(blocks: tuple[nn.Module, ...], stream: torch.Tensor) -> torch.Tensor:
    """The stream after some blocks."""
    for block in blocks:
        stream = block(stream)
    return stream
