"""Exact order statistics of many values in little memory, whatever the order of the values.

A percentile by sorting or partitioning needs a second copy of a volume. Here the values are counted by the upper 16
bits of keys that sort like them, then, among those that share the bits found so far, by the next 16 bits, and so on:
one pass over 8-bit and 16-bit values, two over 32-bit values, four over 64-bit values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

_DIGIT = 16


def quantiles(
    parts: Callable[[], Iterator[np.ndarray]], dtype: np.dtype[Any], shares: Sequence[tuple[float, bool]]
) -> list[Any] | None:
    """Return values below which a share of all values lies.

    Args:
        parts: Yields the values in one-dimensional parts of native byte order, the same ones at each call, without NaN.
        dtype: Type of the values: an integer or floating-point type of 1, 2, 4 or 8 bytes, in native byte order.
        shares: Shares in [0, 1], each with whether to round up to the next value where the share falls between two;
            these are ``numpy.quantile``'s methods "higher" and "lower".

    Returns:
        One value a share, as scalars of ``dtype``; None if there are no values.
    """
    bits = max(8 * dtype.itemsize, _DIGIT)
    found, remaining = [0] * len(shares), [0] * len(shares)
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        is_first = shift == bits - _DIGIT
        counts = {prefix: np.zeros(2**_DIGIT, np.int64) for prefix in found}
        for part in parts():
            keys = _keys(part)
            for prefix, count in counts.items():
                same = keys if is_first else _where(keys, keys >> (shift + _DIGIT) == prefix)
                if same.size:
                    digits = (same >> shift) & (2**_DIGIT - 1) if bits > _DIGIT else same
                    _add_counts(count, digits)
        if is_first:
            if not (total := int(counts[0].sum())):
                return None
            remaining = [_rank(total, share, round_up=round_up) for share, round_up in shares]
        for index, prefix in enumerate(found):
            cumulative = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(cumulative, remaining[index], side="right"))
            remaining[index] -= int(cumulative[digit - 1]) if digit else 0
            found[index] = prefix << _DIGIT | digit
    return [_value(key, dtype) for key in found]


def _add_counts(count: np.ndarray, digits: np.ndarray) -> None:
    """Add how often each digit occurs."""
    if digits.min() == (digit := digits.max()):  # one counter incremented again and again is slow
        count[digit] += digits.size
    else:
        count += np.bincount(digits.astype(np.int64, copy=False), minlength=2**_DIGIT)


def _where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the values where a mask holds; without a copy if it holds everywhere."""
    return values if mask.all() else values[mask]


def _rank(total: int, share: float, *, round_up: bool) -> int:
    """Return the index of a quantile among ``total`` sorted values."""
    place = share * (total - 1)
    return math.ceil(place) if round_up else math.floor(place)


def _sign_bit(dtype: np.dtype[Any]) -> int:
    return 1 << (8 * dtype.itemsize - 1)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _keys(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers of the same size that sort like the values."""
    kind = _unsigned(values.dtype)
    if values.dtype.kind == "u":
        return values
    bits = np.ascontiguousarray(values).view(kind)
    sign = kind.type(_sign_bit(values.dtype))
    if values.dtype.kind == "i":
        return bits ^ sign
    # negative numbers: all bits turned, so that larger ones come first; others: the sign bit alone
    spread = bits.view(f"i{values.dtype.itemsize}") >> (8 * values.dtype.itemsize - 1)
    return bits ^ (spread.view(kind) | sign)


def _value(key: int, dtype: np.dtype[Any]) -> Any:
    """Return the value of a key."""
    sign = _sign_bit(dtype)
    if dtype.kind == "i":
        key ^= sign
    elif dtype.kind == "f":
        key = key ^ sign if key & sign else key ^ (2 * sign - 1)
    return np.array(key, _unsigned(dtype)).view(dtype)[()]
