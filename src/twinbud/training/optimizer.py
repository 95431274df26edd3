"""AdamW that takes a finite step or none, on a GPU without waiting to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families import family_of

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Carries the trained networks and AdamW's moments from one step to the next.

    Args:
        networks: What is trained, by name; all on one device.
        weight_decay: AdamW's, on the parameters that ``parameter_groups`` says.
        clip_norm: Largest gradient norm, or None.
        steps_per_epoch: Lets errors name epoch and batch.
        layer_decay: Factor of the learning rate from a layer to the one before it; 1: the same for all.
        advice: What to do about a step that is not finite.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        weight_decay: float,
        clip_norm: float | None,
        steps_per_epoch: int | None = None,
        layer_decay: float = 1.0,
        advice: str = "lower --learning-rate or set --clip-norm 1",
    ) -> None:
        self.advice = advice
        self.networks, self.clip_norm, self.steps_per_epoch = networks, clip_norm, steps_per_epoch
        self.parameters = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.deferred = self.device.type == "cuda"
        # a recorded step reads its number and its learning rate from the device
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
        """The learning rate of the next step."""
        for group in self.adamw.param_groups:
            rate = learning_rate * group["scale"]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Go down the gradient of ``loss``; on a GPU nothing in here waits for it, so that it can be recorded.

        Returns:
            On a GPU whether this step and all before it were finite, as a flag there; else None: it was.

        Raises:
            TwinbudError: The loss or its gradient is not finite; nothing has been updated. On a GPU the update does
                not happen, and ``check`` raises.
        """
        self.number += 1
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        sound = self._watch(loss.detach(), norm)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        # fused AdamW leaves parameters and moments alone where this is 1, without the host's knowing
        self.adamw.found_inf = None if sound is None else (~sound).float()  # type: ignore[attr-defined]
        self.adamw.step()
        return sound

    def tensors(self) -> dict[str, torch.Tensor]:
        """The networks and AdamW's moments, by name: all that the next step depends on, but for ``num_steps``."""
        named: dict[str, torch.Tensor] = {}
        for network_name, network in self.networks.items():
            named |= {f"{network_name}.{name}": value for name, value in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                for moment in _MOMENTS:
                    if parameter in self.adamw.state:
                        named[f"{moment}.{network_name}.{name}"] = self.adamw.state[parameter][moment]
        return named

    def restore(self, tensors: Mapping[str, torch.Tensor], num_steps: int) -> None:
        """Go back to where ``tensors`` and ``num_steps`` were taken."""
        for network_name, network in self.networks.items():
            network.load_state_dict(part(tensors, f"{network_name}."))
            moments = {moment: part(tensors, f"{moment}.{network_name}.") for moment in _MOMENTS}
            for name, parameter in network.named_parameters():
                if name in moments[_MOMENTS[0]]:
                    # in the parameter's own layout, which the fused optimiser takes for granted
                    state = {moment: torch.empty_like(parameter).copy_(moments[moment][name]) for moment in _MOMENTS}
                    steps = torch.tensor(float(num_steps)).to(parameter.device)
                    self.adamw.state[parameter] = state | {"step": steps}
        self.num_steps = num_steps
        self.number.fill_(num_steps)

    def check(self) -> None:
        """Wait for the device and refuse to go on after a step that was not finite.

        Raises:
            TwinbudError: There was one; the networks are as they were before it.
        """
        step, loss, gradient_norm = self.bad_step.tolist()
        if not step:
            return
        raise TwinbudError(
            f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite "
            f"(loss {loss:g}, gradient norm {gradient_norm:g})",
            where=self._place(int(step)),
            fix=f"The networks are unchanged by this step; {self.advice}",
        )

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

    def _place(self, step: int) -> str:
        if self.steps_per_epoch is None:
            return f"step {step}"
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        return f"step {step} (epoch {epoch + 1}, batch {batch + 1})"


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """AdamW's groups: no decay on 1-D parameters (norms, biases, LayerScale) and timm's ``no_weight_decay()``.

    Args:
        model: What is trained.
        weight_decay: Of the other parameters.
        scales: Factor of each parameter's learning rate, by name; 1 for all where there is none.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (scales or {}).get(name, 1.0), parameter.dim() <= 1 or name in exempt
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_exempt else weight_decay, "scale": scale}
        for (scale, is_exempt), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def lr_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor of each parameter's learning rate: 1 after the last block, ``decay`` times as much from layer to layer.

    As BEiT is fine-tuned (Bao et al., ICLR 2022): what comes before the first block is the first layer. A model that is
    a single layer comes after all blocks.
    """
    if decay == 1.0 or isinstance(model, nn.Linear):
        return {}
    blocks = list(family_of(model, type(model).__name__).blocks(model))
    scales: dict[str, float] = {}
    depth = 0
    for name, _ in model.named_parameters():  # in the order of the layers
        inside = [place for place, block in enumerate(blocks, 1) if name.startswith(f"{block}.")]
        depth = inside[0] if inside else len(blocks) + 1 if depth else 0
        scales[name] = decay ** (len(blocks) + 1 - depth)
    return scales
