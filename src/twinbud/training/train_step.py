"""The training step: an optimizer step of the student, then the moving average of the auxiliary (eqs. 1-7).

Shape legend: B batch, C channels, S image height and width, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from twinbud.config.schema import Distillation
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.base import UNBALANCED, Balancing, Task
from twinbud.tasks.formulas import at_least_float32
from twinbud.tasks.single import SINGLE_LABEL
from twinbud.training.batch_norm import running_statistics
from twinbud.training.compile import EAGER, Compilation, compiled
from twinbud.training.cuda_graph import RecordedFunction
from twinbud.training.ema import ema_update, unbiased_beta
from twinbud.training.losses import Losses, total_loss
from twinbud.training.optimizer import Optimizer, part
from twinbud.training.processes import Processes, Share
from twinbud.training.soft_targets import Batch, open_soft_targets


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Constants of equations 1-7, and how the loss is computed.

    Attributes:
        alpha: Weight α of cross-entropy in [0, 1] (eq. 5).
        beta: EMA decay β of the auxiliary in [0, 1] (eq. 7).
        temperature: τ > 0 of eqs. 1-3.
        ce_temperature: Temperature > 0 of eq. 4.
        clip_norm: Maximum gradient norm; None: no clipping.
        bf16: Whether the networks run in bf16 autocast; parameters, moving average and losses stay in float32.
        distillation: Variant of the soft targets.
        label_smoothing: ε in [0, 1) of the labels in eq. 4; 0: no smoothing.
        average: EMA decay in (0, 1) of the average of the student's weights that is delivered; None: no average.
        task: What is asked of the images: it defines losses and correct predictions.
        balancing: How cross-entropy allows for classes of different size, on the device of training.
    """

    alpha: float
    beta: float
    temperature: float
    ce_temperature: float
    clip_norm: float | None
    bf16: bool
    distillation: Distillation = "skd"
    label_smoothing: float = 0.0
    average: float | None = None
    task: Task = SINGLE_LABEL
    balancing: Balancing = UNBALANCED


@dataclass(frozen=True, eq=False)
class StepResult:
    """Result of one step for its batch, before the update; all tensors stay on the device.

    Attributes:
        losses: Scalar losses.
        num_correct: int64 scalar, the number of images that the student classifies correctly; for a mixed image,
            the class with the largest share is correct.
    """

    losses: Losses
    num_correct: torch.Tensor


