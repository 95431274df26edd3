"""Least squares as a step of recovery: the views that fit into memory, the subspace, the refit, and their record.

Shape legend: D channels of the teacher's residual stream, d of the student's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.memory import available_bytes
from twinbud.core.progress import Progress
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.rules import Indices
from twinbud.models.selection import extract_weights
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.classifier import refit_classifier
from twinbud.recovery.compensation import compensate_layers
from twinbud.recovery.importance import important_indices, with_indices
from twinbud.recovery.least_squares import NO_WEIGHTS, LayerFit, refit_layers
from twinbud.recovery.logit_effects import LogitEffects, measure_effects
from twinbud.recovery.refit_batches import (
    RefitBatchPlan,
    bytes_needed,
    plan_refit_batches,
    refit_batches,
)
from twinbud.recovery.stream_statistics import StreamStatistics, measure_stream
from twinbud.recovery.subspace import principal_subspace, project_weights
from twinbud.recovery.teacher_provider import TeacherProvider, num_positions, num_stream_elements
from twinbud.tasks.base import Task
from twinbud.training.unlabelled import UnlabelledImages

_KEPT = "kept."


@dataclass(frozen=True, kw_only=True)
class Refit:
    """The result of least squares for the student or the auxiliary; empty where it is off.

    Attributes:
        fits: One entry per layer.
        classifier: That of the classifier; None if it is not fitted.
        num_views: Views that were used; fewer than requested where memory is short.
        seconds: Wall time.
        stream_map: (D, d) float32, see ``ChannelMap``; None for channels.
        stream_explained: Share of the teacher's normalized stream inside the subspace; None for channels.
        kept: Indices of the teacher that were chosen by importance, by width; empty for those of the selection.
    """

    fits: Sequence[LayerFit] = ()
    classifier: LayerFit | None = None
    num_views: int = 0
    seconds: float = 0.0
    stream_map: torch.Tensor | None = field(default=None, compare=False)
    stream_explained: float | None = None
    kept: Mapping[str, Indices] = field(default_factory=dict[str, Indices])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the result as tensors, as checkpoints keep it; names of layers are left out."""
        tensors = {
            "fits": _rows(self.fits),
            "classifier_fit": _rows([self.classifier] if self.classifier else []),
            "fit_views": torch.tensor(self.num_views),
            "fit_seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        if self.stream_map is not None:
            tensors["stream_map"] = self.stream_map
            tensors["stream_explained"] = torch.tensor(self.stream_explained, dtype=torch.float64)
        return tensors | {_KEPT + name: torch.tensor(indices) for name, indices in self.kept.items()}

    def applied_to(self, channel_map: ChannelMap) -> ChannelMap:
        """Return the channel map with the subspace of this result, if there is one."""
        plan = with_indices(channel_map.plan, self.kept, channel_map.pair_role)
        stream_map = None if self.stream_map is None else self.stream_map.to(channel_map.device)
        return replace(channel_map, plan=plan, stream_map=stream_map)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], layers: Sequence[str]) -> Refit:
        """Read what ``tensors`` returned.

        Args:
            tensors: Those and any others.
            layers: Names of the layers in order; not used where least squares was off.
        """
        rows = tensors["fits"].tolist()
        classifier = [LayerFit("classifier", *row) for row in tensors["classifier_fit"].tolist()]
        has_subspace = "stream_map" in tensors
        return cls(
            fits=tuple(LayerFit(name, *row) for name, row in zip(layers, rows, strict=bool(rows))),
            classifier=classifier[0] if classifier else None,
            num_views=int(tensors["fit_views"]),
            seconds=tensors["fit_seconds"].item(),
            stream_map=tensors["stream_map"] if has_subspace else None,
            stream_explained=tensors["stream_explained"].item() if has_subspace else None,
            kept={
                name.removeprefix(_KEPT): tuple(indices.tolist())
                for name, indices in tensors.items()
                if name.startswith(_KEPT)
            },
        )


