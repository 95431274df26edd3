"""Batch norms beside refitted layers: a bias becomes their mean, and new statistics change no output."""

from __future__ import annotations

import pytest
import torch
from timm.models.efficientnet import EfficientNet
from torch import nn

from helpers.convolutional import inverted_residuals
from helpers.recovering import batches
from twinbud.models.families.base import TimmModel
from twinbud.recovery.batch_norms import affine, biased, renew_statistics
from twinbud.recovery.normal_equations import NormalEquations, fit_layer


def network() -> TimmModel:
    """A small EfficientNet whose batch norms have statistics that do not fit what enters them."""
    torch.manual_seed(0)
    model = inverted_residuals(EfficientNet, "ds_r1_k3_s1_e1_c8", "ir_r2_k3_s2_e2_c12_se0.25").eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                assert tensor is not None
                nn.init.normal_(tensor, 0.5, 0.1)
    return model


def test_new_statistics_change_no_output() -> None:
    model, (images,) = network(), batches(32, seed=1, count=1)
    with torch.no_grad():
        before = model(images)
        renew_statistics(model, batches(32))
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)


def test_afterwards_training_starts_from_the_same_function() -> None:
    """In training, the statistics are those of the batch: here all images that they were renewed on."""
    model, (images,) = network(), batches(32, count=1)
    model.drop_rate = 0.0
    with torch.no_grad():
        expected = model(images)
        assert not torch.allclose(model.train()(images), expected, rtol=0.1)
        model = network()
        renew_statistics(model, [images])
        torch.testing.assert_close(model.train()(images), expected, rtol=1e-3, atol=1e-4)


def test_networks_without_batch_norms_stay_as_they_are() -> None:
    renew_statistics(nn.Conv2d(3, 4, 3), iter(()))


def test_a_layer_before_a_batch_norm_is_fitted_with_a_bias() -> None:
    """The norm then subtracts it: targets that are a linear map and a constant are met exactly."""
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4).eval()
    images, weight, offset = torch.randn(8, 3, 5, 5), torch.randn(4, 3), torch.randn(4)
    targets = images.flatten(2).transpose(1, 2) @ weight.T + offset
    with torch.no_grad(), biased(layer, norm):
        fitted, held_out = NormalEquations(layer), NormalEquations(layer)
        for equations in (fitted, held_out):
            equations.add_layer(layer, images, targets)
        _, after, _ = fit_layer(layer, fitted, held_out)
    assert layer.bias is None
    assert after == pytest.approx(1, abs=1e-3)
    factors, _ = affine(norm)
    torch.testing.assert_close(norm.running_mean, -offset, rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm(layer(images)), norm_of(targets, factors), rtol=0.02, atol=0.05)


def norm_of(targets_BLO: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """What a batch norm of mean 0 makes of the targets, as maps of 5 × 5 positions."""
    return (targets_BLO * factors).transpose(1, 2).unflatten(2, (5, 5))


def test_the_bias_is_taken_away_also_after_an_error() -> None:
    layer, norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
    with pytest.raises(RuntimeError), biased(layer, norm):
        raise RuntimeError
    assert layer.bias is None
    assert torch.equal(norm.running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_a_bias_of_its_own_and_a_layer_without_norm_stay() -> None:
    own, alone = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False)
    bias = own.bias
    with biased(own, nn.BatchNorm2d(4)), biased(alone, None):
        assert own.bias is bias
        assert alone.bias is None
    assert own.bias is bias
