"""Means, deviations and paired differences over samplings. Pure functions.

The samplings of one split are not independent draws of data: what their intervals cover is another sampling of labels,
neither another split nor another set of images. They are not adjusted for the number of comparisons in a table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

LEAST_FOR_VERDICT = 5
"""Samplings below which no verdict is given, as in the paper, which takes five."""
CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over samplings.

    Attributes:
        mean: Of the values.
        deviation: Their standard deviation, with n − 1 below the root; None of a single one.
        lowest, highest: The ends of their range.
        count: How many there are.
    """

    mean: float
    deviation: float | None
    lowest: float
    highest: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean of paired differences and its 95 % t interval, None of a single pair.

    Attributes:
        mean: First minus second.
        interval: Its ends.
        count: Pairs.
        verdict: What the interval says of zero; None of fewer than five pairs.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int
    verdict: Verdict | None


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, deviation and range; None of no values."""
    if not values:
        return None
    return Spread(
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
        count=len(values),
    )


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First minus second over the samplings that both have; None where they share none.

    Args:
        first: A value for each sampling.
        second: Likewise.
    """
    pairs = [first[sampling] - second[sampling] for sampling in sorted(first.keys() & second.keys())]
    if not pairs:
        return None
    mean, interval = statistics.fmean(pairs), None
    if len(pairs) > 1:
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1))
        half = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
        interval = mean - half, mean + half
    return Difference(mean=mean, interval=interval, count=len(pairs), verdict=_verdict(interval, len(pairs)))


def _verdict(interval: tuple[float, float] | None, count: int) -> Verdict | None:
    if interval is None or count < LEAST_FOR_VERDICT:
        return None
    low, high = interval
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"
