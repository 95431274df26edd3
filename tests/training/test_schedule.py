"""The learning rate and the number of steps."""

from __future__ import annotations

import math

import pytest

from twinbud.training.schedule import learning_rate_at, peak_learning_rate, planned_epochs


def rates(num_steps: int, warmup: float) -> list[float]:
    return [
        learning_rate_at(step, num_steps=num_steps, warmup=warmup, peak=1.0, final=1e-3) for step in range(num_steps)
    ]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    assert rates(60, 1 / 6)[:10] == pytest.approx([0.1 * step for step in range(1, 11)])


def test_the_cosine_passes_half_way_in_the_middle_and_ends_at_the_final_rate() -> None:
    after = rates(61, 1 / 6)[10:]
    assert after[0] == 1.0
    assert after[25] == pytest.approx((1 + 1e-3) / 2)
    assert after[-1] == pytest.approx(1e-3)
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_runs_have_finite_positive_rates(num_steps: int) -> None:
    for warmup in (0.0, 1 / 6, 1.0):
        assert all(math.isfinite(rate) and rate > 0 for rate in rates(num_steps, warmup))


def test_the_peak_grows_linearly_with_the_batch() -> None:
    assert peak_learning_rate(1.25e-4, 32) == 1.25e-4
    assert peak_learning_rate(1.25e-4, 1024) == pytest.approx(4e-3)


def test_epochs_are_added_until_the_least_number_of_steps() -> None:
    assert planned_epochs(40, 300, 9) == 40
    assert planned_epochs(40, 300, 2) == 150
    assert planned_epochs(300, 0, 2) == 300
