"""The one training step: S learns from labels and from S′, then S′ follows (eqs. 1-7).

Shape legend: B batch, C channels, S image side, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from twinbud.config.schema import Distillation
from twinbud.models.student_pair import StudentPair
from twinbud.training.compile import EAGER, Compilation, compiled
from twinbud.training.cuda_graph import RecordedFunction
from twinbud.training.ema import ema_update
from twinbud.training.losses import Losses, total_loss
from twinbud.training.optimizer import Optimizer, part
from twinbud.training.soft_targets import Batch, open_soft_targets


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The numbers of equations 1-7, and how they are computed.

    Attributes:
        alpha: Weight of cross-entropy (eq. 5).
        beta: Smoothing of S′ (eq. 7).
        temperature: τ of eqs. 1-3.
        ce_temperature: Temperature of eq. 4.
        clip_norm: Largest gradient norm, or None.
        bf16: Whether the networks compute in bf16 autocast; weights, S′ and losses stay in float32.
        distillation: Where the soft targets come from.
    """

    alpha: float
    beta: float
    temperature: float
    ce_temperature: float
    clip_norm: float | None
    bf16: bool
    distillation: Distillation = "skd"


@dataclass(frozen=True)
class StepResult:
    """Losses of the batch before the update, and how many of its images S classified rightly; all on the device."""

    losses: Losses
    num_correct: torch.Tensor


class TrainingStep:
    """Carries S, S′ and the optimiser from one step to the next.

    Args:
        student_pair: S and, where there is one, S′, on the device they train on.
        objective: What is minimised.
        weight_decay: AdamW's, on the parameters that ``parameter_groups`` says.
        layer_decay: See ``Optimizer``.
        steps_per_epoch: Lets errors name epoch and batch, and ``tf-kd`` know the first epoch.
        num_samples: How many samples there are, for ``tf-kd``.
        compilation: Whether the networks are compiled, and the whole step recorded as a CUDA graph.
        batch_size: Of the batches that are compiled for; others, such as an epoch's last, take the plain path.
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
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.student_pair = student_pair
        self.objective = objective
        self.targets = open_soft_targets(
            objective.distillation, student_pair, temperature=objective.temperature, num_samples=num_samples
        )
        self.optimizer = Optimizer(
            {"student": student_pair.student},
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            clip_norm=objective.clip_norm,
            steps_per_epoch=steps_per_epoch,
        )
        self.batch_size = batch_size
        self.compiled_losses = compiled(self._losses) if compilation.inductor else None
        self.update: Callable[..., StepResult] = RecordedFunction(self._update) if compilation.graphs else self._update
        if student_pair.auxiliary is not None:
            student_pair.auxiliary.eval()

    def __call__(
        self,
        images_BCSS: torch.Tensor,
        labels_B: torch.Tensor,
        learning_rate: float,
        rows_B: torch.Tensor | None = None,
        same_class_BCSS: torch.Tensor | None = None,
    ) -> StepResult:
        """Take one step.

        Args:
            images_BCSS: Normalised float32 images, one augmented view that S and S′ share.
            labels_B: int64 class indices.
            learning_rate: Of this step.
            rows_B: int64 sample numbers, for ``tf-kd``.
            same_class_BCSS: Normalised float32 images of the same classes, for ``cs-kd-pair``.

        Raises:
            TwinbudError: The loss or its gradient is not finite; neither S nor S′ has been updated. On a GPU the
                step does not wait to know: the update does not happen, and ``check`` raises.
        """
        self.optimizer.set_rate(learning_rate)
        is_first_epoch = self.steps_per_epoch is None or self.num_steps < self.steps_per_epoch
        with torch.no_grad(), self._autocast():
            inputs = self.targets.inputs(Batch(images_BCSS, rows_B, same_class_BCSS, is_first_epoch))
        result = self.update(images_BCSS, labels_B, *inputs)
        self.optimizer.num_steps += 1
        return result

    def _update(self, images_BCSS: torch.Tensor, labels_B: torch.Tensor, *inputs: torch.Tensor) -> StepResult:
        """The step as the device takes it; on a GPU nothing in here waits for it, so that it can be recorded."""
        compute = self.compiled_losses if len(labels_B) == self.batch_size else None
        losses, student_BK, outputs_BK = (compute or self._losses)(images_BCSS, labels_B, *inputs)
        sound = self.optimizer.step(losses.total)
        if self.student_pair.auxiliary is not None and not self.student_pair.frozen:
            ema_update(self.student_pair.auxiliary, self.student_pair.student, self.objective.beta, sound)
        self.targets.remember(student_BK, outputs_BK, labels_B, inputs, sound)
        return StepResult(losses.detached(), (student_BK.argmax(dim=1) == labels_B).sum())

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self.optimizer.num_steps

    def tensors(self) -> dict[str, torch.Tensor]:
        """S, S′, what the targets remember and AdamW's moments, by name.

        All that the next step depends on, but for ``num_steps``.
        """
        named = self.optimizer.tensors()
        if self.student_pair.auxiliary is not None:
            named |= {f"auxiliary.{name}": value for name, value in self.student_pair.auxiliary.state_dict().items()}
        return named | {f"targets.{name}": value for name, value in self.targets.state.items()}

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """Go back to where ``tensors`` and ``num_steps`` were taken."""
        self.optimizer.restore(tensors, num_steps)
        if self.student_pair.auxiliary is not None:
            self.student_pair.auxiliary.load_state_dict(part(tensors, "auxiliary."))
        for name, value in part(tensors, "targets.").items():
            self.targets.state[name].copy_(value)

    def check(self) -> None:
        """See ``Optimizer.check``."""
        self.optimizer.check()

    def _losses(
        self, images_BCSS: torch.Tensor, labels_B: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[Losses, torch.Tensor, torch.Tensor | None]:
        """Losses and logits of S, and the logits that its targets were made of."""
        goal, variant = self.objective, self.targets
        with self._autocast():
            # before S's forward, so that S's activations are not yet held
            with torch.no_grad():
                outputs_BK = variant.outputs(images_BCSS, *inputs)
            student_BK = self.student_pair.student(images_BCSS)
        losses = total_loss(
            student_BK,
            variant.targets(outputs_BK, labels_B),
            labels_B,
            alpha=goal.alpha,
            temperature=variant.temperature,
            ce_temperature=goal.ce_temperature,
            softened=variant.softened,
        )
        return losses, student_BK.detach(), outputs_BK

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.optimizer.device.type, torch.bfloat16, enabled=self.objective.bf16)
