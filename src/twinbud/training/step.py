"""The one training step: S learns from labels and from S′, then S′ follows (eqs. 1-7).

Shape legend: B batch, C channels, S image side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from twinbud.config import Distillation
from twinbud.errors import TwinbudError
from twinbud.models.twins import Twins
from twinbud.training.compilation import EAGER, Compilation, compiled
from twinbud.training.ema import follow
from twinbud.training.graphs import Recording
from twinbud.training.losses import Losses, total_loss
from twinbud.training.targets import Batch, open_targets

_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        twins: S and, where there is one, S′, on the device they train on.
        objective: What is minimised.
        weight_decay: AdamW's, on the parameters that ``parameter_groups`` says.
        steps_per_epoch: Lets errors name epoch and batch, and ``tf-kd`` know the first epoch.
        num_samples: How many samples there are, for ``tf-kd``.
        compilation: Whether the networks are compiled, and the whole step recorded as a CUDA graph.
        batch_size: Of the batches that are compiled for; others, such as an epoch's last, take the plain path.
    """

    def __init__(
        self,
        twins: Twins,
        objective: Objective,
        *,
        weight_decay: float,
        steps_per_epoch: int | None = None,
        num_samples: int | None = None,
        compilation: Compilation = EAGER,
        batch_size: int | None = None,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.twins = twins
        self.objective = objective
        self.targets = open_targets(
            objective.distillation, twins, temperature=objective.temperature, num_samples=num_samples
        )
        self.parameters = [p for p in twins.student.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.deferred = device.type == "cuda"
        # a recorded step reads its number and its learning rate from the device
        self.number = torch.zeros((), device=device)
        self.bad_step = torch.zeros(3, device=device)
        self.optimiser = torch.optim.AdamW(
            parameter_groups(twins.student, weight_decay),
            lr=torch.zeros((), device=device) if self.deferred else 0.0,
            fused=True,
            capturable=self.deferred,
        )
        self.num_steps = 0
        self.batch_size = batch_size
        self.compiled_losses = compiled(self._losses) if compilation.inductor else None
        self.update: Callable[..., StepResult] = Recording(self._update) if compilation.graphs else self._update
        if twins.auxiliary is not None:
            twins.auxiliary.eval()

    def __call__(
        self,
        images_BCSS: torch.Tensor,
        labels_B: torch.Tensor,
        learning_rate: float,
        rows_B: torch.Tensor | None = None,
        partners_BCSS: torch.Tensor | None = None,
    ) -> StepResult:
        """Take one step.

        Args:
            images_BCSS: Normalised float32 images, one augmented view that S and S′ share.
            labels_B: int64 class indices.
            learning_rate: Of this step.
            rows_B: int64 sample numbers, for ``tf-kd``.
            partners_BCSS: Normalised float32 images of the same classes, for ``cs-kd-pair``.

        Raises:
            TwinbudError: The loss or its gradient is not finite; neither S nor S′ has been updated. On a GPU the
                step does not wait to know: the update does not happen, and ``check`` raises.
        """
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        is_first_epoch = self.steps_per_epoch is None or self.num_steps < self.steps_per_epoch
        with torch.no_grad(), self._autocast():
            inputs = self.targets.inputs(Batch(images_BCSS, rows_B, partners_BCSS, is_first_epoch))
        result = self.update(images_BCSS, labels_B, *inputs)
        self.num_steps += 1
        return result

    def _update(self, images_BCSS: torch.Tensor, labels_B: torch.Tensor, *inputs: torch.Tensor) -> StepResult:
        """The step as the device takes it; on a GPU nothing in here waits for it, so that it can be recorded."""
        self.number += 1
        compute = self.compiled_losses if len(labels_B) == self.batch_size else None
        losses, student_BK, outputs_BK = (compute or self._losses)(images_BCSS, labels_B, *inputs)
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        sound = self._watch(losses.total.detach(), norm)
        if self.objective.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.objective.clip_norm, norm)
        # fused AdamW leaves parameters and moments alone where this is 1, without the host's knowing
        self.optimiser.found_inf = None if sound is None else (~sound).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        if self.twins.auxiliary is not None and not self.twins.frozen:
            follow(self.twins.auxiliary, self.twins.student, self.objective.beta, sound)
        self.targets.remember(student_BK, outputs_BK, labels_B, inputs, sound)
        return StepResult(losses.detached(), (student_BK.argmax(dim=1) == labels_B).sum())

    def tensors(self) -> dict[str, torch.Tensor]:
        """S, S′, what the targets remember and AdamW's moments, by name.

        All that the next step depends on, but for ``num_steps``.
        """
        named = {f"student.{name}": value for name, value in self.twins.student.state_dict().items()}
        if self.twins.auxiliary is not None:
            named |= {f"auxiliary.{name}": value for name, value in self.twins.auxiliary.state_dict().items()}
        named |= {f"targets.{name}": value for name, value in self.targets.state.items()}
        for name, parameter in self.twins.student.named_parameters():
            for moment in _MOMENTS:
                if parameter in self.optimiser.state:
                    named[f"{moment}.{name}"] = self.optimiser.state[parameter][moment]
        return named

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """Go back to where ``tensors`` and ``num_steps`` were taken."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.twins.student.load_state_dict(part("student."))
        if self.twins.auxiliary is not None:
            self.twins.auxiliary.load_state_dict(part("auxiliary."))
        for name, value in part("targets.").items():
            self.targets.state[name].copy_(value)
        moments = {moment: part(f"{moment}.") for moment in _MOMENTS}
        for name, parameter in self.twins.student.named_parameters():
            if name in moments[_MOMENTS[0]]:
                # in the parameter's own layout, which the fused optimiser takes for granted
                state = {moment: torch.empty_like(parameter).copy_(moments[moment][name]) for moment in _MOMENTS}
                self.optimiser.state[parameter] = state | {"step": torch.tensor(float(num_steps)).to(parameter.device)}
        self.num_steps = num_steps
        self.number.fill_(num_steps)

    def _losses(
        self, images_BCSS: torch.Tensor, labels_B: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[Losses, torch.Tensor, torch.Tensor | None]:
        """Losses and logits of S, and the logits that its targets were made of."""
        goal, variant = self.objective, self.targets
        with self._autocast():
            # before S's forward, so that S's activations are not yet held
            with torch.no_grad():
                outputs_BK = variant.outputs(images_BCSS, *inputs)
            student_BK = self.twins.student(images_BCSS)
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
        return torch.autocast(self.number.device.type, torch.bfloat16, enabled=self.objective.bf16)

    def _watch(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor | None:
        """Whether this step and all before it are finite: as a flag that stays on the GPU, or known at once on a CPU.

        From the first step that is not, nothing is updated any more; ``check`` then tells.
        """
        finite = torch.isfinite(loss) & torch.isfinite(gradient_norm) & (self.bad_step[0] == 0)
        here = torch.stack([self.number, loss.float(), gradient_norm.float()])
        self.bad_step.copy_(torch.where(finite | (self.bad_step[0] > 0), self.bad_step, here))
        if self.deferred:
            return finite
        self.check()
        return None

    def check(self) -> None:
        """Wait for the device and refuse to go on after a step that was not finite.

        Raises:
            TwinbudError: There was one; S and S′ are as they were before it.
        """
        step, loss, gradient_norm = self.bad_step.tolist()
        if not step:
            return
        raise TwinbudError(
            f"a finite {'gradient' if math.isfinite(loss) else 'loss'}",
            got=f"loss {loss:g}, gradient norm {gradient_norm:g}",
            where=self._place(int(step)),
            fix="S and S′ are as they were before it; lower --learning-rate or set --clip-norm 1",
        )

    def _place(self, step: int) -> str:
        if self.steps_per_epoch is None:
            return f"step {step}"
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        return f"step {step} (epoch {epoch + 1}, batch {batch + 1})"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's two groups: no decay on 1-D parameters (norms, biases, LayerScale) and timm's ``no_weight_decay()``."""
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [name for name, p in trained if p.dim() <= 1 or name in exempt]
    return [
        {"params": [p for name, p in trained if name not in plain], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name in plain], "weight_decay": 0.0},
    ]
