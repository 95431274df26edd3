"""Means, standard deviations and paired differences against NumPy, SciPy and hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from twinbud.study.statistics import paired_difference, spread

FIRST = {0: 0.70, 1: 0.74, 2: 0.69, 3: 0.73, 4: 0.71}
SECOND = {0: 0.68, 1: 0.71, 2: 0.69, 3: 0.70, 4: 0.70}


def test_mean_and_deviation_equal_those_of_numpy() -> None:
    values = list(FIRST.values())
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.lowest, found.highest, found.count) == (0.69, 0.74, 5)


def test_a_single_value_has_no_deviation_and_no_value_has_no_spread() -> None:
    single = spread([0.5])
    assert single is not None
    assert (single.mean, single.deviation) == (0.5, None)
    assert spread([]) is None


def test_the_paired_interval_equals_that_of_scipy() -> None:
    found = paired_difference(FIRST, SECOND)
    expected = stats.ttest_rel(list(FIRST.values()), list(SECOND.values())).confidence_interval(0.95)
    assert found is not None
    assert found.interval is not None
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_the_paired_interval_equals_a_hand_calculation() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, half width 4.3027 / √3 = 2.4841."""
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0))
    assert found is not None
    assert found.mean == 2.0
    assert found.interval == pytest.approx((-0.4841, 4.4841), abs=1e-4)


def test_only_common_samplings_are_compared() -> None:
    found = paired_difference({0: 0.9, 1: 0.8, 7: 0.1}, {1: 0.7, 0: 0.7, 5: 0.2})
    assert found is not None
    assert (found.count, found.mean) == (2, pytest.approx(0.15))
    assert paired_difference({0: 0.9}, {1: 0.9}) is None


def test_a_single_pair_has_no_interval() -> None:
    found = paired_difference({0: 0.9}, {0: 0.8})
    assert found is not None
    assert (found.interval, found.verdict) == (None, None)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.02, 0.03, 0.01, 0.02, 0.02], "higher"),
        ([-0.02, -0.03, -0.01, -0.02, -0.02], "lower"),
        ([0.02, -0.03, 0.01, -0.02, 0.02], "undecided"),
        ([0.0] * 5, "undecided"),
        ([0.02, 0.02, 0.02, 0.02], None),
    ],
)
def test_a_verdict_needs_five_pairs_and_an_interval_without_zero(differences: list[float], verdict: str | None) -> None:
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found is not None
    assert found.verdict == verdict
