"""Least squares as a step of recovery: the views that fit into memory, the start, the refit, and their record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.memory import available_bytes
from twinbud.core.progress import Progress
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.recovery.batch_norms import renew_statistics
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.classifier import refit_classifier
from twinbud.recovery.compensation import compensate_layers
from twinbud.recovery.least_squares import LayerFit, RefitBatch, refit_layers
from twinbud.recovery.refit_batches import (
    RefitBatchPlan,
    bytes_needed,
    plan_refit_batches,
    refit_batches,
)
from twinbud.recovery.refit_start import RefitStart, Starter
from twinbud.recovery.teacher_provider import TeacherProvider, num_stream_elements
from twinbud.tasks.base import Task
from twinbud.training.unlabelled import UnlabelledImages


@dataclass(frozen=True, kw_only=True)
class Refit:
    """The result of least squares for the student or the auxiliary; empty where it is off.

    Attributes:
        fits: One entry per layer.
        classifier: That of the classifier; None if it is not fitted.
        num_views: Views that were used; fewer than requested where memory is short.
        seconds: Wall time.
        start: The weights that it started from.
    """

    fits: Sequence[LayerFit] = ()
    classifier: LayerFit | None = None
    num_views: int = 0
    seconds: float = 0.0
    start: RefitStart = RefitStart()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the result as tensors, as checkpoints keep it; names of layers are left out."""
        return self.start.tensors() | {
            "fits": _rows(self.fits),
            "classifier_fit": _rows([self.classifier] if self.classifier else []),
            "fit_views": torch.tensor(self.num_views),
            "fit_seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], layers: Sequence[str]) -> Refit:
        """Read what ``tensors`` returned.

        Args:
            tensors: Those and any others.
            layers: Names of the layers in order; not used where least squares was off.
        """
        rows = tensors["fits"].tolist()
        classifier = [LayerFit("classifier", *row) for row in tensors["classifier_fit"].tolist()]
        return cls(
            fits=tuple(LayerFit(name, *row) for name, row in zip(layers, rows, strict=bool(rows))),
            classifier=classifier[0] if classifier else None,
            num_views=int(tensors["fit_views"]),
            seconds=tensors["fit_seconds"].item(),
            start=RefitStart.from_tensors(tensors),
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
        first = self.starter.start(channel_map)
        layers = refitted_layers(channel_map.family, channel_map.student)
        with self.progress.bar(f"least squares for the {role}", len(layers)) as advance:

            def on_layer(done: int) -> None:
                advance(done)
                if done < len(layers):
                    check_stop()

            if self.config.recover_method == "refit":
                fit = partial(refit_layers, position_weights=self.starter.position_weights(channel_map))
            else:
                fit = partial(compensate_layers, method=self.config.recover_method)
            batches = refit_batches(plans, self.images, training)
            fits = fit(first.applied_to(channel_map), batches, bf16=self.bf16, on_layer=on_layer)
            if channel_map.refits_batch_norms:
                images = (batch.images_BCSS for batch in refit_batches(plans, self.images, training))
                renew_statistics(channel_map.student, images, bf16=self.bf16)
        seconds = time.perf_counter() - start
        return Refit(fits=tuple(fits), num_views=num_views, seconds=seconds, start=first)

    def refit_classifier(self, channel_map: ChannelMap, training: TrainingConfig, refit: Refit) -> Refit:
        """Fit the classifier of one network to the teacher's logits, in place, and return ``refit`` with its result."""
        start = time.perf_counter()
        batches = refit_batches(self._plan(training, channel_map.teacher), self.images, training)
        fit = refit_classifier(channel_map.student, channel_map.teacher, batches, bf16=self.bf16)
        return replace(refit, classifier=fit, seconds=refit.seconds + time.perf_counter() - start)

    @cached_property
    def starter(self) -> Starter:
        """Gives student and auxiliary the weights that are refitted; its statistics are of the student's views."""

        def batches() -> Iterator[RefitBatch]:
            plans = self._plan(self.training, self.teacher_provider.open())
            return refit_batches(plans, self.images, self.training)

        return Starter(
            teacher_provider=self.teacher_provider,
            batches=batches,
            task=self.task,
            config=self.config,
            seed=self.training.seed,
            with_auxiliary=self.with_auxiliary,
            bf16=self.bf16,
        )

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
