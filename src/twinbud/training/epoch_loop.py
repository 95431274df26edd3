"""Epochs: the order of samples, their views, what was measured on the way, and where a stop or a crash finds it.

What is done with a batch is said by those who inherit: ``loop`` trains on labels, ``twinbud.recovery`` without.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from twinbud.config.schema import TrainingConfig
from twinbud.core.progress import Advance, Progress, duration
from twinbud.core.rng import numpy_stream, stream_seed
from twinbud.data.augment import Views, apply_views, draw_views
from twinbud.data.image_store import ImageSubset
from twinbud.data.prefetch import prefetch
from twinbud.data.preprocessing import Preprocessing
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.schedule import learning_rate_at, peak_learning_rate, planned_epochs

_ESTIMATE_AFTER = 10
_SHOW_EVERY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class History:
    """What training did.

    Attributes:
        epochs: One record an epoch.
        num_steps: Optimiser steps taken.
        num_images: Images seen, counting each once an epoch.
        train_seconds: Wall time of the epochs, test passes left out.
    """

    epochs: tuple[EpochRecord, ...]
    num_steps: int
    num_images: int
    train_seconds: float


class Images(Protocol):
    """What a network learns from."""

    @property
    def images_NCSS(self) -> torch.Tensor | ImageSubset:  # noqa: N802
        """uint8 pixels, one channel or three: on ``device`` or, where they do not fit there, elsewhere."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """From decoded images to the network's input."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        ...

    def __len__(self) -> int:
        """N."""
        ...


@contextmanager
def preserved_rng_state(device: torch.device) -> Iterator[None]:
    """While this lasts, the global random state may be seeded at will; it is put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Step(Protocol):
    """Carries networks and optimiser from one step to the next."""

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, but for ``num_steps``."""
        ...

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """Go back to where these were taken."""
        ...

    def check(self) -> None:
        """Raise TwinbudError after a step that was not finite; waits for the device."""
        ...


class RunningMeans(Protocol):
    """What an epoch adds up to."""

    def state(self) -> tuple[float, ...]:
        """What a checkpoint needs to go on from here."""
        ...

    def means(self) -> dict[str, Any]:
        """Means over the images so far, as an ``EpochRecord`` names them; waits for the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How many epochs and steps a number of samples makes; the last, short batch of an epoch is kept."""

    epochs: int
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch


