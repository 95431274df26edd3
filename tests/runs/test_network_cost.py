"""Parameters and multiplications are those that arithmetic gives; the network is left as it was."""

from __future__ import annotations

import torch

from helpers.builders import VIT, random_model
from twinbud.runs.network_cost import measure_network


def test_the_multiplications_of_a_vit_are_those_of_its_matrices() -> None:
    """Per block, for L tokens of D channels: q, k, v and projection 4 L D², the MLP 8 L D², attention 2 L² D."""
    tokens, width, depth, patch, classes = 1 + 4 * 4, 32, 2, 7, 3
    blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    expected = 16 * 3 * patch**2 * width + blocks + width * classes
    model = random_model("vit_tiny_patch16_224", num_classes=classes, **VIT)
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        assert measure_network(model, 28).num_multiplications == expected


def test_the_multiplications_of_a_convolution_are_those_of_its_kernel() -> None:
    class Convolution(torch.nn.Sequential):
        """Depthwise 3 × 3 with stride 2, then 1 × 1 from 3 to 5 channels: 16 × 16 positions of a 32-pixel image."""

    model = Convolution(torch.nn.Conv2d(3, 3, 3, 2, 1, groups=3), torch.nn.Conv2d(3, 5, 1))
    cost = measure_network(model, 32)
    assert cost.num_multiplications == 16 * 16 * (3 * 9 + 3 * 5)
    assert cost.num_parameters == 3 * 9 + 3 + 3 * 5 + 5
    assert cost.latency_seconds > 0


def test_a_network_is_measured_in_evaluation_mode_and_left_in_training_mode() -> None:
    model = random_model("test_resnet", num_classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure_network(model, 32).num_parameters == sum(value.numel() for value in model.parameters())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
