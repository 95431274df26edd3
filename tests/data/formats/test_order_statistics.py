"""Quantiles in little memory are those of a sort."""

from __future__ import annotations

import numpy as np
import pytest

from twinbud.data.formats.order_statistics import quantiles

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def values(name: str, count: int = 5003) -> np.ndarray:
    """Values over the whole range of a type, many of them equal."""
    dtype, generator = np.dtype(name), np.random.default_rng(len(name))
    if dtype.kind == "f":
        exponents = generator.integers(-30, 30, count).astype(float)
        drawn = (generator.normal(0, 1, count) * 10.0**exponents).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        drawn = generator.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True)
    drawn[: count // 4] = drawn[0]
    return drawn


@pytest.mark.parametrize("name", TYPES)
def test_quantiles_are_numpys(name: str) -> None:
    drawn = values(name)
    for share in (0.0, 0.005, 0.3, 0.995, 1.0):
        both = quantiles(lambda: iter(np.array_split(drawn, 3)), drawn.dtype, [(share, False), (share, True)])
        assert both is not None
        expected = [np.quantile(drawn, share, method=method) for method in ("lower", "higher")]
        assert both == expected
        assert all(value.dtype == drawn.dtype for value in both)


def test_the_order_of_the_values_has_no_effect() -> None:
    drawn = values("f4")
    shuffled = np.random.default_rng(1).permutation(drawn)
    shares = [(0.01, False), (0.99, True)]
    assert quantiles(lambda: iter([drawn]), drawn.dtype, shares) == quantiles(
        lambda: iter(np.array_split(shuffled, 7)), drawn.dtype, shares
    )


def test_infinity_is_a_value_and_one_value_is_every_quantile() -> None:
    ends = np.array([np.inf, -np.inf, 3], np.float32)
    assert quantiles(lambda: iter([ends]), ends.dtype, [(0, False), (1, True)]) == [-np.inf, np.inf]
    single = np.array([-7], np.int16)
    assert quantiles(lambda: iter([single]), single.dtype, [(0, False), (0.5, True)]) == [-7, -7]


def test_no_value_has_no_quantile() -> None:
    assert quantiles(lambda: iter([np.empty(0, np.int32)]), np.dtype("i4"), [(0.5, False)]) is None
