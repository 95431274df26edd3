"""Train the student on labelled images; the auxiliary is its moving average.

Shape legend: N samples, B batch, C channels (3), S image side, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from twinbud.config.schema import TrainingConfig
from twinbud.core.typed_json import from_json, to_json
from twinbud.data.augment import Views
from twinbud.data.image_store import ImageSubset
from twinbud.data.mixing import mix
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.balance import balance_loss, draw_balanced_samples
from twinbud.tasks.base import UNBALANCED, Balancing, Task
from twinbud.tasks.single import SINGLE_LABEL, SingleLabel
from twinbud.training.amp import unfused_attention_in_bf16
from twinbud.training.checkpoint import Position
from twinbud.training.drop_path import divided_drop_path
from twinbud.training.epoch_loop import EpochLoop, History, plan_steps, preserved_rng_state
from twinbud.training.epoch_plan import draw_training_mixing
from twinbud.training.execution import Execution
from twinbud.training.processes import Processes, Share
from twinbud.training.running_means import RunningMeans
from twinbud.training.same_class_pairs import draw_same_class_pairs
from twinbud.training.train_step import Objective, TrainingStep


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Labelled images and how to normalize them.

    Attributes:
        images_NCSS: uint8 pixels with 1 or 3 channels: on the device of the student, or on the CPU if they do not fit
            there.
        labels_N: Targets of the task, such as int64 class indices, on the device of the student.
        preprocessing: Preprocessing of the network's input.
        task: What is asked of the images; None: one class an image, and an output of the network each.
    """

    images_NCSS: torch.Tensor | ImageSubset
    labels_N: torch.Tensor
    preprocessing: Preprocessing
    task: Task | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """The device that the student trains on."""
        return self.labels_N.device


def fit(
    student_pair: StudentPair,
    data: LabelledImages,
    config: TrainingConfig,
    execution: Execution | None = None,
    *,
    teacher: nn.Module | None = None,
) -> History:
    """Train the student, and update the auxiliary, on labelled images in place.

    The result depends on the images, the labels, the initial weights and the settings; the global random state is
    neither read nor changed.

    Args:
        student_pair: The student and, depending on the method, the auxiliary, on the device to train on.
        data: The labelled images.
        config: Resolved settings (``temperature`` is a number).
        execution: Precision, compilation, checkpoints and reports; the defaults of ``Execution`` if None.
        teacher: Frozen network whose logits are soft targets, on the same device; see ``open_soft_targets``.

    Raises:
        TwinbudError: A loss or gradient is not finite.
        Stopped: A stop was requested; the run can be resumed.
    """
    execution = execution or Execution()
    plan = plan_steps(config, len(data))
    task = data.task or SingleLabel(tuple(map(str, range(student_pair.student.num_classes))))
    step = TrainingStep(
        student_pair,
        objective(config, execution.bf16, task, balance_loss(config.balance, task, data.labels_N)),
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        steps_per_epoch=plan.steps_per_epoch,
        num_samples=len(data),
        compilation=execution.compilation,
        batch_size=config.batch_size,
        teacher=teacher,
        processes=execution.processes,
        advice=f"lower {execution.rate_option}",
    )
    is_divided = execution.processes is not None
    with (
        preserved_rng_state(data.device),
        unfused_attention_in_bf16((student_pair.student, student_pair.auxiliary), data.device, bf16=execution.bf16),
        divided_drop_path(student_pair.student, lambda: step.share) if is_divided else nullcontext(),
        execution.progress.bar(execution.label, plan.num_steps, kind="steps") as advance,
    ):
        training = _TrainingLoop(
            step,
            data,
            config,
            checkpoints=execution.checkpoints,
            progress=execution.progress,
            label=execution.label,
            advance=advance,
        )
        for record in training.epochs():
            if execution.test_accuracy and config.evaluate_every and record.epoch % config.evaluate_every == 0:
                with step.delivered():
                    training.records[-1] = replace(record, test_accuracy=execution.test_accuracy())
            if execution.on_epoch:
                execution.on_epoch(training.records[-1])
            training.save_if_due()
    step.deliver()
    student_pair.student.eval()
    return training.history()


