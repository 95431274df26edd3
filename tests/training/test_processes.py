"""Several processes train what one process trains, to the tolerance of float32."""

from __future__ import annotations

import pytest
import torch

from helpers.dividing import CASES, Trained, train_together, trained
from twinbud.training.processes import Processes, Share


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    """The results of three processes: shares of 2, 1 and 1 images, and of 1, 1 and none in an epoch's last batch."""
    return train_together(3, tmp_path_factory.mktemp("divided"))


@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_what_one_trains(name: str, divided: list[dict[str, Trained]]) -> None:
    first, alone = divided[0][name], trained(CASES[name])
    for found, expected in zip(first.epochs, alone.epochs, strict=True):
        assert found == pytest.approx(expected, rel=2e-5, abs=1e-7)
    for tensor_name, expected in alone.weights.items():
        torch.testing.assert_close(first.weights[tensor_name], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_bits(name: str, divided: list[dict[str, Trained]]) -> None:
    first, *others = (results[name] for results in divided)
    for other in others:
        assert other.epochs == first.epochs
        assert all(torch.equal(other.weights[key], value) for key, value in first.weights.items())


@pytest.mark.parametrize(("total", "count"), [(32, 4), (7, 3), (2, 3), (1, 8)])
def test_shares_cover_the_batch_once_and_differ_by_one_image_at_most(total: int, count: int) -> None:
    shares = [Processes(rank, count).share(total) for rank in range(count)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(total))
    assert max(share.stop - share.start for share in shares) - min(share.stop - share.start for share in shares) <= 1
    assert all(len(share.of(torch.arange(total))) == max(1, share.stop - share.start) for share in shares)


def test_the_row_before_a_share_is_the_one_that_its_first_image_is_mixed_with() -> None:
    rows = torch.tensor([10, 11, 12, 13])
    assert Share(0, 2, 4).of(rows, with_previous=True).tolist() == [13, 10, 11]
    assert Share(2, 4, 4).of(rows, with_previous=True).tolist() == [11, 12, 13]
