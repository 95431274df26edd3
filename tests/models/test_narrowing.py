"""Narrower networks: the same as timm's own of that width where timm has one, and new weights as timm draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from helpers.builders import VIT
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.narrowing import build_network, narrow, narrowed_shapes, outline_network, shapes_of
from twinbud.models.outline import outline
from twinbud.models.widths import divided_sizes

WIDE: dict[str, Any] = {"channels": (24, 32, 32, 64)}
NARROW: dict[str, Any] = {"channels": (12, 16, 16, 32)}
PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bottleneck": ("resnet26", WIDE, NARROW),
    "grouped": ("resnext50_32x4d", {"channels": (64, 64, 64, 64)}, {"channels": (32, 32, 32, 32)}),
    "squeeze-excite": ("seresnet50", {"channels": (64, 64, 64, 64)}, {"channels": (32, 32, 32, 32)}),
    "convnext": (
        "convnext_tiny",
        {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)},
        {"dims": (4, 8, 12, 16), "depths": (1, 1, 1, 1)},
    ),
    "vit": ("vit_tiny_patch16_224", VIT, {**VIT, "embed_dim": 16, "num_heads": 2}),
}


def built(name: str) -> tuple[TimmModel, TimmModel]:
    """timm's network of the smaller width, and the wider one."""
    architecture, wide, small = PAIRS[name]
    torch.manual_seed(0)
    expected, model = (timm.create_model(architecture, num_classes=5, **arguments) for arguments in (small, wide))
    return expected, model


def images(name: str) -> torch.Tensor:
    size = PAIRS[name][1].get("img_size", 64)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PAIRS)
def test_a_narrowed_network_is_timms_own_of_that_width(name: str) -> None:
    expected, model = built(name)
    narrow(model, shapes_of(expected.state_dict()))
    assert repr(model) == repr(expected)
    model.load_state_dict(expected.state_dict())
    assert torch.equal(model.eval()(images(name)), expected.eval()(images(name)))


@pytest.mark.parametrize("name", PAIRS)
def test_a_narrowed_network_gets_another_classifier_from_timm(name: str) -> None:
    expected, model = built(name)
    narrow(model, shapes_of(expected.state_dict())).reset_classifier(7)
    assert model.eval()(images(name)).shape == (2, 7)
    assert (model.num_features, model.head_hidden_size) == (expected.num_features, expected.head_hidden_size)


@pytest.mark.parametrize("name", PAIRS)
def test_new_weights_of_a_narrowed_network_are_those_of_timms_own(name: str) -> None:
    """Each tensor has the standard deviation that timm gives it at this width, within the sampling error."""
    architecture, wide, _ = PAIRS[name]
    expected, _ = built(name)
    torch.manual_seed(1)
    model = build_network(architecture, "test", shapes_of(expected.state_dict()), num_classes=5, **wide)
    assert repr(model) == repr(expected)
    found = model.state_dict()
    for tensor_name, tensor in expected.state_dict().items():
        if tensor.numel() == 1 or tensor.std() == 0:
            assert torch.equal(found[tensor_name], tensor), tensor_name
        else:
            ratio = float(found[tensor_name].std() / tensor.std())
            assert abs(ratio - 1) < 5 * tensor.numel() ** -0.5, f"{tensor_name}: {ratio}"


def test_narrowing_afterwards_keeps_the_deviation_of_the_wider_layers() -> None:
    """Why the layers are made narrow while timm builds the network: Kaiming's deviation depends on the width."""
    expected, model = built("bottleneck")
    narrow(model, shapes_of(expected.state_dict()))
    before, after = (network.state_dict()["layer4.1.conv2.weight"].std() for network in (model, expected))
    ratio = float(before / after)
    assert ratio == pytest.approx(0.5**0.5, rel=0.05)


def test_nothing_is_called_once_the_network_is_built() -> None:
    expected, _ = built("bottleneck")
    build_network("resnet26", "test", shapes_of(expected.state_dict()), num_classes=5, **WIDE)
    again: TimmModel = timm.create_model("resnet26", num_classes=5, **WIDE)
    assert again.conv1.out_channels == 64
    assert again.layer1[0].conv1.out_channels == 24


def test_a_network_without_numbers_becomes_narrow_too() -> None:
    expected, _ = built("bottleneck")
    model = outline_network("resnet26", "test", shapes_of(expected.state_dict()), num_classes=3, **WIDE)
    assert model.fc.weight.is_meta
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 3)


def test_equal_arguments_share_one_network_without_numbers_and_others_do_not() -> None:
    model = outline_network("resnet26", "test", None, num_classes=3, **WIDE)
    assert outline_network("resnet26", "another place", None, **WIDE, num_classes=3) is model
    assert outline_network("resnet26", "test", None, num_classes=4, **WIDE).fc.out_features == 4
    layer = {"num_classes": 3, "act_layer": nn.SiLU}  # no plain value
    assert isinstance(outline_network("resnet26", "test", None, **layer).act1, nn.SiLU)
    with pytest.raises(TwinbudError, match=r"^here: timm cannot build resnet26"):
        outline_network("resnet26", "here", None, num_classes="three")


