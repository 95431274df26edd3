"""The loop over epochs and batches: order of samples, augmentation, learning rate, running means and checkpoints.

Subclasses train on a batch: ``training.fit`` with labels, ``recovery.stage`` without.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from twinbud.config.schema import TrainingConfig
from twinbud.core.progress import Advance, Progress, duration
from twinbud.core.rng import stream_seed
from twinbud.data.augment import Views, apply_views
from twinbud.data.image_store import ImageSubset
from twinbud.data.prefetch import prefetch
from twinbud.data.preprocessing import Preprocessing
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_plan import batches, draw_training_views
from twinbud.training.running_means import RunningMeans
from twinbud.training.schedule import learning_rate_at, peak_learning_rate, planned_epochs

_ESTIMATE_AFTER = 10
_SHOW_EVERY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class History:
    """The epochs of a phase and their cost.

    Attributes:
        epochs: One record an epoch.
        num_steps: Optimizer steps taken.
        num_images: Images trained on, each counted once per epoch.
        train_seconds: Wall time of the epochs without test passes.
        peak_memory_mib: Peak memory of the process or the GPU in MiB, where it is kept with the history; else 0.
    """

    epochs: tuple[EpochRecord, ...] = ()
    num_steps: int = 0
    num_images: int = 0
    train_seconds: float = 0.0
    peak_memory_mib: float = 0.0

    @property
    def best_test_pass(self) -> EpochRecord | None:
        """The epoch with the highest test accuracy, the first of equals; None without test passes."""
        tested = [record for record in self.epochs if record.test_accuracy is not None]
        return max(tested, key=lambda record: record.test_accuracy or 0.0, default=None)

    def after(self, earlier: History) -> History:
        """Return these epochs with the cost of an earlier phase added."""
        return replace(
            self,
            num_steps=earlier.num_steps + self.num_steps,
            num_images=earlier.num_images + self.num_images,
            train_seconds=earlier.train_seconds + self.train_seconds,
        )


class Images(Protocol):
    """The images of a phase."""

    @property
    def images_NCSS(self) -> torch.Tensor | ImageSubset:  # noqa: N802
        """uint8 pixels with 1 or 3 channels: on ``device``, or on the CPU if they do not fit there."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """Conversion of decoded images to the network's input."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        ...

    def __len__(self) -> int:
        """Return N."""
        ...


