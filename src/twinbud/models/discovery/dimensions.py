"""Dimensions of tensors as unknowns: which elements of two dimensions must keep the same order.

Each dimension of a parameter starts as an ``Unknown``. Following a forward pass refines it: adding two tensors makes
their dimensions equal, a reshape into heads makes one a ``Product``, a split makes it a ``Concatenation``, and what
depends on the order of the elements (an image's pixels, a kernel, the classes) makes it ``Fixed``. What is still
unknown at the end can be permuted, together in all tensors where it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Fixed:
    """Elements whose order matters, or which are simply kept."""

    size: int


class Unknown:
    """Elements whose order is free as far as is known.

    Attributes:
        size: Number of elements.
        meaning: What it turned out to be, if that is known.
        is_attended: Whether two activations are multiplied along it, as queries and keys are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.meaning: Dimension | None = None
        self.is_attended = False


@dataclass(frozen=True)
class Product:
    """Factors from outer to inner, as a reshape of several dimensions into one gives: heads, then their channels."""

    factors: tuple[Dimension, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Concatenation:
    """Parts that follow one another."""

    parts: tuple[Dimension, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(part.size for part in self.parts)


Dimension = Fixed | Unknown | Product | Concatenation


def resolve(dimension: Dimension) -> Dimension:
    """Return what is known of ``dimension``, in normal form.

    No product inside a product, no concatenation inside a concatenation, no factor of size 1 and no part of size 0;
    fixed neighbors are joined, and equal parts are a product with the number of parts.
    """
    if isinstance(dimension, Unknown):
        if dimension.meaning is None:
            return Fixed(1) if dimension.size == 1 else dimension
        dimension.meaning = resolve(dimension.meaning)
        return dimension.meaning
    if isinstance(dimension, Product):
        return _product(dimension.factors)
    if isinstance(dimension, Concatenation):
        return _concatenation(dimension.parts)
    return dimension


def _product(factors: Iterable[Dimension]) -> Dimension:
    joined: list[Dimension] = []
    for factor in map(resolve, factors):
        for inner in factor.factors if isinstance(factor, Product) else (factor,):
            before = joined[-1] if joined else None
            if isinstance(before, Fixed) and isinstance(inner, Fixed):
                joined[-1] = Fixed(before.size * inner.size)
            elif inner.size != 1:
                joined.append(inner)
    if len(joined) > 1:
        return Product(tuple(joined))
    return joined[0] if joined else Fixed(1)


def _concatenation(parts: Iterable[Dimension]) -> Dimension:
    joined: list[Dimension] = []
    for part in map(resolve, parts):
        for inner in part.parts if isinstance(part, Concatenation) else (part,):
            before = joined[-1] if joined else None
            if isinstance(before, Fixed) and isinstance(inner, Fixed):
                joined[-1] = Fixed(before.size + inner.size)
            elif inner.size:
                joined.append(inner)
    if len(joined) > 1 and all(part == joined[0] for part in joined):
        return _product((Fixed(len(joined)), joined[0]))
    return Concatenation(tuple(joined)) if len(joined) > 1 else joined[0] if joined else Fixed(0)


def unknowns(dimension: Dimension) -> list[Unknown]:
    """Return the unknowns in ``dimension``, in order, each as often as it occurs."""
    known = resolve(dimension)
    if isinstance(known, Unknown):
        return [known]
    inner = known.factors if isinstance(known, Product) else known.parts if isinstance(known, Concatenation) else ()
    return [unknown for part in inner for unknown in unknowns(part)]


def fix(dimension: Dimension) -> None:
    """Fix all elements: their order matters."""
    for unknown in unknowns(dimension):
        unknown.meaning = Fixed(unknown.size)


def unify(first: Dimension, second: Dimension) -> None:
    """Make two dimensions of one size equal, element by element; what cannot be aligned is fixed."""
    first, second = resolve(first), resolve(second)
    if first == second:
        return
    assert first.size == second.size, f"dimensions of {first.size} and {second.size} elements cannot be equal"
    for own, other in ((first, second), (second, first)):
        if isinstance(own, Unknown):
            if own in unknowns(other):
                fix(other)
            else:
                own.meaning = other
                if isinstance(other, Unknown):
                    other.is_attended |= own.is_attended
            return
    if isinstance(first, Fixed) or isinstance(second, Fixed):
        pairs = None
    elif isinstance(first, Product) and isinstance(second, Product):
        pairs = _aligned_factors(first, second)
    else:
        pairs = _aligned_parts(first, second)
    if pairs is None:
        fix(first)
        fix(second)
        return
    for own, other in pairs:
        unify(own, other)


Pairs = list[tuple[Dimension, Dimension]]
Split = Callable[[Dimension, int], tuple[Dimension, Dimension] | None]
"""Divides a dimension: what remains, and a piece of the given size; None if that is impossible."""


def _aligned_factors(first: Product, second: Product) -> Pairs | None:
    """Return the factors of both in pairs of one size, from the inside; None if they do not align."""
    return _aligned(list(first.factors), list(second.factors), split_factor)


def _aligned_parts(first: Dimension, second: Dimension) -> Pairs | None:
    """Return the parts of both in pairs of one size, from the start; None if they do not align."""

    def split(dimension: Dimension, size: int) -> tuple[Dimension, Dimension] | None:
        found = split_part(dimension, size)
        return found and (found[1], found[0])

    return _aligned(_parts(first)[::-1], _parts(second)[::-1], split)


def _aligned(first: list[Dimension], second: list[Dimension], split: Split) -> Pairs | None:
    """Take pairs of one size from the ends of both lists; ``split`` divides the larger one of two."""
    pairs: Pairs = []
    while first and second:
        own, other = resolve(first.pop()), resolve(second.pop())
        larger, rest = (own, first) if own.size > other.size else (other, second)
        if own.size != other.size:
            divided = split(larger, min(own.size, other.size))
            if divided is None:
                return None
            rest.append(divided[0])
            own, other = (divided[1], other) if larger is own else (own, divided[1])
        pairs.append((own, other))
    return pairs


def _parts(dimension: Dimension) -> list[Dimension]:
    known = resolve(dimension)
    return list(known.parts) if isinstance(known, Concatenation) else [known]


def split_factor(dimension: Dimension, inner_size: int) -> tuple[Dimension, Dimension] | None:
    """Return ``dimension`` as an outer and an inner factor of ``inner_size`` elements; None if that is impossible."""
    known = resolve(dimension)
    if known.size % inner_size:
        return None
    outer_size = known.size // inner_size
    if isinstance(known, Fixed):
        return Fixed(outer_size), Fixed(inner_size)
    if isinstance(known, Unknown):
        outer, inner = Unknown(outer_size), Unknown(inner_size)
        known.meaning = Product((outer, inner))
        return outer, inner
    if isinstance(known, Product):
        return _split_product(known, inner_size)
    return _split_concatenation(known, inner_size)


def _split_product(known: Product, inner_size: int) -> tuple[Dimension, Dimension] | None:
    outer, inner = list(known.factors), list[Dimension]()
    while (missing := inner_size // prod(factor.size for factor in inner)) > 1:
        factor = resolve(outer.pop())
        if missing % factor.size == 0:
            inner.insert(0, factor)
            continue
        split = split_factor(factor, missing)
        if split is None:
            return None
        outer.append(split[0])
        inner.insert(0, split[1])
    return _product(outer), _product(inner)


def _split_concatenation(known: Concatenation, inner_size: int) -> tuple[Dimension, Dimension] | None:
    """Split every part alike, or take whole parts together."""
    if all(part.size % inner_size == 0 for part in known.parts):
        splits = [split_factor(part, inner_size) for part in known.parts]
        found = [split for split in splits if split is not None]
        if len(found) < len(splits):
            return None
        for split in found[1:]:
            unify(found[0][1], split[1])
        return Concatenation(tuple(split[0] for split in found)), found[0][1]
    groups: list[Dimension] = []
    rest: Dimension = known
    while rest.size > inner_size:
        split = split_part(rest, inner_size)
        if split is None:
            return None
        groups.append(split[0])
        rest = split[1]
    for group in groups:
        unify(group, rest)
    return Fixed(len(groups) + 1), rest


def split_part(dimension: Dimension, size: int) -> tuple[Dimension, Dimension] | None:
    """Return the first ``size`` elements and the rest; None if that is impossible."""
    known = resolve(dimension)
    if isinstance(known, Fixed):
        return Fixed(size), Fixed(known.size - size)
    if isinstance(known, Unknown):
        start, rest = Unknown(size), Unknown(known.size - size)
        known.meaning = Concatenation((start, rest))
        return start, rest
    if isinstance(known, Product):
        outer, inner = known.factors[0], known.factors[1:]
        inner_size = prod(factor.size for factor in inner)
        if size % inner_size:
            return None
        fix(outer)
        count = size // inner_size
        return _product((Fixed(count), *inner)), _product((Fixed(outer.size - count), *inner))
    start = list[Dimension]()
    rest = list(known.parts)
    while (missing := size - sum(part.size for part in start)) > 0:
        part = resolve(rest.pop(0))
        if part.size <= missing:
            start.append(part)
            continue
        split = split_part(part, missing)
        if split is None:
            return None
        start.append(split[0])
        rest.insert(0, split[1])
    return _concatenation(start), _concatenation(rest)


def cut(dimension: Dimension, start: int, size: int) -> Dimension:
    """Return ``size`` elements from ``start``; all are fixed where the place divides what cannot be divided."""
    rest: Dimension = dimension
    for length, is_wanted in ((start, False), (size, True)):
        if length == 0 or length == rest.size:
            part: Dimension = rest if length else Fixed(0)
        else:
            split = split_part(rest, length)
            if split is None:
                fix(dimension)
                return Fixed(size)
            part, rest = split
        if is_wanted:
            return part
    return rest


def regroup(dimensions: Iterable[Dimension], sizes: Iterable[int]) -> tuple[Dimension, ...]:
    """Return the dimensions after a reshape to ``sizes``; what a new dimension divides unevenly is fixed."""
    sizes = tuple(sizes)
    rest = _product(dimensions)
    regrouped: list[Dimension] = []
    for size in reversed(sizes):
        split = (rest, Fixed(1)) if size == 1 else (Fixed(1), rest) if size == rest.size else split_factor(rest, size)
        if split is None:
            fix(rest)
            return tuple(Fixed(size) for size in sizes)
        rest = resolve(split[0])
        regrouped.append(split[1])
    return tuple(reversed(regrouped))
