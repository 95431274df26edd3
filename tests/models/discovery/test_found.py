"""Widths found in networks: those that were described, exactly; and those of networks that nobody described."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm

from helpers.convolutional import CONVOLUTIONAL
from models.families.test_proof import NETWORKS, build
from twinbud.core.errors import TwinbudError
from twinbud.models.discovery.family import DiscoveredFamily
from twinbud.models.discovery.found import find_widths, prove
from twinbud.models.families import family_of
from twinbud.models.families.base import TimmModel
from twinbud.models.widths import Axis, Concatenation, TensorSpec, width_sizes

Place = tuple[str, int]
UNDESCRIBED: dict[str, tuple[dict[str, Any], int]] = {
    "regnety_002": ({}, 32),
    "edgenext_xx_small": ({}, 64),
    "poolformer_s12": ({}, 32),
    "mobileone_s0": ({}, 32),
    "efficientformer_l1": ({"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 2)}, 224),
    "densenet121": ({"growth_rate": 8, "block_config": (2, 2, 2, 2)}, 64),
}
"""timm's arguments and an image size in pixels, of networks without a family of their own."""


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
    arguments, image_size = UNDESCRIBED[name]
    return timm.create_model(name, num_classes=3, **arguments), image_size


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
        assert (
            len(beside) == 5 * 12
        )  # of five blocks, both norms and the dimensions of three convolutions that they share
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


def test_a_width_without_one_of_its_tensors_is_refused_by_that_tensor() -> None:
    model, image_size = network("regnety_002")
    specs = find_widths(model, image_size)
    missing = "s2.b1.conv3.bn.weight"
    specs[missing] = replace(specs[missing], axes=(None,))
    width = next(axis.width for _, axis in specs["s2.b1.conv3.bn.bias"].widths())
    with pytest.raises(TwinbudError, match=f"the width {width} could not be proved: permuting it in") as caught:
        prove(model, specs, image_size, "regnety_002")
    assert caught.value.where == "regnety_002"


def test_a_tensor_that_does_not_run_along_a_width_is_named() -> None:
    model, image_size = network("regnety_002")
    specs = find_widths(model, image_size)
    axis = specs["s2.b1.conv3.bn.weight"].axes[0]
    assert isinstance(axis, Axis)
    wrong = "s3.b1.conv1.bn.bias"
    size = width_sizes(specs, model.state_dict())[axis.width]
    assert model.state_dict()[wrong].shape[0] > size
    specs[wrong] = TensorSpec((Concatenation((axis, model.state_dict()[wrong].shape[0] - size)),))
    with pytest.raises(TwinbudError, match=f"'{wrong}' most likely does not run along it"):
        prove(model, specs, image_size, "regnety_002")


@pytest.mark.parametrize("name", UNDESCRIBED)
def test_half_of_a_network_that_nobody_described_runs(name: str) -> None:
    model, _ = network(name)
    family = DiscoveredFamily(model, name)
    whole = width_sizes(family.specs(model), model.state_dict())
    sizes = family.half_sizes(model)
    assert all(sizes[width] == whole[width] // 2 for width in sizes)
    assert len(sizes) >= len(whole) / 2
