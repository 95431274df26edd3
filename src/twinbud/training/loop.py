"""The training loop: S learns from labelled images, epoch by epoch, and S′ follows.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from twinbud.config import TrainingConfig
from twinbud.data.augment import Views
from twinbud.data.pixels import PixelRows
from twinbud.models.twins import Twins
from twinbud.progress import Progress, SilentProgress
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.compilation import EAGER, Compilation
from twinbud.training.epochs import Epochs, History, plan_steps, untouched_chance
from twinbud.training.keeper import Keeper
from twinbud.training.partners import draw_partners
from twinbud.training.precision import suitable_attention
from twinbud.training.step import Objective, TrainingStep
from twinbud.training.sums import EpochSums


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
        layer_decay=config.layer_decay,
        steps_per_epoch=plan.steps_per_epoch,
        num_samples=len(data),
        compilation=compilation,
        batch_size=config.batch_size,
    )
    with (
        untouched_chance(data.device),
        suitable_attention((twins.student, twins.auxiliary), data.device, bf16=bf16),
        progress.bar(label, plan.num_steps) as advance,
    ):
        training = _Training(
            step, data, config, keeper=keeper or Keeper(), progress=progress, label=label, advance=advance
        )
        for record in training.run():
            if test_accuracy and config.evaluate_every and record.epoch % config.evaluate_every == 0:
                training.records[-1] = replace(record, test_accuracy=test_accuracy())
            on_epoch(training.records[-1])
            training.keep()
    twins.student.eval()
    return training.history()


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


_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Sample numbers, images and, where the variant asks for it, for each sample another of its class."""


class _Training(Epochs[_Batch, EpochSums]):
    """Epochs on labelled images."""

    step: TrainingStep
    data: LabelledImages

    def begin(self) -> None:
        """S in training mode, after whatever a test pass has made of it."""
        self.step.twins.student.train()

    def open_sums(self, state: tuple[float, ...]) -> EpochSums:
        """Losses and right answers."""
        return EpochSums(self.data.device, state, has_skd=self.step.targets.are_soft)

    def batches(self, order: Sequence[torch.Tensor], views: Views, epoch: int) -> Iterator[_Batch]:
        """See Epochs."""
        partners: Iterable[torch.Tensor | None] = itertools.repeat(None, len(order))
        if self.step.targets.need_partners:
            partners_N = draw_partners(self.data.labels_N.cpu(), self.config.seed, epoch).to(self.data.device)
            partners = self.seen([partners_N[rows] for rows in order], views)
        yield from zip(order, self.seen(order, views), partners, strict=True)

    def take(self, batch: _Batch, learning_rate: float, sums: EpochSums) -> None:
        """See Epochs."""
        rows_B, images_BCSS, partners_BCSS = batch
        labels_B = self.data.labels_N[rows_B]
        sums.add(self.step(images_BCSS, labels_B, learning_rate, rows_B, partners_BCSS), len(rows_B))