def plan_steps(config: TrainingConfig, num_samples: int) -> StepPlan:
    """The steps that ``config`` asks for on ``num_samples`` labelled images."""
    steps_per_epoch = -(-num_samples // config.batch_size)
    return StepPlan(
        epochs=planned_epochs(config.epochs, config.min_steps, steps_per_epoch), steps_per_epoch=steps_per_epoch
    )


def batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    """The order of samples in one epoch, a pure function of (seed, epoch), a batch at a time."""
    order = torch.from_numpy(numpy_stream("order", seed, epoch).permutation(num_samples))
    return order.to(device).split(batch_size)


BatchT = TypeVar("BatchT")
RunningMeansT = TypeVar("RunningMeansT", bound=RunningMeans)


class Epochs(ABC, Generic[BatchT, RunningMeansT]):
    """A phase in progress: takes epochs one by one, from wherever a checkpoint says.

    Args:
        step: What takes the steps.
        data: The images.
        config: Order, views, learning rate and drop path follow from it.
        checkpoints: Goes on from a checkpoint, saves others, and stops when asked to.
        progress: Where to report.
        label: What to call the phase.
        advance: The bar.
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
        self.watch = _Watch(progress, advance, self.plan, label)
        self.normalize = data.preprocessing.normalization(data.device)
        self.position = START
        checkpoint = checkpoints.found
        if checkpoint is not None:
            self.position = checkpoint.position
            step.restore(checkpoint.tensors, self.position.num_steps)
        self.records = list(self.position.records)

    @abstractmethod
    def begin(self) -> None:
        """Before each epoch."""

    @abstractmethod
    def open_running_means(self, state: tuple[float, ...]) -> RunningMeansT:
        """The sums of an epoch, from its start or from where a checkpoint was taken."""

    @abstractmethod
    def batches(self, order: Sequence[torch.Tensor], views: Views, epoch: int) -> Iterator[BatchT]:
        """What ``take`` wants of each batch."""

    @abstractmethod
    def take(self, batch: BatchT, learning_rate: float, running_means: RunningMeansT) -> None:
        """Take one step and count it."""

    def run(self) -> Iterator[EpochRecord]:
        """Take the epochs that are missing; each is in ``records`` when it is yielded."""
        for epoch in range(self.position.epoch, self.plan.epochs + 1):
            self.begin()
            self.records.append(self._epoch(epoch))
            self.position = replace(START, num_steps=self.step.num_steps, epoch=epoch + 1, records=tuple(self.records))
            yield self.records[-1]

    def keep(self) -> None:
        """Save a checkpoint after an epoch, if one is due."""
        self.position = replace(self.position, records=tuple(self.records))
        self.checkpoints.keep(self._checkpoint, self.step.num_steps, is_last=self.position.epoch > self.plan.epochs)

    def history(self) -> History:
        """What was done."""
        return History(
            epochs=tuple(self.records),
            num_steps=self.step.num_steps,
            num_images=self.plan.epochs * len(self.data),
            train_seconds=sum(record.seconds for record in self.records),
        )

    def seen(self, order: Sequence[torch.Tensor], views: Views) -> Iterator[torch.Tensor]:
        """The batches of an epoch, as the networks see them."""
        data = self.data
        for rows, pixels_BCSS in zip(order, prefetch(data.images_NCSS, order, data.device), strict=True):
            yield self.normalize(apply_views(pixels_BCSS, views[rows]))

    def _checkpoint(self) -> Checkpoint:
        self.step.check()
        return Checkpoint(position=self.position, tensors=self.step.tensors())

    def _epoch(self, epoch: int) -> EpochRecord:
        data, config, begun = self.data, self.config, self.position
        start = time.perf_counter() - begun.seconds
        views = draw_views(config.seed, epoch, len(data), crop_scale=config.crop_scale, flip=config.flip)
        running_means = self.open_running_means(begun.running_means)
        order = batches(len(data), config.batch_size, config.seed, epoch, data.device)[begun.batch :]
        batches_of_epoch = self.batches(order, views.to(data.device), epoch)
        for number, batch in enumerate(batches_of_epoch, start=begun.batch + 1):
            torch.manual_seed(stream_seed("drop-path", config.seed, self.step.num_steps))
            self.take(batch, self._rate(self.step.num_steps), running_means)
            self.watch.stepped(self.step.num_steps, epoch, running_means)
            if self.checkpoints.stop_requested:
                self.position = replace(
                    begun,
                    num_steps=self.step.num_steps,
                    batch=number,
                    running_means=running_means.state(),
                    seconds=time.perf_counter() - start,
                )
                self.checkpoints.stop(self._checkpoint, self.step.num_steps)
        self.step.check()
        means = running_means.means()  # waits for the device, so the clock is read after it
        return EpochRecord(
            epoch=epoch,
            step=self.step.num_steps,
            learning_rate=self._rate(self.step.num_steps - 1),
            **means,
            seconds=time.perf_counter() - start,
        )

    def _rate(self, step: int) -> float:
        config = self.config
        return learning_rate_at(
            step,
            num_steps=self.plan.num_steps,
            warmup=config.warmup,
            peak=peak_learning_rate(config.learning_rate, config.batch_size),
            final=config.final_learning_rate,
        )


class _Watch:
    """Shows loss, accuracy and time left once a second, and says after ten steps how long the whole will take."""

    def __init__(self, progress: Progress, advance: Advance, plan: StepPlan, label: str) -> None:
        self.progress, self.advance, self.plan, self.label = progress, advance, plan, label
        self.start = self.last_shown = time.perf_counter()
        self.count = 0

    def stepped(self, done: int, epoch: int, running_means: RunningMeans) -> None:
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
