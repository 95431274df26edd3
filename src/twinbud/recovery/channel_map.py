"""Pair a selected student with its teacher, block by block and channel by channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from twinbud.models.families.base import Branch, RecoverySupport, SelectionFamily, TimmModel
from twinbud.models.families.streams import stream_widths
from twinbud.models.selection import PairRole, SelectionPlan
from twinbud.models.widths import Axis, TensorSpec, index_attention


@dataclass(frozen=True, kw_only=True)
class BlockPair:
    """A block of the student, and the blocks of the teacher whose output it reproduces.

    Attributes:
        name: Name of the student's block and of the teacher's block that its weights come from.
        student: The student's block.
        teacher: The teacher's block of that name. At the end of a stage in which the student is shallower, all later
            blocks of the teacher's stage follow. The last layer answers for them if it writes into the stream or if the
            blocks have no shortcut; a block with an activation behind its shortcut answers for the first one alone.
    """

    name: str
    student: TimmModel
    teacher: tuple[TimmModel, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelMap:
    """A student and its teacher, at one image size and on one device.

    Attributes:
        student: The student or the auxiliary.
        teacher: The teacher, frozen.
        family: Their family, which must support recovery.
        plan: The teacher's indices along each width. ``random-inconsistent`` plans have none and do not work here.
        pair_role: Whether ``student`` is the student or the auxiliary.
        stream_maps: (D, d) float32 by width, from the teacher's residual stream to the student's. Along the other
            widths, the student's channels are channels of the teacher.
        recovery: The family's residual stream.
        blocks: The blocks in order.

    Raises:
        TwinbudError: The family does not support recovery.
    """

    student: TimmModel
    teacher: TimmModel
    family: SelectionFamily
    plan: SelectionPlan
    pair_role: PairRole
    stream_maps: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    recovery: RecoverySupport = field(init=False)
    blocks: tuple[BlockPair, ...] = field(init=False)

    def __post_init__(self) -> None:
        student_blocks, teacher_blocks = self.family.blocks(self.student), self.family.blocks(self.teacher)
        object.__setattr__(self, "recovery", self.family.require_recovery())
        pairs = (
            BlockPair(name=name, student=student_blocks[name], teacher=tuple(teacher_blocks[other] for other in span))
            for name, span in self._spans(list(student_blocks), list(teacher_blocks)).items()
        )
        object.__setattr__(self, "blocks", tuple(pairs))

    @property
    def device(self) -> torch.device:
        """Device of both networks."""
        return next(self.student.parameters()).device

    @property
    def refits_batch_norms(self) -> bool:
        """Whether layers are refitted together with the batch norms that read them."""
        return any(linear.norm for block in self.blocks for linear in self.recovery.linear_maps(block.student))

    @cached_property
    def stream_widths(self) -> dict[str, str]:
        """The name of the width along which the stream's channels run after each block."""
        return stream_widths(self.family, self.student)

    def stream_channels(self, block: str) -> torch.Tensor:
        """Return (d,) int64, the teacher's residual-stream channels after ``block`` that the student has."""
        return self._index(self.plan.widths[self.stream_widths[block]].of(self.pair_role))

    def student_stream(self, block: str, tokens: torch.Tensor) -> torch.Tensor:
        """Return the teacher's residual stream (B, L, D) after ``block`` in the student's channels, (B, L, d)."""
        stream_map = self.stream_maps.get(self.stream_widths[block])
        if stream_map is None:
            return at_channels(tokens, self.stream_channels(block))
        with torch.autocast(self.device.type, enabled=False):
            return tokens.float() @ stream_map

    def stream_embedding(self, block: str) -> torch.Tensor:
        """Return (D, d) float32: where the student's channels after ``block`` lie in the teacher's stream."""
        name = self.stream_widths[block]
        if name in self.stream_maps:
            return self.stream_maps[name]
        width = self.plan.widths[name]
        return torch.eye(width.teacher_size, device=self.device)[:, self.stream_channels(block)]

    def output_channels(self, layer: str) -> torch.Tensor:
        """Return (O,) int64, the outputs of the teacher's ``layer`` (full name) that the student's layer has."""
        return self._positions(layer, dimension=0)

    def input_channels(self, layer: str) -> torch.Tensor:
        """Return (I,) int64, the inputs of the teacher's ``layer`` (full name) that the student's layer has."""
        return self._positions(layer, dimension=1)

    def _positions(self, layer: str, dimension: int) -> torch.Tensor:
        axis = self._specs[f"{layer}.weight"].axes[dimension]
        assert isinstance(axis, Axis), f"dimension {dimension} of {layer} runs along no width"
        width = self.plan.widths[axis.width]
        return self._index(axis.positions(width.of(self.pair_role), width.teacher_size))

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return index_attention(self.family.specs(self.student), self.plan.attention)

    def student_streams(self, images_BCSS: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the student's residual stream after each block, then its final tokens; see ``run_blocks``."""
        stream = self.recovery.embed(self.student, images_BCSS)
        for block in self.blocks:
            stream = block.student(stream)
            yield stream
        yield self.recovery.finish(self.student, stream)

    @torch.no_grad()
    def teacher_streams(self, images_BCSS: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the teacher's residual stream after the same blocks, then its final tokens."""
        stream = self.recovery.embed(self.teacher, images_BCSS)
        for block in self.blocks:
            stream = run_blocks(block.teacher, stream)
            yield stream
        yield self.recovery.finish(self.teacher, stream)

    @staticmethod
    def _spans(student_blocks: list[str], teacher_blocks: list[str]) -> dict[str, list[str]]:
        """Map each student block to its teacher blocks: its own, and those before the student's next block."""
        starts = [*map(teacher_blocks.index, student_blocks), len(teacher_blocks)]
        return {
            name: teacher_blocks[start:end]
            for name, start, end in zip(student_blocks, starts, starts[1:], strict=False)
        }

    def _index(self, indices: object) -> torch.Tensor:
        return torch.tensor(indices, dtype=torch.int64, device=self.device)


def at_channels(tokens: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Return ``tokens[..., channels]``; along two dimensions, torch takes a third of the time."""
    return tokens.flatten(0, -2).index_select(1, channels).unflatten(0, tokens.shape[:-1])


def run_blocks(blocks: tuple[nn.Module, ...], stream: torch.Tensor) -> torch.Tensor:
    """Pass the residual stream through consecutive blocks.

    Args:
        blocks: The blocks in order.
        stream: (B, L, D) or (B, D, H, W), as the family's blocks take it, in any floating dtype.

    Returns:
        The stream after the last block, on the same device; a downsampling layer halves H and W and changes D.
    """
    for block in blocks:
        stream = block(stream)
    return stream


def teacher_branches(recovery: RecoverySupport, blocks: tuple[TimmModel, ...]) -> tuple[Branch, ...]:
    """Return the branches of the first block; the last one goes on through all the other blocks."""
    first, *later = blocks
    *inner, last = recovery.branches(first)
    whole = replace(last, forward=lambda stream: run_blocks(tuple(later), last.forward(stream)))
    return (*inner, whole)
