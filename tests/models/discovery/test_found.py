"""Widths found in networks: those that were described, exactly; and those of networks that nobody described."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from timm.models._builder import build_model_with_cfg
from timm.models.byobnet import ByobNet, ByoModelCfg, _mobileone_bcfg

from helpers.builders import VIT, small_regnety
from helpers.convolutional import CONVOLUTIONAL
from models.families.test_proof import NETWORKS, build
from twinbud.core.errors import TwinbudError
from twinbud.models.discovery.family import DiscoveredFamily
from twinbud.models.discovery.found import find_widths
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.invariance import prove, randomize
from twinbud.models.narrowing import narrow, narrowed_shapes
from twinbud.models.outline import outline
from twinbud.models.widths import Axis, Concatenation, TensorSpec, width_sizes

Place = tuple[str, int]
UNDESCRIBED: dict[str, Callable[[], TimmModel]] = {
    "regnety": lambda: small_regnety(num_classes=3),
    "edgenext": lambda: timm.create_model("edgenext_xx_small", num_classes=3, depths=(2, 2, 2, 2)),
    "poolformer": lambda: timm.create_model("poolformer_s12", num_classes=3),
    "mobileone": lambda: build_model_with_cfg(
        ByobNet,
        "mobileone_s0",
        pretrained=False,
        model_cfg=ByoModelCfg(
            tuple(map(tuple, _mobileone_bcfg((1, 2, 1, 1), (0.25,) * 4, num_conv_branches=3))),
            stem_type="one",
            stem_chs=16,
        ),
        num_classes=3,
    ),
    "efficientformer": lambda: timm.create_model(
        "efficientformer_l1", num_classes=3, embed_dims=(16, 32, 48, 64), depths=(1, 1, 1, 2)
    ),
    "densenet": lambda: timm.create_model("densenet121", num_classes=3, growth_rate=8, block_config=(2, 2, 2, 2)),
}
"""Small networks of architectures without a family of their own."""


def by_place(specs: dict[str, TensorSpec]) -> dict[Place, tuple[frozenset[Place], int, int, int | None]]:
    """For each dimension with a width: all dimensions of that width, and how the axis runs; names do not matter."""
    places: dict[str, set[Place]] = {}
    for name, spec in specs.items():
        for dimension, axis in spec.widths():
            places.setdefault(axis.width, set()).add((name, dimension))
    return {
        (name, dimension): (frozenset(places[axis.width]), axis.copies, axis.unit, axis.head_size)
        for name, spec in specs.items()
        for dimension, axis in spec.widths()
    }


def network(name: str) -> tuple[TimmModel, int]:
    """Build a network of ``UNDESCRIBED``; return it with an image size in pixels that it can process."""
    return UNDESCRIBED[name](), 224 if name == "efficientformer" else 64


@pytest.mark.parametrize("name", NETWORKS)
def test_the_described_widths_are_found_exactly(name: str) -> None:
    model, image_size = build(name)
    described, found = family_of(model).specs(model), find_widths(model, image_size)
    assert by_place(found) == by_place(described)
    classifiers = [{name for name, spec in specs.items() if spec.role == "classifier"} for specs in (described, found)]
    assert classifiers[0] == classifiers[1]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_described_widths_of_convolutional_networks_are_found_exactly(name: str) -> None:
    """Of grouped convolutions whole groups are found, while the family makes every group narrower."""
    model, image_size = build(name)
    described, found = (by_place(specs) for specs in (family_of(model).specs(model), find_widths(model, image_size)))
    if name == "resnext-strided-stem":
        grouped = {place for place, (_, copies, unit, _) in found.items() if copies * unit > 1}
        beside = {place for group, *_ in (found[place] for place in grouped) for place in group}
        beside |= {place for group, *_ in (described[place] for place in grouped) for place in group}
        described, found = ({p: a for p, a in each.items() if p not in beside} for each in (described, found))
        # of five blocks, both norms and the dimensions of three convolutions that they share
        assert len(beside) == 5 * 12
    assert found == described


@pytest.mark.parametrize("name", UNDESCRIBED)
def test_widths_of_a_network_that_nobody_described_are_found_and_proved(name: str) -> None:
    model, image_size = network(name)
    specs = find_widths(model, image_size)
    assert set(specs) == set(model.state_dict())
    weights = {name: spec for name, spec in specs.items() if spec.role == "weight" and spec.axes}
    without = [name for name, spec in weights.items() if not list(spec.widths()) and ".attention_bias_idxs" not in name]
    assert not without  # nothing but the classes and tables of positions is kept whole
    assert prove(model, specs, image_size, name) <= 1e-9


def test_a_network_without_norms_is_proved_on_images_that_reach_its_output() -> None:
    model = timm.create_model("test_nfnet", num_classes=3)
    specs = find_widths(model, 64)
    assert prove(model, specs, 64, "test_nfnet") <= 1e-9
    specs["final_conv.gain"] = replace(specs["final_conv.gain"], axes=(None, None, None, None))
    with pytest.raises(TwinbudError, match="could not be proved"):
        prove(model, specs, 64, "test_nfnet")


def test_a_width_without_one_of_its_tensors_is_refused_by_that_tensor() -> None:
    model, image_size = network("regnety")
    specs = find_widths(model, image_size)
    missing = "s2.b1.conv3.bn.weight"
    specs[missing] = replace(specs[missing], axes=(None,))
    width = next(axis.width for _, axis in specs["s2.b1.conv3.bn.bias"].widths())
    with pytest.raises(TwinbudError, match=f"the width {width} could not be proved: permuting it in") as caught:
        prove(model, specs, image_size, "regnety")
    assert caught.value.where == "regnety"


def test_a_tensor_that_does_not_run_along_a_width_is_named() -> None:
    model, image_size = network("regnety")
    specs = find_widths(model, image_size)
    axis = specs["s2.b1.conv3.bn.weight"].axes[0]
    assert isinstance(axis, Axis)
    wrong = "s3.b1.conv1.bn.bias"
    size = width_sizes(specs, model.state_dict())[axis.width]
    assert model.state_dict()[wrong].shape[0] > size
    specs[wrong] = TensorSpec((Concatenation((axis, model.state_dict()[wrong].shape[0] - size)),))
    with pytest.raises(TwinbudError, match=f"'{wrong}' most likely does not run along it"):
        prove(model, specs, image_size, "regnety")


@pytest.mark.parametrize(
    ("name", "num_whole"),
    [
        ("regnety", 0),
        ("edgenext", 9),  # stages that split their channels by a number that a layer keeps
        ("poolformer", 0),
        ("mobileone", 0),
        ("efficientformer", 1),  # an attention that keeps its number of heads under another name
        ("densenet", 0),
    ],
)
def test_half_of_a_network_that_nobody_described_runs(name: str, num_whole: int) -> None:
    model, _ = network(name)
    family = DiscoveredFamily(model, name)
    whole = width_sizes(family.specs(model), model.state_dict())
    sizes = family.narrow_sizes(model, 2)
    assert all(sizes[width] == whole[width] // 2 for width in sizes)
    assert len(whole) - len(sizes) == num_whole


@pytest.mark.parametrize("name", ["regnety", "mobileone", "densenet", "resnet-group-norm"])
@torch.no_grad()
def test_a_narrower_network_computes_what_the_whole_one_does_without_the_other_channels(name: str) -> None:
    """Channels that nothing reads make no difference to what is left, where no norm runs across channels."""
    if name == "resnet-group-norm":
        model = timm.create_model("resnet50_gn", num_classes=3, layers=(1, 1, 1, 1))
    else:
        model, _ = network(name)
    family = DiscoveredFamily(model, name)
    specs, sizes = family.specs(model), family.narrow_sizes(model, 2)
    state = randomize(model).state_dict()
    whole = width_sizes(specs, state)
    kept = {
        width: sorted(random.Random(width).sample(range(size), sizes.get(width, size))) for width, size in whole.items()
    }

    def chosen(axis: Axis) -> tuple[Sequence[int], int]:
        return kept[axis.width], whole[axis.width]

    small, silenced = dict(state), dict(state)
    for tensor, spec in specs.items():
        for dimension in {dimension for dimension, _ in spec.widths()}:
            small[tensor] = spec.select(small[tensor], dimension, chosen)
            if dimension == 1:  # what reads the channels
                places = spec.select(torch.arange(state[tensor].shape[1])[None], 1, chosen)[0]
                read = torch.zeros_like(state[tensor])
                read[:, places] = state[tensor][:, places]
                silenced[tensor] = read
    narrowed = narrow(deepcopy(model), {tensor: tuple(value.shape) for tensor, value in small.items()})
    narrowed.load_state_dict(small)
    model.load_state_dict(silenced)
    images_BCSS = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, found = model(images_BCSS), narrowed(images_BCSS)
    assert float((found - expected).abs().max()) <= 1e-9 * float((expected[0] - expected[1]).abs().max())


def test_heads_that_a_layer_counts_by_itself_stay_whole() -> None:
    """twins_svt keeps its number of heads and divides whatever width it gets by it."""
    model = outline("twins_svt_small", "test", num_classes=3, depths=(1, 1, 1, 1))
    family = DiscoveredFamily(model, "twins_svt_small")
    sizes = family.narrow_sizes(model, 2)
    assert sizes
    assert not [width for width in sizes if width.startswith(("attention/", "groups/"))]


def test_differential_attention_keeps_its_heads_in_a_narrower_network() -> None:
    """Each of them has two parts of ``head_dim`` channels."""
    model: TimmModel = timm.create_model("vit_dwee_patch16_reg1_gap_256", num_classes=3, **VIT)
    family = DiscoveredFamily(model, "vit_dwee")
    specs, state = family.specs(model), model.state_dict()
    shapes = narrowed_shapes(specs, state, family.narrow_sizes(model, 2))
    narrowed = narrow(deepcopy(model), shapes)
    assert [block.attn.num_heads for block in narrowed.blocks] == [4, 4]
    assert narrowed.blocks[0].mlp.fc1.out_features == model.blocks[0].mlp.fc1.out_features // 2
    assert narrowed(torch.zeros(1, 3, 28, 28)).shape == (1, 3)


def test_images_that_hardly_reach_the_output_prove_nothing() -> None:
    model, image_size = network("regnety")
    specs = find_widths(model, image_size)
    missing = "s1.b1.conv1.bn.weight"
    specs[missing] = replace(specs[missing], axes=(None,))
    with pytest.raises(TwinbudError, match="could not be proved"):
        prove(model, specs, image_size, "regnety")


def test_two_widths_of_two_indices_cannot_undo_each_other() -> None:
    """They have one order besides their own, and so the same one."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, mlp_ratio=0.125, num_classes=3
    )
    specs = find_widths(model, 32)
    name = "blocks.0.mlp.fc2.weight"
    hidden = specs[name].axes[1]
    assert isinstance(hidden, Axis)
    specs[name] = replace(specs[name], axes=(specs[name].axes[0], replace(hidden, width="other")))
    with pytest.raises(TwinbudError, match="could not be proved"):
        prove(model, specs, 32, "vit")
