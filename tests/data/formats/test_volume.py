"""Slices of a volume lie as a radiologist expects them, and share one intensity range."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from twinbud.config.reading import Axis
from twinbud.data.formats.base import UnreadableImage
from twinbud.data.formats.volume import (
    Volume,
    full_range,
    plane,
    plane_size,
    render,
    robust_range,
    window_range,
)


def volume(samples: Any, slope: float = 1.0, intercept: float = 0.0) -> Volume:
    voxels = np.asarray(samples)
    return Volume(voxels=voxels, flat=voxels.reshape(-1), slope=slope, intercept=intercept)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, shape or (9, 8, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("axis", "top", "bottom", "left", "right"),
    [
        ("axial", (2, 6, 3), (2, 0, 3), (4, 3, 3), (0, 3, 3)),
        ("coronal", (2, 3, 7), (2, 3, 0), (4, 3, 3), (0, 3, 3)),
        ("sagittal", (2, 3, 7), (2, 3, 0), (2, 6, 3), (2, 0, 3)),
    ],
)
def test_slices_lie_by_the_radiological_convention(
    axis: Axis, top: tuple[int, ...], bottom: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    """A bright voxel near each end of the patient: x goes to the right, y to the front, z to the top."""
    for place, end in ((top, 0), (bottom, -1)):
        voxels = np.zeros((5, 7, 8))
        voxels[place] = 1
        assert plane(voxels, axis, 2 if axis == "sagittal" else 3)[end].max() == 1
    for place, end in ((left, 0), (right, -1)):
        voxels = np.zeros((5, 7, 8))
        voxels[place] = 1
        assert plane(voxels, axis, 2 if axis == "sagittal" else 3)[:, end].max() == 1


def test_slices_follow_each_other_along_their_axis() -> None:
    x, y, z = np.meshgrid(np.arange(5), np.arange(7), np.arange(8), indexing="ij")
    coordinates: dict[Axis, np.ndarray] = {"sagittal": x, "coronal": y, "axial": z}
    for axis, coordinate in coordinates.items():
        count, height, width = plane_size(coordinate.shape, axis)
        for index in range(count):
            image = plane(coordinate, axis, index)
            assert image.shape == (height, width)
            assert (image == index).all()


def test_the_range_is_that_of_the_percentiles_of_all_voxels_but_background() -> None:
    voxels = noise()
    voxels[:4] = 0
    inside = voxels[voxels != 0]
    expected = np.quantile(inside, 0.005, method="lower"), np.quantile(inside, 0.995, method="higher")
    assert robust_range(volume(voxels)) == expected


def test_an_outlier_and_values_that_are_not_finite_do_not_change_the_range() -> None:
    plain = np.arange(1, 2001, dtype=np.float32).reshape(10, 10, 20)
    odd = plain.copy()
    odd[5, 5, :4] = np.nan, np.inf, -np.inf, 1e9
    low, high = robust_range(volume(odd))
    assert abs(low - robust_range(volume(plain))[0]) <= 2
    assert high < 2001


def test_background_is_found_on_a_scaled_integer_too() -> None:
    """Stored 0 is the value -1024 here, and the stored integer nearest to the value 0 is background."""
    stored = np.concatenate([np.full(500, 10_240), np.arange(12_000, 12_500)]).astype(np.int16).reshape(10, 10, 10)
    low, _ = robust_range(volume(stored, slope=0.1, intercept=-1024.0))
    assert low == pytest.approx(12_002 * 0.1 - 1024)


def test_a_negative_slope_turns_the_range_round() -> None:
    voxels = noise()
    low, high = robust_range(volume(voxels))
    assert robust_range(volume(voxels, slope=-1.0)) == (-high, -low)


def test_a_mask_is_shown_black_and_white() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    image = render(volume(mask), "axial", 1, robust_range(volume(mask)))
    assert set(np.unique(image)) == {0, 255}


def test_a_slice_is_scaled_by_the_range_and_clipped() -> None:
    voxels = np.array([0.0, 10, 20, 30, np.nan, np.inf, -np.inf, 15]).reshape(8, 1, 1)
    image = render(volume(voxels), "axial", 0, (10.0, 20.0))
    assert image[0, ::-1, 0].tolist() == [0, 0, 255, 255, 0, 255, 0, 128]
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


@pytest.mark.parametrize("kind", ["u1", "i1", ">i2", "<u2", ">u4", "i4", ">i8", "u8", ">f4", "f8"])
def test_every_type_and_byte_order_of_the_same_values_gives_the_same_slices(kind: str) -> None:
    values = np.random.default_rng(0).integers(1, 120, (6, 5, 4))
    reference, other = volume(values.astype(np.float64)), volume(values.astype(kind))
    assert robust_range(other) == robust_range(reference)
    for axis in get_args(Axis):
        assert np.array_equal(
            render(other, axis, 2, robust_range(other)), render(reference, axis, 2, robust_range(reference))
        )


def test_a_window_is_in_values_of_the_volume() -> None:
    stored = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    limits = window_range(volume(stored, slope=2.0, intercept=-1000.0), "100,400", 100, 400)
    assert limits == (-100, 300)
    assert full_range(volume(stored, slope=2.0, intercept=-1000.0)) == (-1000, 998)


@pytest.mark.parametrize(("center", "color"), [(3000, "black"), (-3000, "white")])
def test_a_window_beside_all_values_is_refused_with_the_values(center: int, color: str) -> None:
    with pytest.raises(UnreadableImage, match=rf"is all {color} in the window bone \(.*\): its values are 0 to 99$"):
        window_range(volume(np.arange(100).reshape(5, 5, 4)), "bone", center, 100)


@pytest.mark.parametrize("value", [0, 7, -3])
def test_a_volume_of_one_value_is_refused(value: int) -> None:
    constant = volume(np.full((3, 3, 3), value, np.int16))
    with pytest.raises(UnreadableImage, match=rf"holds the same value in all voxels \({value}\)"):
        robust_range(constant)
    with pytest.raises(UnreadableImage, match="all gray in the window"):
        window_range(constant, "0,100", 0, 100)


def test_a_volume_without_a_finite_value_is_refused() -> None:
    for voxels in (np.full((2, 2, 2), np.nan), np.full((2, 2, 2), -np.inf)):
        with pytest.raises(UnreadableImage, match="holds no finite value"):
            robust_range(volume(voxels))


@pytest.mark.parametrize("ends", [(-1.7e308, 1.7e308), (0.0, 5e-324)])
def test_values_that_floating_point_numbers_cannot_scale_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(UnreadableImage, match="holds values that cannot be scaled"):
        robust_range(volume(np.array(ends).reshape(2, 1, 1)))
