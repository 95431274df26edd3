"""The weights that least squares starts from: those of the selection, a projection of the teacher, or its channels.

Shape legend: D channels of the teacher's residual stream, d of the student's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from twinbud.config.recovery import RecoveryConfig
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.families.streams import has_subspace, linear_streams
from twinbud.models.rules import Indices
from twinbud.models.selection import extract_weights
from twinbud.models.widths import WITHIN
from twinbud.recovery.bottlenecks import (
    BottleneckStatistics,
    absorb_batch_norms,
    channel_importance,
    choose_subspaces,
    measure_bottlenecks,
)
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.heads import change_head_bases
from twinbud.recovery.importance import important_indices, with_indices
from twinbud.recovery.least_squares import NO_WEIGHTS, RefitBatch
from twinbud.recovery.logit_effects import LogitEffects, measure_effects
from twinbud.recovery.projection import project_state
from twinbud.recovery.stream_statistics import StreamStatistics, measure_stream
from twinbud.recovery.subspace import principal_subspace, project_weights
from twinbud.recovery.teacher_provider import TeacherProvider, num_positions
from twinbud.tasks.base import Task

_KEPT, _STREAM_MAP, _EXPLAINED = "kept.", "stream_map.", "stream_explained"


@dataclass(frozen=True, kw_only=True)
class RefitStart:
    """What a student has of its teacher before least squares; empty for the channels of the selection.

    Attributes:
        stream_maps: (D, d) float32 by width, see ``ChannelMap``.
        explained: Share of the teacher's streams inside the subspaces; None for channels.
        kept: Indices of the teacher that were chosen by importance, by width.
    """

    stream_maps: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor], compare=False)
    explained: float | None = None
    kept: Mapping[str, Indices] = field(default_factory=dict[str, Indices])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the content as tensors, as checkpoints keep it."""
        tensors = {_STREAM_MAP + width: stream_map for width, stream_map in self.stream_maps.items()}
        if self.explained is not None:
            tensors[_EXPLAINED] = torch.tensor(self.explained, dtype=torch.float64)
        return tensors | {_KEPT + width: torch.tensor(indices) for width, indices in self.kept.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> RefitStart:
        """Read what ``tensors`` returned, among other tensors."""
        return cls(
            stream_maps=_with_prefix(tensors, _STREAM_MAP),
            explained=tensors[_EXPLAINED].item() if _EXPLAINED in tensors else None,
            kept={width: tuple(indices.tolist()) for width, indices in _with_prefix(tensors, _KEPT).items()},
        )

    def applied_to(self, channel_map: ChannelMap) -> ChannelMap:
        """Return the channel map with these subspaces and indices."""
        plan = with_indices(channel_map.plan, self.kept, channel_map.pair_role)
        stream_maps = {width: stream_map.to(channel_map.device) for width, stream_map in self.stream_maps.items()}
        return replace(channel_map, plan=plan, stream_maps=stream_maps)


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Gives networks the weights that are to be refitted; they share the statistics of the teacher.

    Attributes:
        teacher_provider: The teacher.
        batches: Returns the images that the statistics are of, from the first one at each call.
        task: What the teacher's logits mean.
        config: Settings of recovery.
        seed: Seed of all random choices.
        with_auxiliary: Whether there is an auxiliary with weights of its own.
        bf16: Whether the teacher computes in bf16 autocast.
    """

    teacher_provider: TeacherProvider
    batches: Callable[[], Iterable[RefitBatch]]
    task: Task
    config: RecoveryConfig
    seed: int
    with_auxiliary: bool
    bf16: bool

    def start(self, channel_map: ChannelMap) -> RefitStart:
        """Replace the weights of a student, unless those of the selection are to be refitted.

        Raises:
            TwinbudError: The family supports no subspace.
        """
        if not self._uses_subspace(channel_map):
            return RefitStart() if self.config.recover_method == "refit" else self._prune(channel_map)
        if linear_streams(self._family, channel_map.teacher):
            return self._project_bottlenecks(channel_map)
        return self._project_stream(channel_map)

    def resume(self, start: RefitStart) -> None:
        """Change the teacher as the interrupted run did, so that the features to match are equal bit for bit."""
        if any(name.startswith(f"{WITHIN}/") for name in start.kept):
            _ = self.teacher

    def position_weights(self, channel_map: ChannelMap) -> Mapping[str, torch.Tensor]:
        """Return how often each position counts, see ``refit_layers``."""
        return self.effects.position_weights if self._uses_effects(channel_map) else NO_WEIGHTS

    @cached_property
    def teacher(self) -> TimmModel:
        """The teacher, in whose heads the first channels matter most where those of the students are narrower."""
        teacher, plan = self.teacher_provider.open(), self.teacher_provider.selection.plan
        if plan.attention == "within":
            change_head_bases(teacher, self._family, self.batches(), plan, bf16=self.bf16)
        return teacher

    @cached_property
    def statistics(self) -> StreamStatistics:
        """Statistics of the stream of a ViT."""
        return measure_stream(self.teacher, self._family, self.batches(), bf16=self.bf16)

    @cached_property
    def bottleneck_statistics(self) -> BottleneckStatistics:
        """Statistics of a network with linear bottlenecks."""
        return measure_bottlenecks(self.teacher_provider.open(), self._family, self.batches(), bf16=self.bf16)

    @cached_property
    def bottleneck_importance(self) -> Mapping[str, torch.Tensor]:
        """Importance of the channels of such a network."""
        plan = self.teacher_provider.selection.plan
        return channel_importance(self.bottleneck_statistics, plan, with_auxiliary=self.with_auxiliary)

    @cached_property
    def effects(self) -> LogitEffects:
        """What changes the logits of a ViT, with the statistics of its stream."""
        return measure_effects(
            self.teacher,
            self._family,
            self.batches(),
            task=self.task,
            num_positions=num_positions(
                self.teacher, self._family.require_recovery(), self.teacher_provider.image_size
            ),
            seed=self.seed,
            bf16=self.bf16,
        )

    def _uses_effects(self, channel_map: ChannelMap) -> bool:
        """Return whether errors count by what they change in the logits."""
        is_asked_for = self.config.recovers_by_logits and self._uses_subspace(channel_map)
        return is_asked_for and not linear_streams(self._family, channel_map.teacher)

    def _uses_subspace(self, channel_map: ChannelMap) -> bool:
        """Return whether the subspace is asked for or, with ``auto``, possible: no mixed heads, and no rule."""
        if self.config.recover_stream != "auto":
            return self.config.uses_subspace
        plan = self.teacher_provider.selection.plan
        cuts_heads = plan.attention == "interleaved" and any(
            axis.head_size for spec in self._family.specs(channel_map.teacher).values() for _, axis in spec.widths()
        )
        is_free = (plan.rule, self.config.recover_method) == ("uniform", "refit") and not cuts_heads
        return is_free and has_subspace(self._family, channel_map.teacher)

    def _project_stream(self, channel_map: ChannelMap) -> RefitStart:
        """Replace the weights by those of the teacher seen through the principal subspace of its one stream."""
        teacher, student, pair_role = self.teacher, channel_map.student, channel_map.pair_role
        width, *_ = channel_map.stream_widths.values()
        effects = self.effects if self._uses_effects(channel_map) else None
        subspace = principal_subspace(
            effects.stream if effects else self.statistics,
            channel_map.plan,
            pair_role,
            stream_width=width,
            with_auxiliary=self.with_auxiliary,
            seed=self.seed,
            effects=effects,
        )
        plan = with_indices(channel_map.plan, subspace.kept, pair_role)
        state = project_weights(subspace, plan, teacher, student, channel_map.family, pair_role)
        student.load_state_dict(state, strict=False)
        return RefitStart(stream_maps={width: subspace.stream_map}, explained=subspace.explained, kept=subspace.kept)

    def _project_bottlenecks(self, channel_map: ChannelMap) -> RefitStart:
        """Replace the weights by those of the teacher seen through the principal subspaces of its linear streams."""
        student, pair_role, family = channel_map.student, channel_map.pair_role, channel_map.family
        found = choose_subspaces(
            self.bottleneck_statistics,
            self.bottleneck_importance,
            channel_map.plan,
            pair_role,
            with_auxiliary=self.with_auxiliary,
        )
        plan = with_indices(channel_map.plan, found.kept, pair_role)
        absorbed = absorb_batch_norms(channel_map.teacher, family)
        state = project_state(absorbed, found.stream_maps, plan, student, family, pair_role)
        student.load_state_dict(state, strict=False)
        return RefitStart(stream_maps=found.stream_maps, explained=found.explained, kept=found.kept)

    def _prune(self, channel_map: ChannelMap) -> RefitStart:
        """Replace the weights by those of the most important channels, heads and neurons."""
        student, pair_role = channel_map.student, channel_map.pair_role
        width, *_ = channel_map.stream_widths.values()
        importance = {width: self.statistics.pooled.diagonal(), **self.statistics.importance}
        kept = important_indices(importance, channel_map.plan, pair_role, with_auxiliary=self.with_auxiliary)
        plan = with_indices(channel_map.plan, kept, pair_role)
        state = extract_weights(plan, channel_map.teacher, student, channel_map.family, pair_role)
        student.load_state_dict(state, strict=False)
        return RefitStart(kept=kept)

    @property
    def _family(self) -> SelectionFamily:
        return self.teacher_provider.selection.student_spec.family
