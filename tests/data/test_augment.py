"""Rotation, intensity and cutout: drawn independently of each other, and what Pillow and torchvision compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast

from twinbud.data.augment import Views, apply_views, draw_views

PARTS: dict[str, dict[str, Any]] = {
    "angle_N": {"rotate": 20.0},
    "gain_N2": {"brightness": 0.3, "contrast": 0.2},
    "erased_N4": {"cutout": 0.4},
}
ALL = {name: value for part in PARTS.values() for name, value in part.items()}


def drawn(count: int = 8, seed: int = 0, epoch: int = 1, **changes: float) -> Views:
    return draw_views(seed, epoch, count, crop_scale=0.8, flip=0.5, **changes)


def unchanged(count: int, **parts: torch.Tensor) -> Views:
    """Views of whole images, apart from ``parts``."""
    return Views(torch.ones(count, 2), torch.zeros(count, 2), torch.zeros(count, dtype=torch.bool), **parts)


def noise(count: int = 3, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_changes_no_other_and_depends_on_seed_epoch_and_sample_alone(part: str) -> None:
    alone, together = drawn(**PARTS[part]), drawn(40, **ALL)
    for name, value in vars(together).items():
        if name in ("scale_N2", "center_N2", "flip_N", part):
            assert torch.equal(getattr(alone, name), value[:8])
        else:
            assert getattr(alone, name) is None
    for other in (drawn(seed=1, **ALL), drawn(epoch=2, **ALL)):
        assert not torch.equal(getattr(other, part), getattr(alone, part))


def test_angles_and_gains_are_uniform_within_their_limits() -> None:
    views = drawn(5000, **ALL)
    assert views.angle_N is not None
    assert views.gain_N2 is not None
    for values, limit in (
        (views.angle_N, math.radians(20)), (views.gain_N2[:, 0] - 1, 0.3), (views.gain_N2[:, 1] - 1, 0.2)
    ):  # fmt: skip
        assert float(values.abs().max()) == pytest.approx(limit, rel=0.01)
        assert float(values.mean()) == pytest.approx(0.0, abs=0.03 * limit)
        assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.03)


def test_rows_and_devices_take_all_parts_along() -> None:
    rows, views = torch.tensor([3, 1]), drawn(**ALL)
    for name, value in vars(views[rows].to(torch.device("cpu"))).items():
        assert torch.equal(value, getattr(views, name)[rows])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotation_by_quarters_is_exact(turns: int) -> None:
    views = unchanged(3, angle_N=torch.full((3,), turns * math.pi / 2))
    torch.testing.assert_close(apply_views(noise(), views), noise().float().rot90(turns, (2, 3)), rtol=0, atol=0.1)


def test_a_rotation_is_pillows() -> None:
    """Of values from 8 to 248, to what two bicubic kernels differ by."""
    rows, columns = np.mgrid[0:64, 0:64]
    smooth = (128 + 60 * np.sin(rows / 9) + 60 * np.cos(columns / 7)).clip(0, 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(smooth).rotate(20, Image.Resampling.BICUBIC), dtype=np.float32)
    views = unchanged(1, angle_N=torch.tensor([math.radians(20)]))
    seen = apply_views(torch.from_numpy(smooth)[None, None], views)[0, 0].numpy()
    assert np.abs(seen - expected)[16:48, 16:48].max() <= 2.5


def test_a_rotated_crop_is_the_crop_of_the_rotated_image() -> None:
    """About its own center, here that of the image."""
    angle = torch.tensor([math.radians(90)])
    crop = Views(torch.tensor([[0.5, 1.0]]), torch.zeros(1, 2), torch.tensor([True]), angle_N=angle)
    turned = apply_views(noise(1), unchanged(1, angle_N=angle)).round().byte()
    expected = apply_views(turned, Views(crop.scale_N2, crop.center_N2, crop.flip_N))
    torch.testing.assert_close(apply_views(noise(1), crop), expected, rtol=0, atol=1.5)


@pytest.mark.parametrize(("brightness", "contrast"), [(1.3, 1.0), (0.7, 1.0), (1.0, 0.8), (1.0, 1.2), (1.3, 1.2)])
def test_intensities_of_gray_images_are_torchvisions(brightness: float, contrast: float) -> None:
    views = unchanged(3, gain_N2=torch.tensor([[brightness, contrast]]).expand(3, 2))
    plain = apply_views(noise(channels=1), unchanged(3)) / 255
    expected = 255 * adjust_contrast(adjust_brightness(plain, brightness), contrast)
    torch.testing.assert_close(apply_views(noise(channels=1), views), expected, rtol=0, atol=1e-3)


def test_intensity_keeps_gray_gray() -> None:
    gray = noise(channels=1).expand(-1, 3, -1, -1)
    seen = apply_views(gray, drawn(3, **ALL))
    torch.testing.assert_close(seen, seen[:, :1].expand_as(seen))


def test_cutout_covers_the_pixels_of_its_square_with_the_mean_of_each_channel() -> None:
    views = unchanged(3, erased_N4=torch.tensor([[0.25, -0.25, 0.5, 0.25]]).expand(3, 4))
    plain = apply_views(noise(), unchanged(3))
    expected = plain.clone()
    expected[:, :, :4, 4:8] = plain.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(apply_views(noise(), views), expected)


@pytest.mark.parametrize("changes", [{}, ALL], ids=["default", "all"])
def test_views_stay_in_the_range_of_pixels(changes: dict[str, Any]) -> None:
    extremes = (noise() > 127).byte() * 255
    seen = apply_views(extremes, drawn(3, **changes))
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 255
