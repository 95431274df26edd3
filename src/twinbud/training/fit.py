"""The training loop: S learns from labelled images, epoch by epoch, and S′ follows.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from twinbud.config.schema import TrainingConfig
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.augment import Views
from twinbud.data.image_store import ImageSubset
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.student_pair import StudentPair
from twinbud.training.amp import suitable_attention
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import EAGER, Compilation
from twinbud.training.epoch_loop import Epochs, History, plan_steps, preserved_rng_state
from twinbud.training.running_means import EpochMeans
from twinbud.training.same_class_pairs import draw_same_class_pairs
from twinbud.training.train_step import Objective, TrainingStep


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What S learns from.

    Attributes:
        images_NCSS: uint8 pixels, one channel or three: on the device that S trains on or, where they do not fit
            there, elsewhere.
        labels_N: int64 class indices, on the device that S trains on.
        preprocessing: From decoded images to the network's input.
    """

    images_NCSS: torch.Tensor | ImageSubset
    labels_N: torch.Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """Where S trains on them."""
        return self.labels_N.device


def fit(
    student_pair: StudentPair,
    data: LabelledImages,
    config: TrainingConfig,
    *,
    bf16: bool = False,
    compilation: Compilation = EAGER,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    test_accuracy: Callable[[], float] | None = None,
    checkpoints: CheckpointManager | None = None,
    progress: Progress | None = None,
    label: str = "training",
) -> History:
    """Train S (and let S′ follow) on the labelled images, in place.

    The result depends on the images, the labels, the initial weights and the settings; the global random state is
    neither read nor changed.

    Args:
        student_pair: S and S′, on the device to train on.
        data: The labelled images.
        config: Resolved settings (``temperature`` a number).
        bf16: Whether the networks compute in bf16 autocast.
        compilation: Whether the networks are compiled, and the step recorded.
        on_epoch: Called with each epoch's record.
        test_accuracy: Called every ``config.evaluate_every`` epochs, outside the measured time.
        checkpoints: Goes on from a checkpoint, saves others, and stops when asked to; by default nothing is kept.
        progress: Where to show the bar and the estimate.
        label: What to call the bar.

    Raises:
        TwinbudError: A loss or gradient that is not finite.
        Stopped: The keeper was told to stop; the run can be resumed.
    """
    progress = progress or SilentProgress()
    plan = plan_steps(config, len(data))
    step = TrainingStep(
        student_pair,
        objective(config, bf16),
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        steps_per_epoch=plan.steps_per_epoch,
        num_samples=len(data),
        compilation=compilation,
        batch_size=config.batch_size,
    )
    with (
        preserved_rng_state(data.device),
        suitable_attention((student_pair.student, student_pair.auxiliary), data.device, bf16=bf16),
        progress.bar(label, plan.num_steps, kind="steps") as advance,
    ):
        training = _Training(
            step,
            data,
            config,
            checkpoints=checkpoints or CheckpointManager(),
            progress=progress,
            label=label,
            advance=advance,
        )
        for record in training.run():
            if test_accuracy and config.evaluate_every and record.epoch % config.evaluate_every == 0:
                training.records[-1] = replace(record, test_accuracy=test_accuracy())
            on_epoch(training.records[-1])
            training.keep()
    student_pair.student.eval()
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


class _Training(Epochs[_Batch, EpochMeans]):
    """Epochs on labelled images."""

    step: TrainingStep
    data: LabelledImages

    def begin(self) -> None:
        """S in training mode, after whatever a test pass has made of it."""
        self.step.student_pair.student.train()

    def open_running_means(self, state: tuple[float, ...]) -> EpochMeans:
        """Losses and right answers."""
        return EpochMeans(self.data.device, state, has_skd=self.step.targets.are_soft)

    def batches(self, order: Sequence[torch.Tensor], views: Views, epoch: int) -> Iterator[_Batch]:
        """See Epochs."""
        partners: Iterable[torch.Tensor | None] = itertools.repeat(None, len(order))
        if self.step.targets.needs_same_class_pairs:
            same_class_N = draw_same_class_pairs(self.data.labels_N.cpu(), self.config.seed, epoch).to(self.data.device)
            partners = self.seen([same_class_N[rows] for rows in order], views)
        yield from zip(order, self.seen(order, views), partners, strict=True)

    def take(self, batch: _Batch, learning_rate: float, running_means: EpochMeans) -> None:
        """See Epochs."""
        rows_B, images_BCSS, same_class_BCSS = batch
        labels_B = self.data.labels_N[rows_B]
        running_means.add(self.step(images_BCSS, labels_B, learning_rate, rows_B, same_class_BCSS), len(rows_B))
