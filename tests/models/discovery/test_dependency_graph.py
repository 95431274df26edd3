"""Found widths against another implementation: the dependency graph of Torch-Pruning (Fang et al., CVPR 2023)."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch_pruning
from torch import nn

from twinbud.models.discovery.found import find_widths
from twinbud.models.families.base import TimmModel

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "mobilenetv3_small_100": {},
    "repvgg_a0": {},
    "convnext_atto": {},
}
IMAGE_SIZE = 64


def pruned_together(model: TimmModel, graph: Any, layer: nn.Module) -> set[tuple[str, int]]:
    """The weights, with their dimension, that Torch-Pruning shortens with the outputs of ``layer``."""
    names = {id(module): name for name, module in model.named_modules()}
    is_convolution = isinstance(layer, nn.Conv2d)
    prune = torch_pruning.prune_conv_out_channels if is_convolution else torch_pruning.prune_linear_out_channels
    places: set[tuple[str, int]] = set()
    for dependency, _ in graph.get_pruning_group(layer, prune, idxs=[0]):
        module = dependency.target.module
        if id(module) in names and isinstance(getattr(module, "weight", None), nn.Parameter):
            mixes = isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
            reads = mixes and not graph.is_out_channel_pruning_fn(dependency.handler)
            places.add((f"{names[id(module)]}.weight", int(reads)))
    return places


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_shares_its_outputs_with_the_layers_that_torch_pruning_names(name: str) -> None:
    model = timm.create_model(name, num_classes=3, **NETWORKS[name]).eval()
    specs = find_widths(model, IMAGE_SIZE)
    places: dict[str, set[tuple[str, int]]] = {}
    for tensor, spec in specs.items():
        for dimension, axis in spec.widths():
            if tensor.endswith(".weight"):
                places.setdefault(axis.width, set()).add((tensor, dimension))
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE), verbose=False
    )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    checked = 0
    for layer_name, layer in layers.items():
        spec = specs[f"{layer_name}.weight"]
        if spec.role == "classifier" or getattr(layer, "groups", 1) > 1:
            continue
        ((_, axis),) = (pair for pair in spec.widths() if pair[0] == 0)
        assert places[axis.width] == pruned_together(model, graph, layer), layer_name
        checked += 1
    assert checked >= 10
