"""Inputs of a layer are removed in the order of what their loss costs once the others make up for it."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from twinbud.recovery.surgeon import Reader, removal_order

NUM_ROWS = 400


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs (R, 6), centered, and the weights (6, 3) of the layer that reads them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(NUM_ROWS, 6, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return rows - rows.mean(dim=0), torch.randn(6, 3, generator=generator, dtype=torch.float64)


def error(rows: torch.Tensor, weight: torch.Tensor, kept: list[int]) -> float:
    """Squared error of the layer's output when the kept inputs are fitted to it, as an independent solver has it."""
    outputs = rows @ weight
    fitted = torch.linalg.lstsq(rows[:, kept], outputs).solution
    return float((outputs - rows[:, kept] @ fitted).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_each_step_removes_the_input_whose_loss_costs_least(seed: int) -> None:
    rows, weight = data(seed)
    order = removal_order([Reader(rows.T @ rows, weight)], num_kept=1).argsort().tolist()
    left = list(range(6))
    for removed in order[:5]:
        costs = {index: error(rows, weight, [other for other in left if other != index]) for index in left}
        assert removed == min(costs, key=costs.__getitem__)
        left.remove(removed)


def test_of_two_inputs_that_carry_the_same_one_is_kept() -> None:
    """Each of them alone matters more than anything else, so that importance of single inputs keeps both."""
    rows, _ = data()
    rows = torch.cat([5 * rows[:, :1], 5 * rows[:, :1], rows[:, 1:4]], dim=1)
    rows = rows + 1e-3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.ones(5, 1, dtype=torch.float64)
    kept = (removal_order([Reader(rows.T @ rows, weight)], num_kept=4) == 5).nonzero().flatten().tolist()
    assert kept in ([0, 2, 3, 4], [1, 2, 3, 4])


def test_several_readers_count_relative_to_their_outputs() -> None:
    """A reader that multiplies its outputs by 1,000 does not outvote the other one."""
    first, second = torch.zeros(2, 6, 1, dtype=torch.float64)
    first[:3, 0] = torch.tensor([1000.0, 10.0, 10.0])
    second[3:, 0] = torch.tensor([1.0, 0.01, 0.01])
    independent = torch.eye(6, dtype=torch.float64)
    at = removal_order([Reader(independent, first), Reader(independent, second)], num_kept=2)
    assert (at == 6).nonzero().flatten().tolist() == [0, 3]


def test_those_that_are_kept_are_nearly_the_best_subset() -> None:
    rows, weight = data(7)
    kept = (removal_order([Reader(rows.T @ rows, weight)], num_kept=3) == 6).nonzero().flatten().tolist()
    errors = sorted(error(rows, weight, list(subset)) for subset in combinations(range(6), 3))
    assert error(rows, weight, kept) <= errors[4]


def test_more_inputs_than_are_removed_at_once() -> None:
    """The matrices become smaller on the way; what is left are the inputs that the layer reads."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, 200, generator=generator, dtype=torch.float64)
    weight = torch.zeros(200, 2, dtype=torch.float64)
    read = torch.randperm(200, generator=generator)[:40]
    weight[read] = 1 + torch.rand(40, 2, generator=generator, dtype=torch.float64)
    at = removal_order([Reader(rows.T @ rows, weight)], num_kept=40)
    assert set((at == 200).nonzero().flatten().tolist()) == set(read.tolist())
    assert sorted(at[at < 200].tolist()) == list(range(160))