def _rows(fits: Sequence[LayerFit]) -> torch.Tensor:
    """Return (number of fits, 3) float64: before, after and ridge of each."""
    return torch.tensor([[fit.before, fit.after, fit.ridge] for fit in fits], dtype=torch.float64).reshape(-1, 3)


def refitted_layers(family: SelectionFamily, student: TimmModel) -> list[str]:
    """Return the full names of the layers that least squares refits, in order."""
    recovery = family.require_recovery()
    blocks = family.blocks(student).items()
    return [
        recovery.layer_name(student, name, linear.name)
        for name, block in blocks
        for linear in recovery.linear_maps(block)
    ]


@dataclass(frozen=True, kw_only=True)
class Refitter:
    """Least squares for the student and the auxiliary of a run, which share the statistics of the teacher.

    Attributes:
        teacher_provider: The teacher.
        images: Images for both.
        task: What the teacher's logits mean.
        config: Settings of recovery.
        training: The student's settings; they give seed and augmentation of the images that the statistics are of.
        with_auxiliary: Whether there is an auxiliary with weights of its own.
        bf16: Whether the networks compute in bf16 autocast.
        progress: Shows a bar.
    """

    teacher_provider: TeacherProvider
    images: UnlabelledImages
    task: Task
    config: RecoveryConfig
    training: TrainingConfig
    with_auxiliary: bool
    bf16: bool
    progress: Progress

    def refit(self, channel_map: ChannelMap, training: TrainingConfig, check_stop: Callable[[], None]) -> Refit:
        """Refit one network in place.

        Args:
            channel_map: The student or the auxiliary, and the teacher.
            training: Its settings, which give seed and augmentation.
            check_stop: Called after each layer but the last; may raise ``Stopped``.

        Raises:
            TwinbudError: Memory is too short, a feature is not finite, or the family supports no subspace.
        """
        start, role = time.perf_counter(), channel_map.pair_role
        plans = self._plan(training, channel_map.teacher)
        require_memory(bytes_needed(plans, self._num_elements(channel_map.teacher), bf16=self.bf16), channel_map.device)
        num_views = sum(len(plan.rows) for plan in plans)
        self._note_missing_views(num_views)
        refit = self._start(channel_map)
        layers = refitted_layers(channel_map.family, channel_map.student)
        with self.progress.bar(f"least squares for the {role}", len(layers)) as advance:

            def on_layer(done: int) -> None:
                advance(done)
                if done < len(layers):
                    check_stop()

            method = self.config.recover_method
            if method == "refit":
                weights = self.effects.position_weights if self._uses_effects(channel_map) else NO_WEIGHTS
                fit = partial(refit_layers, position_weights=weights)
            else:
                fit = partial(compensate_layers, method=method)
            batches = refit_batches(plans, self.images, training)
            fits = fit(refit.applied_to(channel_map), batches, bf16=self.bf16, on_layer=on_layer)
        return replace(refit, fits=tuple(fits), num_views=num_views, seconds=time.perf_counter() - start)

    def refit_classifier(self, channel_map: ChannelMap, training: TrainingConfig, refit: Refit) -> Refit:
        """Fit the classifier of one network to the teacher's logits, in place, and return ``refit`` with its result."""
        start = time.perf_counter()
        batches = refit_batches(self._plan(training, channel_map.teacher), self.images, training)
        fit = refit_classifier(channel_map.student, channel_map.teacher, batches, bf16=self.bf16)
        return replace(refit, classifier=fit, seconds=refit.seconds + time.perf_counter() - start)

    @cached_property
    def statistics(self) -> StreamStatistics:
        """Statistics of the teacher's stream, on the images that the student is refitted on."""
        teacher = self.teacher_provider.open()
        batches = refit_batches(self._plan(self.training, teacher), self.images, self.training)
        return measure_stream(teacher, self._family, batches, bf16=self.bf16)

    @cached_property
    def effects(self) -> LogitEffects:
        """What changes the teacher's logits, on the same images."""
        teacher = self.teacher_provider.open()
        return measure_effects(
            teacher,
            self._family,
            refit_batches(self._plan(self.training, teacher), self.images, self.training),
            task=self.task,
            num_positions=num_positions(teacher, self._family.require_recovery(), self.training.image_size),
            seed=self.training.seed,
            bf16=self.bf16,
        )

    def _uses_effects(self, channel_map: ChannelMap) -> bool:
        """Return whether errors count by what they change in the logits."""
        return self.config.recovers_by_logits and self._uses_subspace(channel_map)

    def _start(self, channel_map: ChannelMap) -> Refit:
        """Give the student the weights that are to be refitted, if they are other ones than those selected."""
        stream_width = channel_map.recovery.stream_width(channel_map.blocks[0].name)
        if self._uses_subspace(channel_map):
            return self._project(channel_map, stream_width)
        return Refit() if self.config.recover_method == "refit" else self._prune(channel_map, stream_width)

    def _uses_subspace(self, channel_map: ChannelMap) -> bool:
        """Return whether the subspace is asked for or, with ``auto``, possible: whole heads that no rule chooses."""
        if self.config.recover_stream != "auto":
            return self.config.uses_subspace
        plan = self.teacher_provider.selection.plan
        is_free = (plan.attention, plan.rule, self.config.recover_method) == ("heads", "uniform", "refit")
        return is_free and channel_map.recovery.has_single_stream(channel_map.teacher)

    def _project(self, channel_map: ChannelMap, stream_width: str) -> Refit:
        """Replace the student's weights by those of the teacher seen through the principal subspace."""
        teacher, student, pair_role = channel_map.teacher, channel_map.student, channel_map.pair_role
        subspace = principal_subspace(
            self.statistics,
            channel_map.plan,
            pair_role,
            stream_width=stream_width,
            with_auxiliary=self.with_auxiliary,
            seed=self.training.seed,
            effects=self.effects if self._uses_effects(channel_map) else None,
        )
        plan = with_indices(channel_map.plan, subspace.kept, pair_role)
        state = project_weights(subspace, plan, teacher, student, channel_map.family, pair_role)
        student.load_state_dict(state, strict=False)
        return Refit(stream_map=subspace.stream_map, stream_explained=subspace.explained, kept=subspace.kept)

    def _prune(self, channel_map: ChannelMap, stream_width: str) -> Refit:
        """Replace the student's weights by those of the most important channels, heads and neurons."""
        student, pair_role = channel_map.student, channel_map.pair_role
        importance = {stream_width: self.statistics.pooled.diagonal(), **self.statistics.importance}
        kept = important_indices(importance, channel_map.plan, pair_role, with_auxiliary=self.with_auxiliary)
        plan = with_indices(channel_map.plan, kept, pair_role)
        state = extract_weights(plan, channel_map.teacher, student, channel_map.family, pair_role)
        student.load_state_dict(state, strict=False)
        return Refit(kept=kept)

    @property
    def _family(self) -> SelectionFamily:
        return self.teacher_provider.selection.student_spec.family

    def _num_elements(self, teacher: TimmModel) -> int:
        return num_stream_elements(teacher, self._family.require_recovery(), self.training.image_size)

    def _plan(self, training: TrainingConfig, teacher: TimmModel) -> list[RefitBatchPlan]:
        return list(plan_refit_batches(self.config, training, len(self.images), self._num_elements(teacher)))

    def _note_missing_views(self, num_views: int) -> None:
        requested = self.config.recover_views * len(self.images)
        if num_views < requested:
            self.progress.note(
                f"least squares uses {num_views:,} of {requested:,} views, which fill its memory limit of"
                f" {self.config.recover_memory:g} GiB (--recover-memory)"
            )


def require_memory(num_bytes: int, device: torch.device) -> None:
    """Require free memory before least squares runs out of it.

    Raises:
        TwinbudError: Less than ``num_bytes`` is free.
    """
    free = available_bytes(device)
    if num_bytes > free:
        raise TwinbudError(
            f"least squares needs {num_bytes / 2**20:,.1f} MiB of memory, but {free / 2**20:,.1f} MiB are free",
            where="--recover-memory",
            fix="Lower it, which uses fewer views, or lower --image-size",
        )