def test_shapes_without_a_classifier_give_a_network_with_one() -> None:
    expected = timm.create_model("resnet26", num_classes=0, **NARROW)
    model = build_network("resnet26", "test", shapes_of(expected.state_dict()), num_classes=3, **WIDE)
    assert tuple(model.fc.weight.shape) == (3, 128)
    assert (model.fc.in_features, model.fc.out_features) == (128, 3)


def test_the_seed_alone_decides_the_new_weights() -> None:
    shapes = shapes_of(built("bottleneck")[0].state_dict())
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_network("resnet26", "test", shapes, num_classes=5, **WIDE).state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_shapes_follow_from_the_sizes_of_widths() -> None:
    model = outline("convnext_tiny", "test", num_classes=5, **PAIRS["convnext"][1])
    specs, state = family_of(model).specs(model), model.state_dict()
    small = outline("convnext_tiny", "test", num_classes=5, **PAIRS["convnext"][2])
    assert narrowed_shapes(specs, state, divided_sizes(specs, state, 2)) == shapes_of(small.state_dict())
    assert narrowed_shapes(specs, state, {}) == shapes_of(state)
    one = narrowed_shapes(specs, state, {"stage/1": 9})
    assert one["stages.1.blocks.0.conv_dw.weight"] == (9, 1, 7, 7)
    assert one["stages.2.downsample.1.weight"] == (24, 9, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"stage/1": 17}, "the width stage/1 cannot have 17 indices; it has 16"),
        ({"stage/1": 0}, "the width stage/1 cannot have 0 indices; it has 16"),
        ({"stage/9": 1}, "the width stage/9 cannot have 1 indices; the network has no such width"),
    ],
)
def test_a_size_that_a_width_cannot_have_is_refused(sizes: dict[str, int], problem: str) -> None:
    model = outline("convnext_tiny", "test", num_classes=5, **PAIRS["convnext"][1])
    with pytest.raises(TwinbudError, match=problem):
        narrowed_shapes(family_of(model).specs(model), model.state_dict(), sizes)


class Remembers(nn.Module):
    """Keeps the size of its tensor, as a layer that reshapes would."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 64
        self.gamma = nn.Parameter(torch.ones(64))


def resnet_with(part: nn.Module) -> TimmModel:
    model = timm.create_model("resnet26", num_classes=5, **WIDE)
    model.act1 = part
    return model


@pytest.mark.parametrize(("groups", "channels", "kept"), [(32, 48, 24), (1, 48, 1), (64, 16, 16)])
def test_groups_of_a_norm_keep_their_size(groups: int, channels: int, kept: int) -> None:
    shapes = {"act1.weight": (channels,), "act1.bias": (channels,)}
    norm = narrow(resnet_with(nn.GroupNorm(groups, 64)), shapes).act1
    assert (norm.num_groups, norm.num_channels) == (kept, channels)


@pytest.mark.parametrize(
    ("build", "shapes", "problem"),
    [
        (
            lambda: resnet_with(Remembers()),
            {"act1.gamma": (32,)},
            r"a Remembers cannot .* \('act1.gamma' from ",
        ),
        (lambda: resnet_with(nn.GroupNorm(32, 64)), {"act1.weight": (47,), "act1.bias": (47,)}, "a GroupNorm cannot"),
        (
            lambda: timm.create_model("nf_regnet_b0", num_classes=5),
            {"stem.conv.weight": (16, 3, 3, 3), "stem.conv.gain": (16, 1, 1, 1), "stem.conv.bias": (16,)},
            "a ScaledStdConv2d",
        ),
        (lambda: resnet_with(nn.Identity()), {"conv1.weight": (65, 3, 7, 7)}, "timm's has shape"),
        (lambda: resnet_with(nn.Identity()), {"conv1.weight": (64, 3, 7)}, "timm's has shape"),
        (lambda: resnet_with(nn.Identity()), {"conv9.weight": (1,)}, "timm's network has no such tensor"),
    ],
)
def test_what_cannot_be_made_narrower_is_named(
    build: Callable[[], TimmModel], shapes: dict[str, tuple[int, ...]], problem: str
) -> None:
    with pytest.raises(TwinbudError, match=problem):
        narrow(build(), shapes)


def test_a_scale_that_a_block_holds_itself_becomes_narrower() -> None:
    block = nn.Module()
    block.gamma = nn.Parameter(torch.arange(64.0))
    model = narrow(resnet_with(block), {"act1.gamma": (32,)})
    assert torch.equal(model.act1.gamma, torch.arange(32.0))
    assert model.act1.gamma.requires_grad


def test_heads_that_would_be_cut_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    with pytest.raises(TwinbudError, match="its heads have 8 channels"):
        narrow(model, {"blocks.0.attn.proj.weight": (32, 20)})
