"""Element selection against the formulas of docs/method.md."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbud.config.schema import Rule
from twinbud.models.rules import consecutive, from_permutation, select_indices, uniform

widths = st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(widths)
def test_uniform_is_the_formula(width: tuple[int, int]) -> None:
    n, m = width
    first, auxiliary = uniform(n, m)
    assert first == tuple(math.floor(j * n / m) for j in range(m))
    left = sorted(set(range(n)) - set(first))
    if len(left) >= m:
        assert auxiliary == tuple(left[math.floor(j * len(left) / m)] for j in range(m))
    else:
        shared = {first[math.floor(j * m / (m - len(left)))] for j in range(m - len(left))}
        assert set(auxiliary) == set(left) | shared


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_uniform_at_an_integer_stride_takes_offsets_zero_and_one(stride: int) -> None:
    first, auxiliary = uniform(stride * 12, 12)
    assert first == tuple(range(0, stride * 12, stride))
    assert auxiliary == tuple(range(1, stride * 12, stride))


def test_consecutive_takes_the_first_and_the_last() -> None:
    assert consecutive(7, 3) == ((0, 1, 2), (4, 5, 6))


def test_random_takes_the_next_of_one_permutation_and_wraps_round() -> None:
    assert from_permutation([3, 1, 4, 0, 2], 2) == ((3, 1), (4, 0))
    assert from_permutation([3, 1, 4, 0, 2], 3) == ((3, 1, 4), (0, 2, 3))


@given(widths, st.sampled_from(get_args(Rule)), st.integers(0, 2**32))
def test_every_rule_gives_distinct_indices_and_overlaps_as_little_as_it_can(
    width: tuple[int, int], rule: Rule, seed: int
) -> None:
    n, m = width
    first, auxiliary = select_indices(rule, n, m, np.random.default_rng(seed))
    for chosen in (first, auxiliary):
        assert len(chosen) == len(set(chosen)) == m
        assert set(chosen) <= set(range(n))
    assert len(set(first) & set(auxiliary)) == max(0, 2 * m - n)