@contextmanager
def preserved_rng_state(device: torch.device) -> Iterator[None]:
    """Restore the global random state of torch when the context ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Step(Protocol):
    """Networks and optimizer, updated step by step."""

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that the next step depends on, by name."""
        ...

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """Restore the tensors and the number of steps of a checkpoint."""
        ...

    def check(self) -> None:
        """Raise TwinbudError if a step was not finite; waits for the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Epochs, and optimizer steps in each; the last, smaller batch of an epoch is used."""

    epochs: int
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps in total."""
        return self.epochs * self.steps_per_epoch


def plan_steps(config: TrainingConfig, num_samples: int) -> StepPlan:
    """Return the epochs and steps of ``config`` on ``num_samples`` images."""
    steps_per_epoch = -(-num_samples // config.batch_size)
    return StepPlan(
        epochs=planned_epochs(config.epochs, config.min_steps, steps_per_epoch), steps_per_epoch=steps_per_epoch
    )


BatchT = TypeVar("BatchT")


class EpochLoop(ABC, Generic[BatchT]):
    """Trains epoch by epoch, from the start or from a checkpoint.

    Args:
        step: The networks and their optimizer.
        data: The images.
        config: Decides order, augmentation, learning rate and drop path.
        checkpoints: Holds the checkpoint to continue from, saves others, and says when to stop.
        progress: Where to report the estimated time.
        label: Name of the phase in reports.
        advance: Moves the progress bar.
    """

    def __init__(
        self,
        step: Step,
        data: Images,
        config: TrainingConfig,
        *,
        checkpoints: CheckpointManager,
        progress: Progress,
        label: str,
        advance: Advance,
    ) -> None:
        self.step, self.data, self.config, self.checkpoints = step, data, config, checkpoints
        self.plan = plan_steps(config, len(data))
        self.reporter = _ProgressReporter(progress, advance, self.plan, label)
        self.normalize = data.preprocessing.normalization(data.device)
        self.position = START
        checkpoint = checkpoints.checkpoint
        if checkpoint is not None:
            self.position = checkpoint.position
            step.restore(checkpoint.tensors, self.position.num_steps)
        self.records = list(self.position.records)

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Names of the running means, as fields of ``EpochRecord``."""

    def start_epoch(self) -> None:
        """Prepare the networks for an epoch."""

    @abstractmethod
    def epoch_batches(self, order: Sequence[torch.Tensor], views: Views, epoch: int) -> Iterator[BatchT]:
        """Yield the batches of an epoch.

        Args:
            order: (B,) int64 sample numbers of each batch, on the device.
            views: Augmentation of all N samples in this epoch, one row each, on the device.
            epoch: From 1.
        """

    @abstractmethod
    def train_batch(self, batch: BatchT, learning_rate: float, running_means: RunningMeans) -> None:
        """Take one optimizer step and add its measures to the running means.

        Args:
            batch: One of ``epoch_batches``.
            learning_rate: That of this step, before the factor of each parameter group.
            running_means: Takes for each of ``measures`` the float64 sum over the images of the batch.
        """

    def epochs(self) -> Iterator[EpochRecord]:
        """Train the remaining epochs; yield the record of each, which is then the last of ``records``."""
        for epoch in range(self.position.epoch, self.plan.epochs + 1):
            self.start_epoch()
            self.records.append(self._train_epoch(epoch))
            self.position = replace(START, num_steps=self.step.num_steps, epoch=epoch + 1, records=tuple(self.records))
            yield self.records[-1]

    def stop_requested(self) -> bool:
        """Return whether to stop after the current step."""
        return self.checkpoints.stop_requested

    def save_if_due(self) -> None:
        """Save a checkpoint after an epoch, if one is due; raise Stopped if a stop was requested."""
        self.position = replace(self.position, records=tuple(self.records))
        if self.stop_requested():
            self.checkpoints.save_and_stop(self._checkpoint, self.step.num_steps)
        is_last = self.position.epoch > self.plan.epochs
        self.checkpoints.save_if_due(self._checkpoint, is_last=is_last)

    def history(self) -> History:
        """Return all epochs and their cost."""
        return History(
            epochs=tuple(self.records),
            num_steps=self.step.num_steps,
            num_images=self.plan.epochs * len(self.data),
            train_seconds=sum(record.seconds for record in self.records),
        )

    def augmented_batches(
        self, samples: Sequence[torch.Tensor], views: Views, order: Sequence[torch.Tensor] | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the augmented, normalized images (B, 3, S, S), float32 on the device, of each batch.

        Args:
            samples: (B,) int64 sample numbers of each batch.
            views: Augmentation, one row each.
            order: (B,) int64 rows of ``views`` for each batch; by default the sample numbers.
        """
        data, order = self.data, samples if order is None else order
        for rows, pixels_BCSS in zip(order, prefetch(data.images_NCSS, samples, data.device), strict=True):
            yield self.normalize(apply_views(pixels_BCSS, views[rows]))

    def _checkpoint(self) -> Checkpoint:
        self.step.check()
        return Checkpoint(position=self.position, tensors=self.step.tensors())

    def _train_epoch(self, epoch: int) -> EpochRecord:
        data, config, begun = self.data, self.config, self.position
        start = time.perf_counter() - begun.seconds
        views = draw_training_views(config, epoch, len(data))
        running_means = RunningMeans(self.measures, data.device, begun.running_means)
        order = batches(len(data), config.batch_size, config.seed, epoch, data.device)[begun.batch :]
        augmented = self.epoch_batches(order, views.to(data.device), epoch)
        for number, batch in enumerate(augmented, start=begun.batch + 1):
            torch.manual_seed(stream_seed("drop-path", config.seed, self.step.num_steps))
            self.train_batch(batch, self._learning_rate(self.step.num_steps), running_means)
            self.reporter.update(self.step.num_steps, epoch, running_means)
            if self.stop_requested():
                self.position = replace(
                    begun,
                    num_steps=self.step.num_steps,
                    batch=number,
                    running_means=running_means.state(),
                    seconds=time.perf_counter() - start,
                )
                self.checkpoints.save_and_stop(self._checkpoint, self.step.num_steps)
        self.step.check()
        means = running_means.means()  # waits for the device, so the clock is read after it
        return EpochRecord(
            epoch=epoch,
            step=self.step.num_steps,
            learning_rate=self._learning_rate(self.step.num_steps - 1),
            **means,
            seconds=time.perf_counter() - start,
        )

    def _learning_rate(self, step: int) -> float:
        config = self.config
        return learning_rate_at(
            step,
            num_steps=self.plan.num_steps,
            warmup=config.warmup,
            peak=peak_learning_rate(config.learning_rate, config.batch_size),
            final=config.final_learning_rate,
        )


class _ProgressReporter:
    """Shows loss and accuracy once a second, and after ten steps the estimated time of the whole phase."""

    def __init__(self, progress: Progress, advance: Advance, plan: StepPlan, label: str) -> None:
        self.progress, self.advance, self.plan, self.label = progress, advance, plan, label
        self.start = self.last_shown = time.perf_counter()
        self.count = 0

    def update(self, done: int, epoch: int, running_means: RunningMeans) -> None:
        now = time.perf_counter()
        self.count += 1
        if self.count == 1:
            self.start = now  # the first step also pays for warming up
        if self.count == _ESTIMATE_AFTER + 1 and self.plan.num_steps > 2 * _ESTIMATE_AFTER:
            each = (now - self.start) / _ESTIMATE_AFTER
            whole = duration(each * self.plan.num_steps)
            self.progress.note(f"{self.label}: {self.plan.num_steps} steps of {each:.2f} s, about {whole} in all")
        if now - self.last_shown >= _SHOW_EVERY_SECONDS or done == self.plan.num_steps:
            self.last_shown = now
            means = running_means.means()
            accuracy = f" · accuracy {means['accuracy']:.0%}" if "accuracy" in means else ""
            self.advance(done, f"epoch {epoch}/{self.plan.epochs} · loss {means['loss']:.3f}{accuracy}")
