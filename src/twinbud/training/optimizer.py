"""AdamW that skips steps whose loss or gradient is not finite, without synchronizing with the GPU."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.training.onednn import is_safe_with_onednn, onednn_enabled
from twinbud.training.processes import Processes

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW for one or several networks, with gradient clipping and a check for values that are not finite.

    Args:
        networks: The networks to train, by name; all on one device.
        weight_decay: AdamW's weight decay, for the parameters that ``parameter_groups`` selects.
        clip_norm: Maximum gradient norm; None: no clipping.
        steps_per_epoch: For the epoch and batch in errors.
        layer_decay: Factor of the learning rate from each layer to the previous one, in (0, 1]; 1: one rate for all.
        advice: What an error about a step that is not finite recommends.
        processes: Add the gradients of several processes; None: this one computes the whole batch.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        weight_decay: float,
        clip_norm: float | None,
        steps_per_epoch: int | None = None,
        layer_decay: float = 1.0,
        advice: str = "lower --learning-rate",
        processes: Processes | None = None,
    ) -> None:
        self.advice = advice if clip_norm is not None else f"{advice} or set --clip-norm 1"
        self.networks, self.clip_norm, self.steps_per_epoch = networks, clip_norm, steps_per_epoch
        self.processes = processes
        self.parameters = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.deferred = self.device.type == "cuda"
        self.with_onednn = is_safe_with_onednn(networks.values())
        # a CUDA graph reads the step number and the learning rate from the device
        self.number = torch.zeros((), device=self.device)
        self.bad_step = torch.zeros(3, device=self.device)
        groups = [
            group | {"lr": torch.zeros((), device=self.device) if self.deferred else 0.0}
            for network in networks.values()
            for group in parameter_groups(network, weight_decay, lr_scales(network, layer_decay))
        ]
        self.adamw = torch.optim.AdamW(groups, fused=True, capturable=self.deferred)
        self.num_steps = 0

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next step, before the factor of each parameter group."""
        for group in self.adamw.param_groups:
            rate = learning_rate * group["scale"]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Run the backward pass of the scalar ``loss`` and update; on a GPU it never synchronizes.

        Returns:
            On a GPU, a bool scalar on the device: whether this step and all earlier steps are finite. On a CPU, None:
            the step is finite, since the method raises otherwise.

        Raises:
            TwinbudError: The loss or its gradient is not finite; nothing is updated. On a GPU the update is skipped,
                and ``check`` raises the error later.
        """
        self.number += 1
        self.adamw.zero_grad(set_to_none=True)
        with onednn_enabled(self.with_onednn):
            loss.backward()
        if self.processes is not None:
            self.processes.sum_gradients(self.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        is_finite = self._check_finite(loss.detach(), norm)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        # fused AdamW skips the update where this is 1, without synchronizing
        self.adamw.found_inf = None if is_finite is None else (~is_finite).float()  # type: ignore[attr-defined]
        self.adamw.step()
        return is_finite

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the networks and AdamW's moments, by name; ``num_steps`` is not among them."""
        named: dict[str, torch.Tensor] = {}
        for network_name, network in self.networks.items():
            named |= {f"{network_name}.{name}": value for name, value in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                for moment in _MOMENTS:
                    if parameter in self.adamw.state:
                        named[f"{moment}.{network_name}.{name}"] = self.adamw.state[parameter][moment]
        return named

    def restore(self, tensors: Mapping[str, torch.Tensor], num_steps: int) -> None:
        """Restore the state that ``tensors()`` and ``num_steps`` returned."""
        for network_name, network in self.networks.items():
            network.load_state_dict(part(tensors, f"{network_name}."))
            moments = {moment: part(tensors, f"{moment}.{network_name}.") for moment in _MOMENTS}
            for name, parameter in network.named_parameters():
                if name in moments[_MOMENTS[0]]:
                    # the fused optimizer requires the memory layout of the parameter
                    state = {moment: torch.empty_like(parameter).copy_(moments[moment][name]) for moment in _MOMENTS}
                    steps = torch.tensor(float(num_steps)).to(parameter.device)
                    self.adamw.state[parameter] = state | {"step": steps}
        self.num_steps = num_steps
        self.number.fill_(num_steps)

    def check(self) -> None:
        """Synchronize with the device and raise if a step was not finite.

        Raises:
            TwinbudError: A step was not finite; the networks have the values from before it.
        """
        step, loss, gradient_norm = self.bad_step.tolist()
        if not step:
            return
        raise TwinbudError(
            f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite "
            f"(loss {loss:g}, gradient norm {gradient_norm:g})",
            where=self._position(int(step)),
            fix=f"The networks are unchanged by this step; {self.advice}",
        )

    def _check_finite(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor | None:
        """Record the first step that is not finite; raise at once on a CPU, return a flag on a GPU.

        From that step on, nothing is updated, and ``check`` raises.

        Returns:
            On a GPU, a bool scalar on the device: whether this step and all earlier steps are finite. On a CPU, None.
        """
        is_finite = torch.isfinite(loss) & torch.isfinite(gradient_norm) & (self.bad_step[0] == 0)
        current = torch.stack([self.number, loss.float(), gradient_norm.float()])
        self.bad_step.copy_(torch.where(is_finite | (self.bad_step[0] > 0), self.bad_step, current))
        if self.deferred:
            return is_finite
        self.check()
        return None

    def _position(self, step: int) -> str:
        if self.steps_per_epoch is None:
            return f"step {step}"
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        return f"step {step} (epoch {epoch + 1}, batch {batch + 1})"


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with ``prefix``, with the prefix removed from their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Build AdamW's parameter groups.

    Weight decay is zero for 1-D parameters (norms, biases, LayerScale) and those of timm's ``no_weight_decay()``, which
    may be patterns ("pos_embed.*").

    Args:
        model: The network to train.
        weight_decay: Weight decay of the other parameters.
        scales: Factor of the learning rate, by parameter name; 1 for missing names.

    Returns:
        Groups for ``torch.optim.AdamW``, with the factor under ``scale``; sorted by factor, then by decay.
    """
    exempt: Collection[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.dim() <= 1 or any(fnmatchcase(name, pattern) for pattern in exempt)
            key = (scales or {}).get(name, 1.0), is_exempt
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_exempt else weight_decay, "scale": scale}
        for (scale, is_exempt), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def lr_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate by parameter name: ``decay`` to the power of the layers that follow.

    Layer-wise decay of BEiT (Bao et al., ICLR 2022); see ``SelectionFamily.layer_numbers``.

    Args:
        model: The network to train.
        decay: Factor from each layer to the previous one, in (0, 1].

    Returns:
        Factors in (0, 1]; empty if all are 1 (``decay`` is 1, or the model has no layers to count).
    """
    if decay == 1.0 or isinstance(model, nn.Linear):
        return {}
    numbers = family_of(model).layer_numbers(model)
    last = max(numbers.values(), default=0)
    return {name: decay ** (last - number) for name, number in numbers.items()}
