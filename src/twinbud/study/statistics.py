"""Means, standard deviations and paired differences over samplings. Pure functions.

The samplings of one split are not independent data: an interval covers another sampling of the labelled images, but
neither another split nor another image set. Intervals are not adjusted for the number of comparisons in a table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

MIN_PAIRS_FOR_VERDICT = 5
"""A verdict needs this number of pairs, the number of samplings in the paper."""
CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and spread of a number over samplings.

    Attributes:
        mean: The mean.
        deviation: The standard deviation with n − 1; None for a single value.
        lowest: The smallest value.
        highest: The largest value.
        count: The number of values.
    """

    mean: float
    deviation: float | None
    lowest: float
    highest: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        mean: Mean of first minus second.
        interval: The ends of its 95 % t interval; None for a single pair.
        count: The number of pairs.
        verdict: "higher" or "lower" if the interval excludes zero, else "undecided"; None for fewer than five pairs.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int
    verdict: Verdict | None


def spread(values: Sequence[float]) -> Spread | None:
    """Compute mean, standard deviation and range; None without values."""
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
    """Compare two methods over the samplings that both have.

    Args:
        first: The value of each sampling.
        second: The value of each sampling.

    Returns:
        The difference first minus second, or None if no sampling is in both.
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
    if interval is None or count < MIN_PAIRS_FOR_VERDICT:
        return None
    low, high = interval
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"
