"""Gradients of layers for which oneDNN has a faulty kernel, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from twinbud.training.onednn import is_safe_with_onednn
from twinbud.training.optimizer import Optimizer


@pytest.mark.parametrize("num_channels", [3, 4, 6, 12, 16])
def test_a_narrow_strided_pointwise_convolution_has_the_right_gradient(num_channels: int) -> None:
    """Torch alone aborts below 8 channels where its kernels are those of AVX2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(num_channels, 8, kernel_size=1, stride=2)
        images = torch.randn(8, num_channels, 32, 32)
    reference = copy.deepcopy(layer).double()
    reference(images.double()).square().mean().backward()
    layer.to(memory_format=torch.channels_last)
    optimizer = Optimizer({"layer": layer}, weight_decay=0.0, clip_norm=None)
    for _ in range(20):
        optimizer.step(layer(images.to(memory_format=torch.channels_last)).square().mean())
        assert torch.backends.mkldnn.enabled
        torch.testing.assert_close(layer.weight.grad, reference.weight.grad, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "is_safe"),
    [
        (nn.Conv2d(15, 32, kernel_size=1, stride=2), False),
        (nn.Conv2d(16, 32, kernel_size=1, stride=2), True),
        (nn.Conv2d(15, 32, kernel_size=1), True),
        (nn.Conv2d(15, 32, kernel_size=2, stride=2), True),
    ],
)
def test_other_networks_keep_onednn(layer: nn.Module, is_safe: bool) -> None:
    assert is_safe_with_onednn([nn.Linear(4, 4), nn.Sequential(layer)]) == is_safe
