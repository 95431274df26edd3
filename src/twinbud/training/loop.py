"""The training loop: epochs, the order of samples, their views, and what was measured on the way.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from twinbud.config import TrainingConfig
from twinbud.data.augment import Normalisation, Views, draw_views, see
from twinbud.data.pixels import PixelRows
from twinbud.data.supply import supply
from twinbud.models.twins import Twins
from twinbud.progress import Advance, Progress, SilentProgress, duration
from twinbud.seeds import numpy_stream, stream_seed
from twinbud.training.checkpoint import START, Checkpoint, EpochRecord
from twinbud.training.compilation import EAGER, Compilation
from twinbud.training.keeper import Keeper
from twinbud.training.partners import draw_partners
from twinbud.training.precision import suitable_attention
from twinbud.training.schedule import learning_rate_at, peak_learning_rate, planned_epochs
from twinbud.training.step import Objective, TrainingStep
from twinbud.training.sums import EpochSums

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


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What S learns from.

    Attributes:
        images_NCSS: uint8 pixels, one channel or three: on the device that S trains on or, where they do not fit
            there, elsewhere.
        labels_N: int64 class indices, on the device that S trains on.
        mean: Normalisation of the network's input, one number a channel, for pixels in [0, 1].
        std: Normalisation of the network's input.
    """

    images_NCSS: torch.Tensor | PixelRows
    labels_N: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """Where S trains on them."""
        return self.labels_N.device


def fit(
    twins: Twins,
    data: LabelledImages,
    config: TrainingConfig,
    *,
    bf16: bool = False,
    compilation: Compilation = EAGER,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    test_accuracy: Callable[[], float] | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    label: str = "training",
) -> History:
    """Train S (and let S′ follow) on the labelled images, in place.

    The result depends on the images, the labels, the twins' weights and the settings; the global random state is
    neither read nor changed.

    Args:
        twins: S and S′, on the device to train on.
        data: The labelled images.
        config: Resolved settings (``temperature`` a number).
        bf16: Whether the networks compute in bf16 autocast.
        compilation: Whether the networks are compiled, and the step recorded.
        on_epoch: Called with each epoch's record.
        test_accuracy: Called every ``config.evaluate_every`` epochs, outside the measured time.
        keeper: Goes on from a checkpoint, saves others, and stops when asked to; by default nothing is kept.
        progress: Where to show the bar and the estimate.
        label: What to call the bar.

    Raises:
        TwinbudError: A loss or gradient that is not finite.
        Stopped: The keeper was told to stop; the run can be resumed.
    """
    progress = progress or SilentProgress()
    plan = plan_steps(config, len(data))
    step = TrainingStep(
        twins,
        objective(config, bf16),
        weight_decay=config.weight_decay,
        steps_per_epoch=plan.steps_per_epoch,
        num_samples=len(data),
        compilation=compilation,
        batch_size=config.batch_size,
    )
    devices = [data.device] if data.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        suitable_attention((twins.student, twins.auxiliary), data.device, bf16=bf16),
        progress.bar(label, plan.num_steps) as advance,
    ):
        watch = _Watch(progress, advance, plan, label)
        training = _Training(step, data, config, plan, watch, keeper or Keeper())
        for record in training.epochs():
            if test_accuracy and config.evaluate_every and record.epoch % config.evaluate_every == 0:
                training.records[-1] = replace(record, test_accuracy=test_accuracy())
            on_epoch(training.records[-1])
            training.keep()
    twins.student.eval()
    return History(
        epochs=tuple(training.records),
        num_steps=step.num_steps,
        num_images=plan.epochs * len(data),
        train_seconds=sum(record.seconds for record in training.records),
    )


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


def objective(config: TrainingConfig, bf16: bool) -> Objective:
    """The numbers of equations 1-7 that a step needs."""
    assert config.temperature != "auto", "temperature is resolved before training"
    return Objective(
        alpha=config.alpha,
        beta=config.beta,
        temperature=config.temperature,
        ce_temperature=config.temperature if config.ce_temperature == "tau" else 1.0,
        clip_norm=config.clip_norm,
        bf16=bf16,
        distillation=config.distillation,
    )


def batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    """The order of samples in one epoch, a pure function of (seed, epoch), a batch at a time."""
    order = torch.from_numpy(numpy_stream("order", seed, epoch).permutation(num_samples))
    return order.to(device).split(batch_size)


