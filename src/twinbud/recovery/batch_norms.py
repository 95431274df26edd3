"""Batch norms beside refitted layers: what they do to a layer's output, and statistics of what now enters them.

In evaluation, a batch norm maps each channel x of its input to a x + b with a = γ / √(σ² + ε) and b = β − a μ, where
the mean μ and the variance σ² are stored; in training they are those of the batch. A selected student has the teacher's
μ and σ², and least squares lets less variance in: without new statistics, training would start from another function
than the one that was fitted.

Shape legend: O channels, R rows (images times positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from twinbud.models.families.base import TimmModel

STATISTICS = ("running_mean", "running_var")


def affine(norm: TimmModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a and b of a batch norm in evaluation, (O,) each."""
    factors = norm.weight / (norm.running_var + norm.eps).sqrt()
    return factors, norm.bias - norm.running_mean * factors


@contextmanager
def biased(layer: TimmModel, norm: TimmModel | None) -> Iterator[None]:
    """Give a layer without bias one while it is fitted; afterwards its batch norm subtracts it.

    Args:
        layer: Not computed inside the context.
        norm: The batch norm that reads its output; without one, nothing changes.
    """
    if norm is None or layer.bias is not None:
        yield
        return
    layer.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
    try:
        yield
        norm.running_mean.sub_(layer.bias)
    finally:
        layer.bias = None


@torch.no_grad()
def renew_statistics(network: TimmModel, batches: Iterable[torch.Tensor], *, bf16: bool = False) -> None:
    """Give each batch norm μ and σ² of what enters it, and γ and β with which it computes what it did.

    Args:
        network: In evaluation mode; changed in place.
        batches: Images (B, C, S, S); at least one.
        bf16: Whether the network computes in bf16 autocast.
    """
    norms: dict[str, TimmModel] = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }
    if not norms:
        return
    moments = {name: Moments() for name in norms}
    with ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.enter_context(norm.register_forward_pre_hook(partial(_add, moments[name])))
        for images_BCSS in batches:
            with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
                network(images_BCSS)
    for name, norm in norms.items():
        mean, variance = moments[name].mean, moments[name].variance
        factors, offsets = (part.double() for part in affine(norm))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(factors * (variance + norm.eps).sqrt())
        norm.bias.copy_(offsets + factors * mean)


def _add(moments: Moments, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    moments.add(channel_rows(inputs[0]))


def channel_rows(features: torch.Tensor) -> torch.Tensor:
    """Return maps (B, C, H, W) or vectors (B, C) as (R, C)."""
    return features.movedim(1, -1).flatten(0, -2)


class Moments:
    """Mean and variance of each channel in float64, merged from those of batches in float32.

    Attributes:
        count: Rows.
        mean: (O,).
        variance: (O,), over ``count``.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows_RO: torch.Tensor) -> None:
        """Add R rows (Chan, Golub and LeVeque, "Updating formulae", 1979)."""
        variance, mean = (part.double() for part in torch.var_mean(rows_RO.float(), dim=0, correction=0))
        count = self.count + len(rows_RO)
        share = len(rows_RO) / count
        difference = mean - self.mean
        self.variance = self.variance * (1 - share) + variance * share + difference.square() * share * (1 - share)
        self.mean = self.mean + difference * share
        self.count = count
