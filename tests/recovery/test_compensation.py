"""GRAIL and CORP against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.recovering import beside, refit_batches
from twinbud.config.recovery import RecoverMethod
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.compensation import compensate_layers

LAYERS = [f"blocks.{n}.{part}" for n in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


@torch.no_grad()
def hidden_units(pair: ChannelMap, layer: str) -> np.ndarray[Any, Any]:
    """What a layer of the teacher reads, (R, H), on all images."""
    seen: list[torch.Tensor] = []
    hook = pair.teacher.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for images, _ in refit_batches(28):
        pair.teacher(images)
    hook.remove()
    return torch.cat(seen).flatten(0, 1).double().numpy()


def weights_of(layer: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


@pytest.mark.parametrize("layer", ["blocks.0.attn.proj", "blocks.1.mlp.fc2"])
def test_grail_predicts_all_units_from_the_kept_ones_and_merges_the_map(layer: str) -> None:
    pair = beside("vit", attention="heads")
    hidden, (weight, bias) = hidden_units(pair, layer), weights_of(pair.teacher.get_submodule(layer))
    kept, outputs = pair.input_channels(layer).numpy(), pair.output_channels(layer).numpy()
    compensate_layers(pair, refit_batches(28), method="grail")
    gram = hidden.T @ hidden
    inner = gram[np.ix_(kept, kept)]
    merged = weight @ gram[:, kept] @ np.linalg.inv(inner + 1e-3 * inner.diagonal().mean() * np.eye(len(kept)))
    found, found_bias = weights_of(pair.student.get_submodule(layer))
    assert found == pytest.approx(merged[outputs], abs=2e-4 * np.abs(merged).max())
    assert found_bias == pytest.approx(bias[outputs], abs=1e-6)


@pytest.mark.parametrize("layer", ["blocks.0.attn.proj", "blocks.1.mlp.fc2"])
def test_corp_predicts_the_pruned_units_by_an_affine_map(layer: str) -> None:
    pair = beside("vit", attention="heads")
    hidden, (weight, bias) = hidden_units(pair, layer), weights_of(pair.teacher.get_submodule(layer))
    kept, outputs = pair.input_channels(layer).numpy(), pair.output_channels(layer).numpy()
    pruned = np.setdiff1d(np.arange(hidden.shape[1]), kept)
    fits = compensate_layers(pair, refit_batches(28), method="corp")
    ridge = next(fit.ridge for fit in fits if fit.layer == layer)
    mean = hidden.mean(axis=0)
    covariance = (hidden - mean).T @ (hidden - mean)
    inner = covariance[np.ix_(kept, kept)]
    to_pruned = covariance[np.ix_(pruned, kept)] @ np.linalg.inv(
        inner + ridge * inner.diagonal().mean() * np.eye(len(kept))
    )
    merged = weight[:, kept] + weight[:, pruned] @ to_pruned
    shifted = bias + weight[:, pruned] @ (mean[pruned] - to_pruned @ mean[kept])
    found, found_bias = weights_of(pair.student.get_submodule(layer))
    assert found == pytest.approx(merged[outputs], abs=1e-3 * np.abs(merged).max())
    assert found_bias == pytest.approx(shifted[outputs], abs=1e-3 * np.abs(merged).max())


@pytest.mark.parametrize("method", ["grail", "corp"])
def test_units_that_repeat_kept_ones_cost_nothing(method: RecoverMethod) -> None:
    pair, layer = beside("vit", attention="heads"), "blocks.1.mlp.fc2"
    kept = pair.input_channels(layer)
    fc1, fc2 = pair.teacher.blocks[1].mlp.fc1, pair.teacher.blocks[1].mlp.fc2
    pruned = torch.tensor([unit for unit in range(len(fc1.bias)) if unit not in kept.tolist()])
    with torch.no_grad():
        fc1.weight[pruned], fc1.bias[pruned] = fc1.weight[kept], fc1.bias[kept]
        hidden = torch.from_numpy(hidden_units(pair, layer)).float()
        fits = compensate_layers(pair, refit_batches(28), method=method)
        student = pair.student.blocks[1].mlp.fc2(hidden[:, kept])
        teacher = fc2(hidden)[:, pair.output_channels(layer)]
    assert torch.allclose(student, teacher, atol=0.1 * float(teacher.std())), "but for the ridge"
    assert fits[-1].after == pytest.approx(1, abs=1e-3)


def test_readers_are_compensated_for_the_narrower_stream() -> None:
    """Their hidden units are those of the student's norm on the teacher's kept channels."""
    pair, layer = beside("vit", attention="heads"), "blocks.0.attn.qkv"
    with torch.no_grad():
        norm = pair.student.blocks[0].norm1
        streams = [pair.recovery.embed(pair.teacher, images) for images, _ in refit_batches(28)]
        stream = torch.cat(streams)[..., pair.stream_channels("blocks.0")]
        inputs = F.layer_norm(stream, (16,), norm.weight, norm.bias, norm.eps).flatten(0, 1).double().numpy()
        teacher = pair.teacher.blocks[0]
        outputs = teacher.attn.qkv(teacher.norm1(torch.cat(streams)))[..., pair.output_channels(layer)]
        outputs = outputs.flatten(0, 1).double().numpy()
    compensate_layers(pair, refit_batches(28), method="grail")
    found, bias = weights_of(pair.student.blocks[0].attn.qkv)
    damping = np.sqrt(1e-3 * np.square(inputs).sum(axis=0).mean()) * np.eye(16)
    targets = np.concatenate([outputs - bias, np.zeros((16, outputs.shape[1]))])
    expected = np.linalg.lstsq(np.concatenate([inputs, damping]), targets, rcond=None)[0]
    assert pytest.approx(expected, abs=1e-3 * np.abs(expected).max()) == found.T


@pytest.mark.parametrize("method", ["grail", "corp"])
@pytest.mark.parametrize("kind", ["vit", "plain vit", "distilled vit"])
def test_every_layer_agrees_better_on_images_that_it_was_not_fitted_to(kind: str, method: RecoverMethod) -> None:
    pair, done = beside(kind, attention="heads"), list[int]()
    fits = compensate_layers(pair, refit_batches(28), method=method, on_layer=done.append)
    assert [fit.layer for fit in fits] == LAYERS
    assert done == list(range(1, 9))
    assert all(fit.after > fit.before for fit in fits)