class _Training:
    """The run in progress: takes epochs one by one, from wherever a checkpoint says."""

    def __init__(
        self,
        step: TrainingStep,
        data: LabelledImages,
        config: TrainingConfig,
        plan: StepPlan,
        watch: _Watch,
        keeper: Keeper,
    ) -> None:
        self.step, self.data, self.config, self.plan = step, data, config, plan
        self.watch, self.keeper = watch, keeper
        self.normalise = Normalisation.on(data.device, data.mean, data.std)
        self.position = START
        checkpoint = keeper.found
        if checkpoint is not None:
            self.position = checkpoint.position
            step.restore(checkpoint.tensors, self.position.num_steps)
        self.records = list(self.position.records)

    def epochs(self) -> Iterator[EpochRecord]:
        """Take the epochs that are missing; each is in ``records`` when it is yielded."""
        for epoch in range(self.position.epoch, self.plan.epochs + 1):
            self.step.twins.student.train()
            self.records.append(self._epoch(epoch))
            self.position = replace(START, num_steps=self.step.num_steps, epoch=epoch + 1, records=tuple(self.records))
            yield self.records[-1]

    def keep(self) -> None:
        """Save a checkpoint after an epoch, if one is due."""
        self.position = replace(self.position, records=tuple(self.records))
        self.keeper.keep(self._checkpoint, self.step.num_steps, is_last=self.position.epoch > self.plan.epochs)

    def _checkpoint(self) -> Checkpoint:
        self.step.check()
        return Checkpoint(position=self.position, tensors=self.step.tensors())

    def _epoch(self, epoch: int) -> EpochRecord:
        data, config, begun = self.data, self.config, self.position
        start = time.perf_counter() - begun.seconds
        views = draw_views(config.seed, epoch, len(data), crop_scale=config.crop_scale, flip=config.flip)
        views = views.to(data.device)
        sums = EpochSums(data.device, begun.sums, has_skd=self.step.targets.are_soft)
        order = batches(len(data), config.batch_size, config.seed, epoch, data.device)[begun.batch :]
        if self.step.targets.need_partners:
            order = self._with_partners(order, epoch)
        images = supply(data.images_NCSS, order, data.device)
        for batch, (rows, pixels) in enumerate(zip(order, images, strict=True), start=begun.batch + 1):
            self._step(rows, pixels, views, sums)
            self.watch.stepped(self.step.num_steps, epoch, sums)
            if self.keeper.stopping:
                self.position = replace(
                    begun,
                    num_steps=self.step.num_steps,
                    batch=batch,
                    sums=sums.state(),
                    seconds=time.perf_counter() - start,
                )
                self.keeper.stop(self._checkpoint, self.step.num_steps)
        self.step.check()
        means = sums.means()  # waits for the device, so the clock is read after it
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

    def _with_partners(self, order: Sequence[torch.Tensor], epoch: int) -> tuple[torch.Tensor, ...]:
        """Each batch of rows, followed by as many partners of theirs."""
        data = self.data
        partners_N = draw_partners(data.labels_N.cpu(), self.config.seed, epoch).to(data.device)
        return tuple(torch.cat([rows, partners_N[rows]]) for rows in order)

    def _step(self, rows: torch.Tensor, pixels: torch.Tensor, views: Views, sums: EpochSums) -> None:
        """One step on the images of ``rows``, which end with the partners where the variant asks for them."""
        torch.manual_seed(stream_seed("drop-path", self.config.seed, self.step.num_steps))
        parts = 2 if self.step.targets.need_partners else 1
        images_BCSS, *partners = self.normalise(see(pixels, views[rows])).chunk(parts)
        rows_B = rows[: len(images_BCSS)]
        rate = self._rate(self.step.num_steps)
        sums.add(self.step(images_BCSS, self.data.labels_N[rows_B], rate, rows_B, *partners), len(rows_B))


class _Watch:
    """Shows loss, accuracy and time left once a second, and says after ten steps how long the whole will take."""

    def __init__(self, progress: Progress, advance: Advance, plan: StepPlan, label: str) -> None:
        self.progress, self.advance, self.plan, self.label = progress, advance, plan, label
        self.start = self.last_shown = time.perf_counter()
        self.count = 0

    def stepped(self, done: int, epoch: int, sums: EpochSums) -> None:
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
            means = sums.means()
            text = f"epoch {epoch}/{self.plan.epochs} · loss {means['loss']:.3f} · accuracy {means['accuracy']:.0%}"
            self.advance(done, text)