class TrainingStep:
    """Trains a student pair step by step; holds the networks, the soft targets and the optimizer.

    Args:
        student_pair: The student and, if there is one, the auxiliary, on the training device.
        objective: Constants of the loss.
        weight_decay: AdamW's weight decay, for the parameters that ``parameter_groups`` selects.
        layer_decay: See ``Optimizer``.
        steps_per_epoch: For the epoch and batch in errors; ``tf-kd`` uses it to recognize the first epoch.
        num_samples: Number of training samples; required by ``tf-kd``.
        compilation: Whether to compile the networks and to capture the whole step in a CUDA graph.
        batch_size: Batch size to compile for; batches of other sizes, such as the last of an epoch, run in eager mode.
        teacher: See ``open_soft_targets``.
        processes: Those that share each batch; None: this one computes it all.
        advice: See ``Optimizer``.
    """

    def __init__(
        self,
        student_pair: StudentPair,
        objective: Objective,
        *,
        weight_decay: float,
        layer_decay: float = 1.0,
        steps_per_epoch: int | None = None,
        num_samples: int | None = None,
        compilation: Compilation = EAGER,
        batch_size: int | None = None,
        teacher: nn.Module | None = None,
        processes: Processes | None = None,
        advice: str = "lower --learning-rate",
    ) -> None:
        self.steps_per_epoch, self.processes = steps_per_epoch, processes
        self.share = Share(0, 1, 1)  # of the current step, where there are several processes
        self.student_pair = student_pair
        self.objective = objective
        self.targets = open_soft_targets(
            objective.distillation,
            student_pair,
            temperature=objective.temperature,
            num_samples=num_samples,
            teacher=teacher,
            task=objective.task,
        )
        self.optimizer = Optimizer(
            {"student": student_pair.student},
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            clip_norm=objective.clip_norm,
            steps_per_epoch=steps_per_epoch,
            processes=processes,
            advice=advice,
        )
        self.average: nn.Module | None = None
        if objective.average is not None:
            self.average = copy.deepcopy(student_pair.student).requires_grad_(False)
        self.batch_size = batch_size
        self.compiled_losses = compiled(self._losses) if compilation.inductor else None
        self.update: Callable[..., StepResult] = RecordedFunction(self._update) if compilation.graphs else self._update
        if student_pair.auxiliary is not None:
            student_pair.auxiliary.eval()

    def __call__(
        self,
        images_BCSS: torch.Tensor,
        labels: torch.Tensor,
        learning_rate: float,
        rows_B: torch.Tensor | None = None,
        same_class_BCSS: torch.Tensor | None = None,
        share: Share | None = None,
    ) -> StepResult:
        """Run one training step.

        Args:
            images_BCSS: Normalized float32 images; student and auxiliary share one augmented view.
            labels: Targets of the task: int64 class indices (B,), or the probabilities (B, C) of mixed images.
            learning_rate: Learning rate of this step.
            rows_B: int64 sample numbers, for ``tf-kd``.
            same_class_BCSS: Normalized float32 images of the same classes, for ``cs-kd-pair``.
            share: Which images of the batch these are, where several processes share it.

        Returns:
            That of the whole batch, also where several processes share it.

        Raises:
            TwinbudError: The loss or its gradient is not finite; no network is updated. On a GPU the step does not
                synchronize: it skips the update, and ``check`` raises the error later.
        """
        self.optimizer.set_rate(learning_rate)
        self.share = share or self.share
        is_first_epoch = self.steps_per_epoch is None or self.num_steps < self.steps_per_epoch
        with torch.no_grad(), self._autocast():
            inputs = self.targets.inputs(Batch(images_BCSS, rows_B, same_class_BCSS, is_first_epoch))
        result = self.update(images_BCSS, labels, *inputs)
        self.optimizer.num_steps += 1
        return result

    def _update(self, images_BCSS: torch.Tensor, labels: torch.Tensor, *inputs: torch.Tensor) -> StepResult:
        """Run the device part of the step; on a GPU it never synchronizes, so that a CUDA graph can capture it."""
        if self.processes is not None:
            labels = self.processes.gather(labels, self.share)
        compute = self.compiled_losses if len(labels) == self.batch_size else None
        losses, student_BK, target_logits_BK = (compute or self._losses)(images_BCSS, labels, *inputs)
        is_finite = self.optimizer.step(losses.total)
        if self.student_pair.auxiliary is not None and not self.student_pair.frozen:
            ema_update(self.student_pair.auxiliary, self.student_pair.student, self.objective.beta, is_finite)
        if self.average is not None and self.objective.average is not None:
            beta = unbiased_beta(self.objective.average, self.optimizer.number)
            ema_update(self.average, self.student_pair.student, beta, is_finite)
        if self.processes is not None and self.targets.updates_from_inputs:
            inputs = tuple(self.processes.gather(each, self.share) for each in inputs)
        self.targets.update(student_BK, target_logits_BK, labels, inputs, is_finite)
        return StepResult(losses.detached(), self.objective.task.num_correct(student_BK, labels))

    @property
    def num_steps(self) -> int:
        """Number of completed steps."""
        return self.optimizer.num_steps

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that the next step depends on, by name.

        These are the networks, the state of the soft targets and AdamW's moments; ``num_steps`` is not among them.
        """
        named = self.optimizer.tensors()
        for prefix, network in self._averages().items():
            named |= {f"{prefix}.{name}": value for name, value in network.state_dict().items()}
        return named | {f"targets.{name}": value for name, value in self.targets.state.items()}

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """Restore the state that ``tensors()`` and ``num_steps`` returned."""
        self.optimizer.restore(tensors, num_steps)
        for prefix, network in self._averages().items():
            network.load_state_dict(part(tensors, f"{prefix}."))
        for name, value in part(tensors, "targets.").items():
            self.targets.state[name].copy_(value)

    def deliver(self) -> None:
        """Give the student the average of its weights, if there is one; ends the training."""
        if self.average is not None:
            self.student_pair.student.load_state_dict(self.average.state_dict())

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Give the student the average of its weights within the context, in place."""
        last = {name: tensor.clone() for name, tensor in self.student_pair.student.state_dict().items()}
        self.deliver()
        try:
            yield
        finally:
            self.student_pair.student.load_state_dict(last)

    def _averages(self) -> dict[str, nn.Module]:
        networks = {"auxiliary": self.student_pair.auxiliary, "average": self.average}
        return {name: network for name, network in networks.items() if network is not None}

    def check(self) -> None:
        """See ``Optimizer.check``."""
        self.optimizer.check()

    def _losses(
        self, images_BCSS: torch.Tensor, labels: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[Losses, torch.Tensor, torch.Tensor | None]:
        """Return the losses, the student's logits (B, K) and the logits (B, K) behind its soft targets.

        Images and inputs are those of this process, the labels and all that is returned those of the whole batch.
        """
        objective, targets = self.objective, self.targets
        with self._autocast():
            # before the student's forward pass, so that its activations do not occupy memory yet
            with torch.no_grad():
                target_logits_BK = targets.logits(images_BCSS, *inputs)
            # the variance of one image would be that of its pixels alone; of one value, it does not exist
            with running_statistics(self.student_pair.student) if len(images_BCSS) == 1 else nullcontext():
                student_BK = self.student_pair.student(images_BCSS)
        if self.processes is not None:
            student_BK = self.processes.gather(at_least_float32(student_BK), self.share)
            if target_logits_BK is not None:
                target_logits_BK = self.processes.gather(at_least_float32(target_logits_BK), self.share)
        losses = total_loss(
            student_BK,
            targets.targets(target_logits_BK, labels),
            labels,
            alpha=objective.alpha,
            temperature=targets.temperature,
            ce_temperature=objective.ce_temperature,
            label_smoothing=objective.label_smoothing,
            targets_are_probabilities=targets.targets_are_probabilities,
            task=objective.task,
            balancing=objective.balancing,
        )
        return losses, student_BK.detach(), target_logits_BK

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.optimizer.device.type, torch.bfloat16, enabled=self.objective.bf16)
