"""Maps lie over the image at full resolution, and a map that did not pass cannot be taken for one that did."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from twinbud.explaining.overlay import draw, overlay, png


def spot(row: int, column: int) -> np.ndarray:
    map_hw = np.zeros((4, 4), np.float32)
    map_hw[row, column] = 1
    return map_hw


def test_the_spot_of_a_map_is_at_its_place_in_an_image_of_any_proportions() -> None:
    image = np.full((120, 600, 3), 100, np.uint8)
    picture = overlay(image, spot(3, 0))
    assert picture.shape == image.shape
    changed = np.abs(picture.astype(int) - 100).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row >= 90
    assert column < 150
    assert (changed[:30] == 0).all()
    assert (changed[:, 450:] == 0).all()
    assert (image == 100).all()


def test_a_large_image_is_blended_in_parts_without_a_seam() -> None:
    rows = np.arange(1100) // 8
    image = np.repeat(np.repeat(rows.astype(np.uint8)[:, None, None], 16, axis=1), 3, axis=2)
    picture = overlay(image, np.full((4, 4), 0.5, np.float32)).astype(int)
    assert np.abs(np.diff(picture[:, 0, 0])).max() <= 1


def test_a_map_that_did_not_pass_has_one_color_below_its_warning() -> None:
    image = np.full((60, 200, 3), 100, np.uint8)
    good, bad = draw(image, spot(1, 1), None), draw(image, spot(1, 1), "this map does not explain the prediction (why)")
    assert good.shape == image.shape
    height, width = bad.shape[:2]
    assert height > 60
    assert width == 200
    below = bad[height - 60 :].astype(int)
    assert (below[..., 2] >= below[..., 0]).all()  # blue, where a map that passed is red or yellow
    assert (good[..., 0].astype(int) - good[..., 2]).max() > 50
    line = bad[: height - 60].astype(int)
    assert (np.abs(line - line[0, 0]).sum(axis=2) > 200).mean() > 0.02  # text


def test_the_warning_of_a_tiny_image_is_legible() -> None:
    picture = draw(np.zeros((8, 8, 3), np.uint8), spot(1, 1), "this map does not explain the prediction (why)")
    assert picture.shape[1] > 50
    assert (picture[-8:, :8, 2] >= picture[-8:, :8, 0]).all()


def test_the_png_says_what_it_shows() -> None:
    with Image.open(io.BytesIO(png(np.zeros((4, 4, 3), np.uint8), "Map for 'ä'"))) as image:
        assert image.info["Description"] == "Map for 'ä'"