def objective(
    config: TrainingConfig, bf16: bool, task: Task = SINGLE_LABEL, balancing: Balancing = UNBALANCED
) -> Objective:
    """Return the parameters of equations 1-7, for a task."""
    assert config.temperature != "auto", "temperature is resolved before training"
    return Objective(
        alpha=config.alpha,
        beta=config.beta,
        temperature=config.temperature,
        ce_temperature=config.temperature if config.ce_temperature == "tau" else 1.0,
        clip_norm=config.clip_norm,
        bf16=bf16,
        distillation=config.distillation,
        label_smoothing=config.label_smoothing,
        average=config.average,
        task=task,
        balancing=balancing,
    )


_Batch = tuple[Share | None, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Sample numbers, images, labels and, for ``cs-kd-pair``, an image of the same class for each.

Where several processes share the batch, they are those of this one, after its share.
"""


class _TrainingLoop(EpochLoop[_Batch]):
    """Trains on labelled images."""

    step: TrainingStep
    data: LabelledImages

    def __init__(self, step: TrainingStep, *arguments: Any, **options: Any) -> None:
        super().__init__(step, *arguments, **options)
        self.processes = step.processes
        if self.processes is not None:
            self._start_like_the_first(self.processes)

    def _start_like_the_first(self, processes: Processes) -> None:
        """Take over the position and the tensors of the first process."""
        self.position = from_json(Position, processes.share_json(to_json(self.position)), "position")
        tensors = processes.share_tensors(self.step.tensors())
        if not processes.is_first:
            self.step.restore(tensors, self.position.num_steps)
            self.records = list(self.position.records)

    @property
    def measures(self) -> tuple[str, ...]:
        """The losses and the accuracy."""
        return ("loss", "loss_ce", *(("loss_skd",) if self.step.targets.are_soft else ()), "accuracy")

    def stop_requested(self) -> bool:
        """Return whether to stop after the current step, as any of the processes was asked to."""
        requested = super().stop_requested()
        return requested if self.processes is None else self.processes.any(requested)

    def start_epoch(self) -> None:
        """Set the student to training mode, since a test pass sets it to evaluation mode."""
        self.step.student_pair.student.train()

    def epoch_batches(self, order: Sequence[torch.Tensor], views: Views, epoch: int) -> Iterator[_Batch]:
        """See ``EpochLoop``; a sampler gives each place of the order a sample, and a view and mixing of its own."""
        mixing = draw_training_mixing(self.config, epoch, len(self.data), self.data.device)
        shares: Sequence[Share | None] = [None] * len(order)
        if self.processes is not None:
            with_previous, share_of = mixing is not None, self.processes.share
            shares = [share_of(len(places)) for places in order]
            order = [share_of(len(places)).of(places, with_previous=with_previous) for places in order]
        samples = order
        if self.config.balance == "sampler":
            drawn_N = draw_balanced_samples(self.step.objective.task, self.data.labels_N, self.config.seed, epoch)
            samples = [drawn_N[places] for places in order]
        same_class_batches: Iterable[torch.Tensor | None] = itertools.repeat(None, len(order))
        if self.step.targets.needs_same_class_pairs:
            same_class_N = draw_same_class_pairs(self.data.labels_N.cpu(), self.config.seed, epoch).to(self.data.device)
            same_class_batches = self.augmented_batches([same_class_N[rows] for rows in samples], views)
        augmented = self.augmented_batches(samples, views, order)
        for share, places_B, rows_B, images_BCSS, same_class_BCSS in zip(
            shares, order, samples, augmented, same_class_batches, strict=True
        ):
            labels_B = self.data.labels_N[rows_B]
            if mixing is None:
                yield share, rows_B, images_BCSS, labels_B, same_class_BCSS
                continue
            labels_BC = self.step.objective.task.to_mix(labels_B)
            images_BCSS, labels_BC = mix(images_BCSS, labels_BC, mixing[places_B])
            # the first row of a share is the previous one's last, which only the second one is mixed with
            first = 0 if share is None else 1
            yield share, rows_B[first:], images_BCSS[first:], labels_BC[first:], same_class_BCSS

    def train_batch(self, batch: _Batch, learning_rate: float, running_means: RunningMeans) -> None:
        """See ``EpochLoop``."""
        share, rows_B, images_BCSS, labels, same_class_BCSS = batch
        result = self.step(images_BCSS, labels, learning_rate, rows_B, same_class_BCSS, share)
        num_images = len(rows_B) if share is None else share.total
        losses = [loss.double() * num_images for loss in result.losses if loss is not None]
        running_means.add([*losses, result.num_correct.double()], num_images)
