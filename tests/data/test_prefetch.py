"""Streamed batches are those of images that are already there."""

from __future__ import annotations

import pytest
import torch

from twinbud.data.image_store import ImageStore
from twinbud.data.prefetch import prefetch

CPU = torch.device("cpu")
ORDER = [torch.tensor(rows) for rows in ([3, 1], [0, 4], [2])]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.arange(5 * 16, dtype=torch.uint8).view(5, 1, 4, 4)


def test_batches_come_in_the_order_asked(images: torch.Tensor) -> None:
    rows = ImageStore(image_size=4, digests=("",) * 5, pixels=tuple(images)).rows(range(5))
    for source in (images, rows):
        batches = list(prefetch(source, ORDER, CPU))
        assert len(batches) == 3
        for batch, wanted in zip(batches, ORDER, strict=True):
            assert torch.equal(batch, images[wanted])
        assert list(prefetch(source, [], CPU)) == []


def test_one_batch_is_fetched_ahead_and_no_more(images: torch.Tensor) -> None:
    class Counting:
        asked = 0

        def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
            self.asked += 1
            return images[rows]

    source = Counting()
    batches = prefetch(source, ORDER, CPU)  # type: ignore[arg-type]
    next(batches)
    assert source.asked <= 2
    assert len(list(batches)) == 2
    assert source.asked == 3


def test_an_error_while_fetching_reaches_the_one_who_asked() -> None:
    class Broken:
        def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
            raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        list(prefetch(Broken(), ORDER, CPU))  # type: ignore[arg-type]
