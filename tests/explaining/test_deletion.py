"""Deletion curves tell maps that mean something from maps that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinbud.explaining.deletion import NUM_DRAWS, NUM_STEPS, Deletion, arbitrary_maps, deletion, removal_order

SIZE = 32
SQUARE = torch.zeros(SIZE, SIZE)
SQUARE[4:12, 20:28] = 1


def probability(images: torch.Tensor) -> np.ndarray:
    """The share of the square that is left."""
    return ((images[:, 0] * SQUARE).sum((1, 2)) / SQUARE.sum()).numpy()


def map_with(row: int, column: int) -> torch.Tensor:
    spot = torch.zeros(8, 8)
    spot[row : row + 2, column : column + 2] = torch.tensor([[1.0, 0.9], [0.8, 0.7]])
    return spot


def measured(map_hw: torch.Tensor, seed: int = 0) -> Deletion:
    return deletion(torch.ones(3, SIZE, SIZE), map_hw, probability, np.random.default_rng(seed))


def test_a_map_of_the_evidence_beats_every_arbitrary_place() -> None:
    found = measured(map_with(1, 5))
    assert found.beats_random
    assert found.share_beaten == 1.0
    assert found.score > 0.3
    assert (found.curve[0], found.curve[-1]) == (1.0, 0.0)
    assert found.curve.shape == (NUM_STEPS + 1,)
    assert found.random_curves.shape == (NUM_DRAWS, NUM_STEPS + 1)


def test_a_map_of_another_place_does_not() -> None:
    found = measured(map_with(5, 0))
    assert not found.beats_random
    assert found.score < measured(map_with(1, 5)).score / 3


def test_one_in_twenty_maps_without_meaning_beats_all_arbitrary_places() -> None:
    generator = torch.Generator().manual_seed(0)
    passed = [measured(torch.rand(8, 8, generator=generator), seed).beats_random for seed in range(100)]
    assert sum(passed) <= 14  # 5 expected; a binomial exceeds 14 with a probability of 1e-4


def test_a_constant_map_has_no_order_to_compare() -> None:
    found = measured(torch.zeros(8, 8))
    assert (found.score, found.share_beaten, found.beats_random) == (0.0, 0.0, False)


def test_arbitrary_maps_are_the_same_values_at_other_places_each_once() -> None:
    map_hw = torch.arange(16.0).view(4, 4)
    others = arbitrary_maps(map_hw, np.random.default_rng(0), limit=1000)
    assert len(others) == 8 * 16 - 1
    assert all(torch.equal(other.flatten().sort().values, map_hw.flatten()) for other in others)
    assert len({other.numpy().tobytes() for other in [map_hw, *others]}) == 8 * 16
    assert len(arbitrary_maps(map_hw, np.random.default_rng(0))) == NUM_DRAWS


def test_the_highest_values_are_removed_first_and_equal_ones_in_random_order() -> None:
    ranks = removal_order(map_with(1, 5)[None], SIZE, np.random.default_rng(0))[0]
    assert sorted((ranks * SIZE**2).round().flatten().tolist()) == list(range(SIZE**2))
    first = torch.nonzero(ranks == 0)[0].tolist()
    assert 4 <= first[0] < 12
    assert 20 <= first[1] < 28
    zero = ranks[20:, :16].flatten().numpy()  # the map is 0 there
    assert abs(np.corrcoef(zero, np.arange(zero.size))[0, 1]) < 0.3


@pytest.mark.parametrize("side", [1, 2])
def test_a_map_of_few_places_cannot_pass(side: int) -> None:
    assert not measured(torch.rand(side, side, generator=torch.Generator().manual_seed(0))).beats_random
