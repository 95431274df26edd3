"""The algebra of unknown dimensions."""

from __future__ import annotations

import pytest

from twinbud.models.discovery.dimensions import (
    Concatenation,
    Fixed,
    Product,
    Unknown,
    cut,
    fix,
    regroup,
    resolve,
    unify,
    unknowns,
)


def test_an_unknown_becomes_what_it_is_unified_with() -> None:
    first, second = Unknown(6), Unknown(6)
    unify(first, second)
    unify(second, Fixed(6))
    assert resolve(first) == Fixed(6)


def test_a_reshape_splits_an_unknown_everywhere() -> None:
    channels = Unknown(12)
    heads, size = regroup([channels], [3, 4])
    assert resolve(channels) == Product((heads, size))
    unify(channels, Product((Unknown(3), Fixed(4))))
    assert resolve(size) == Fixed(4)
    assert unknowns(channels) == [resolve(heads)]


def test_a_reshape_back_gives_the_same_dimension() -> None:
    channels = Unknown(12)
    (joined,) = regroup(regroup([channels], [3, 4]), [12])
    assert resolve(joined) == resolve(channels)


def test_thirds_that_are_added_are_copies_of_one_width() -> None:
    packed = Unknown(12)
    query, key, value = (cut(packed, start, 4) for start in (0, 4, 8))
    unify(query, key)
    unify(key, value)
    assert resolve(packed) == Product((Fixed(3), resolve(query)))


def test_concatenations_are_aligned_at_every_boundary() -> None:
    features, norm = Concatenation((Unknown(3), Unknown(5))), Unknown(8)
    unify(features, norm)
    assert resolve(norm) == resolve(features)
    unify(norm, Concatenation((Unknown(1), Unknown(7))))
    assert [part.size for part in unknowns(features)] == [2, 5]  # the first element is one alone, which has no order


def test_groups_and_the_channels_of_a_group_are_aligned_from_the_inside() -> None:
    channels = Product((Unknown(4), Unknown(6)))
    unify(channels, Product((Unknown(8), Unknown(3))))
    assert [unknown.size for unknown in unknowns(channels)] == [4, 2, 3]


def test_what_cannot_be_aligned_is_fixed() -> None:
    channels, others = Product((Unknown(4), Unknown(6))), Product((Unknown(3), Unknown(8)))
    unify(channels, others)
    assert resolve(channels) == resolve(others) == Fixed(24)


def test_a_dimension_within_itself_is_fixed() -> None:
    inner = Unknown(4)
    unify(inner, Product((Fixed(2), Unknown(2))))
    assert unknowns(inner)
    unify(inner, Concatenation((Fixed(2), cut(inner, 2, 2))))
    assert resolve(inner) == Fixed(4)


@pytest.mark.parametrize("sizes", [(2, 2, 6), (24,), (4, 6), (1, 24, 1)])
def test_a_reshape_keeps_all_elements(sizes: tuple[int, ...]) -> None:
    grouped = regroup([Fixed(2), Unknown(12)], sizes)
    assert [dimension.size for dimension in grouped] == list(sizes)


def test_an_uneven_reshape_fixes_what_it_divides() -> None:
    channels = Unknown(10)
    regroup([channels, Unknown(3)], [6, 5])
    assert resolve(channels) == Fixed(10)


def test_a_cut_through_a_head_fixes_it() -> None:
    heads = Product((Unknown(3), Unknown(4)))
    assert cut(heads, 2, 4) == Fixed(4)
    assert not unknowns(heads)


def test_a_range_of_a_concatenation_is_its_parts() -> None:
    first, second, third = Unknown(2), Unknown(3), Unknown(4)
    assert cut(Concatenation((first, second, third)), 2, 3) is second
    assert resolve(cut(Concatenation((first, second, third)), 2, 7)) == Concatenation((second, third))


def test_fixed_elements_stay_fixed() -> None:
    channels = Unknown(4)
    fix(channels)
    unify(channels, Unknown(4))
    assert resolve(channels) == Fixed(4)
