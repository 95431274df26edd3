"""From dimensions to widths: the specs of a network that nobody described, not yet proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from twinbud.models.discovery.calls import Dimensions
from twinbud.models.discovery.dimensions import Concatenation as Parts
from twinbud.models.discovery.dimensions import Dimension, Fixed, Product, Unknown, fix, resolve, unknowns
from twinbud.models.discovery.trace import follow_dimensions
from twinbud.models.families.base import TimmModel
from twinbud.models.widths import Axis, Concatenation, TensorSpec


def find_widths(model: TimmModel, image_size: int) -> dict[str, TensorSpec]:
    """Return the spec of every tensor of ``model``, found from its forward pass and not yet proved.

    Args:
        model: Any network of timm.
        image_size: Image side in pixels, one that the network can process.
    """
    known, _ = follow_dimensions(model, image_size)
    heads = _attention_heads(known)
    _keep_inner_factors(known)
    while hidden := _without_own_tensor(known):
        for unknown in hidden:
            fix(unknown)
    names = _names(known, heads)
    classifier = _classifier(model)
    specs: dict[str, TensorSpec] = {}
    for name, dimensions in known.items():
        axes = tuple(_axis(resolve(dimension), names, heads) for dimension in dimensions)
        is_classifier = name.rpartition(".")[0] in classifier
        specs[name] = TensorSpec(axes, "classifier" if is_classifier else "weight")
    return specs


def _all(known: Mapping[str, Dimensions]) -> Iterator[Dimension]:
    for dimensions in known.values():
        yield from map(resolve, dimensions)


def _products(dimension: Dimension) -> Iterator[tuple[Dimension, ...]]:
    """Yield the factors of each part of a dimension."""
    known = resolve(dimension)
    for part in known.parts if isinstance(known, Parts) else (known,):
        yield part.factors if isinstance(part, Product) else (part,)


@dataclass
class _Heads:
    """The heads of one attention, while they are collected."""

    inner: set[Unknown] = field(default_factory=set)
    """The unknowns that follow the heads directly: the channels of a head."""
    sizes: set[int] = field(default_factory=set)
    """What follows the heads, in elements."""
    is_attended: bool = False


def _attention_heads(known: Mapping[str, Dimensions]) -> dict[Unknown, int]:
    """Return the attention heads whose channels can be permuted inside each head, with their number of channels.

    The channels of queries and keys may be other unknowns than those of values, but must be as many; and they may
    occur nowhere else, as the weights of a norm do that all heads share.
    """
    found: dict[Unknown, _Heads] = {}
    occurrences: Counter[Unknown] = Counter()
    inside: Counter[Unknown] = Counter()
    for dimension in _all(known):
        occurrences.update(unknowns(dimension))
        for factors in _products(dimension):
            place = next((place for place, factor in enumerate(factors) if isinstance(factor, Unknown)), len(factors))
            rest = factors[place + 1 :]
            if not rest:
                continue
            heads = found.setdefault(_unknown(factors[place]), _Heads())
            heads.sizes.add(prod(factor.size for factor in rest))
            if len(rest) == 1 and isinstance(rest[0], Unknown):
                heads.inner.add(rest[0])
                heads.is_attended |= rest[0].is_attended
                inside[rest[0]] += 1
            else:
                heads.is_attended = False
                heads.sizes.add(0)
    return {
        unknown: next(iter(heads.sizes))
        for unknown, heads in found.items()
        if heads.is_attended and len(heads.sizes) == 1 and all(inside[own] == occurrences[own] for own in heads.inner)
    }


def _unknown(dimension: Dimension) -> Unknown:
    assert isinstance(dimension, Unknown)
    return dimension


def _keep_inner_factors(known: Mapping[str, Dimensions]) -> None:
    """Fix what follows the outermost unknown of a product, and the channels of single heads: they are kept whole."""
    while True:
        inner: list[Unknown] = []
        for dimension in _all(known):
            for factors in _products(dimension):
                free = [place for place, factor in enumerate(factors) if unknowns(factor)]
                first = free[0] if free and isinstance(factors[free[0]], Unknown) else -1
                inner += [unknown for place in free if place != first for unknown in unknowns(factors[place])]
                if free and first >= 0 and _unknown(factors[first]).is_attended:
                    inner.append(_unknown(factors[first]))
        if not inner:
            return
        for unknown in inner:
            fix(unknown)


def _without_own_tensor(known: Mapping[str, Dimensions]) -> set[Unknown]:
    """Return the unknowns that occur in concatenations alone, so that no tensor tells their size."""
    plain: set[Unknown] = set()
    everywhere: set[Unknown] = set()
    for dimension in _all(known):
        everywhere.update(unknowns(dimension))
        if not isinstance(dimension, Parts):
            plain.update(unknowns(dimension))
    return everywhere - plain


def _names(known: Mapping[str, Dimensions], heads: Mapping[Unknown, int]) -> dict[Unknown, str]:
    """Name each unknown by the first layer that writes it, or else the first that reads it."""
    names: dict[Unknown, str] = {}
    taken: Counter[str] = Counter()
    grouped = {factors[0] for dimension in _all(known) for factors in _products(dimension) if len(factors) > 1}
    for place in (0, None):
        for name, dimensions in known.items():
            layer = name.rpartition(".")[0] or name
            for dimension in dimensions[:1] if place == 0 else dimensions:
                for factors in _products(dimension):
                    unknown = next((factor for factor in factors if isinstance(factor, Unknown)), None)
                    if unknown is None or unknown in names:
                        continue
                    kind = "attention" if unknown in heads else "groups" if unknown in grouped else "channels"
                    taken[layer] += 1
                    names[unknown] = f"{kind}/{layer}" + (f".{taken[layer]}" if taken[layer] > 1 else "")
    return names


def _axis(
    dimension: Dimension, names: Mapping[Unknown, str], heads: Mapping[Unknown, int]
) -> Axis | Concatenation | None:
    parts = [_part(factors, names, heads) for factors in _products(dimension)]
    if len(parts) > 1:
        return Concatenation(tuple(parts))
    return parts[0] if isinstance(parts[0], Axis) else None


def _part(factors: tuple[Dimension, ...], names: Mapping[Unknown, str], heads: Mapping[Unknown, int]) -> Axis | int:
    """Return the axis of one part of a dimension, or its number of elements if they are kept whole."""
    for place, factor in enumerate(factors):
        if isinstance(factor, Unknown):
            copies, unit = (
                prod(other.size for other in factors[:place]),
                prod(other.size for other in factors[place + 1 :]),
            )
            name = names[factor]
            if factor not in heads:
                return Axis(name, copies=copies, unit=unit)
            if unit == heads[factor]:
                return Axis(name, copies=copies, head_size=unit)
            return Axis(f"heads/{name.partition('/')[2]}", copies=copies, unit=unit)
    assert all(isinstance(factor, Fixed) for factor in factors)
    return prod(factor.size for factor in factors)


def _classifier(model: TimmModel) -> tuple[str, ...]:
    """Return the names of the layers that timm calls the classifier."""
    named = model.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)
