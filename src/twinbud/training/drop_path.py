"""Stochastic depth that does not depend on the number of processes.

Shape legend: B images of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers.drop import DropPath, drop_path
from torch import nn

from twinbud.training.processes import Share


@contextmanager
def divided_drop_path(network: nn.Module, share: Callable[[], Share]) -> Iterator[None]:
    """Draw the numbers of the whole batch and use those of a share, within the context.

    Args:
        network: Its layers of stochastic depth are changed in place.
        share: Returns the share of the current step.
    """
    layers = [module for module in network.modules() if isinstance(module, DropPath)]
    for layer in layers:
        layer.forward = partial(_forward, layer, share)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: DropPath, share: Callable[[], Share], x: torch.Tensor) -> torch.Tensor:
    if not layer.training or not layer.drop_prob:
        return x
    rows = share()
    factors_B = drop_path(x.new_ones(rows.total, *[1] * (x.ndim - 1)), layer.drop_prob, True, layer.scale_by_keep)
    return x * rows.of(factors_B)
