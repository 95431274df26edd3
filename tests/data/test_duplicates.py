"""A blank image tells nothing, and an image with content does."""

from __future__ import annotations

import pytest
import torch

from twinbud.data.duplicates import blank_digests, is_blank
from twinbud.data.image_store import ImageStore


def filled(value: int, channels: int = 1) -> torch.Tensor:
    return torch.full((channels, 28, 28), value, dtype=torch.uint8)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_one_value_is_blank(value: int, channels: int) -> None:
    assert is_blank(filled(value, channels))


def test_a_faint_pattern_or_a_small_mark_is_still_blank() -> None:
    faint = filled(0)
    faint[:, ::2] = 3
    marked = filled(0)
    marked[:, 3:5, 3:5] = 255
    assert is_blank(faint)
    assert is_blank(marked)


def test_an_image_with_content_is_not_blank() -> None:
    half, small, colored = filled(0), filled(0), filled(0, 3)
    half[:, :14] = 255
    small[:, 10:14, 10:14] = 90
    colored[0, :14] = 30
    assert not any(map(is_blank, (half, small, colored)))


def test_only_blank_images_that_occur_twice_are_found() -> None:
    content = filled(0)
    content[:, :14] = 200
    store = ImageStore(
        image_size=28,
        digests=("black", "face", "black", "face", "white"),
        pixels=(filled(0), content, filled(0), content, filled(255)),
    )
    assert blank_digests(store) == {"black"}
