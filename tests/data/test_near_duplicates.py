"""The same picture is found whatever was done to it; pictures of the same shape but other details are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from twinbud.data.near_duplicates import (
    MAX_DISTANCE,
    THUMBNAIL_SIZE,
    Mirrored,
    candidate_pairs,
    find_near_duplicates,
    perceptual_hashes,
)

SIDE = 160


def scan(seed: int, *, shape_seed: int = 0) -> Image.Image:
    """Return a bright disc on black with structures of its own: the shape is common to all, as that of a head."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    disc = np.hypot(rows, columns) < 0.42
    shape = gaussian_filter(np.random.default_rng(shape_seed).normal(size=(SIDE, SIDE)), 24)
    noise = np.random.default_rng(1000 + seed).normal(size=(SIDE, SIDE))
    detail = gaussian_filter(noise, 2.5) - gaussian_filter(noise, 5)
    values = 120 + 45 * shape / shape.std() + 14 * detail / detail.std()
    return Image.fromarray(np.where(disc, values.clip(10, 245), 0).astype(np.uint8))


def thumbnails(*images: Image.Image) -> np.ndarray:
    small = [image.convert("L").resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE)) for image in images]
    return np.stack([np.asarray(image) for image in small])


def found(*images: Image.Image) -> list[tuple[int, int, str]]:
    pairs = find_near_duplicates(thumbnails(*images), [str(number) for number in range(len(images))])
    return [(pair.first, pair.second, pair.mirrored) for pair in pairs]


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": recompressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker with less contrast": lambda image: image.point(lambda value: 20 + 0.5 * value),
    "gamma": lambda image: image.point([round(255 * (value / 255) ** 1.4) for value in range(256)]),
    "half the size": lambda image: image.resize((SIDE // 2, SIDE // 2)),
    "cropped": lambda image: image.crop((2, 0, SIDE - 1, SIDE - 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_no_other_image(change: str) -> None:
    others = [scan(seed) for seed in range(1, 8)]
    assert found(scan(0), *others, CHANGES[change](scan(0))) == [(0, 8, "no")]


@pytest.mark.parametrize(
    ("methods", "mirrored"),
    [
        ((Image.Transpose.FLIP_LEFT_RIGHT,), "left-right"),
        ((Image.Transpose.FLIP_TOP_BOTTOM,), "top-bottom"),
        ((Image.Transpose.ROTATE_180,), "both"),
    ],
)
def test_a_mirrored_copy_is_found_with_its_direction(methods: tuple[Image.Transpose, ...], mirrored: Mirrored) -> None:
    copy = scan(0)
    for method in methods:
        copy = copy.transpose(method)
    assert found(scan(0), scan(1), recompressed(copy)) == [(0, 2, mirrored)]


def test_images_of_one_shape_are_candidates_but_no_near_duplicates() -> None:
    small = thumbnails(*(scan(seed) for seed in range(12)))
    hashes = perceptual_hashes(small)
    assert sum(map(len, candidate_pairs(hashes, hashes))) > 10
    flat = small.reshape(12, -1).astype(float)
    assert np.corrcoef(flat)[0, 1:].min() > 0.93, "the shapes alone would not tell them apart"
    assert find_near_duplicates(small, list("abcdefghijkl")) == ()


def test_identical_and_blank_images_are_no_near_duplicates() -> None:
    blank = np.full((3, THUMBNAIL_SIZE, THUMBNAIL_SIZE), 7, np.uint8)
    blank[1, 20:24, 20:24] += 1
    assert find_near_duplicates(blank, ["a", "b", "c"]) == ()
    assert find_near_duplicates(thumbnails(scan(0), scan(0)), ["a", "a"]) == ()


def test_the_hash_is_that_of_imagehash() -> None:
    for seed in range(5):
        image = Image.fromarray(np.kron(np.asarray(scan(seed).resize((32, 32))), np.ones((2, 2), np.uint8)))
        small = Image.fromarray(np.asarray(image)[::2, ::2])
        expected = int(str(imagehash.phash(small)), 16)
        assert int(perceptual_hashes(np.asarray(image)[None])[0]) == expected


@pytest.mark.parametrize("mirrored", ["left-right", "top-bottom", "both"])
def test_the_hash_of_a_mirrored_image_needs_no_mirroring(mirrored: Mirrored) -> None:
    small = thumbnails(*(scan(seed, shape_seed=seed) for seed in range(6)))
    axes = {"left-right": (2,), "top-bottom": (1,), "both": (1, 2)}[mirrored]
    direct, derived = perceptual_hashes(np.flip(small, axes)), perceptual_hashes(small, mirrored)
    assert np.bitwise_count(direct ^ derived).max() <= 2, "rounding may change a bit beside the median"


def test_every_pair_within_the_distance_is_a_candidate_and_no_other() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(2**63, size=300, dtype=np.uint64)
    for number in range(150):  # 150 of them differ from another in 0 to 11 bits
        bits = generator.choice(64, number % 12, replace=False).astype(np.uint64)
        hashes[150 + number] = np.bitwise_xor.reduce([hashes[number], *(np.uint64(1) << bits)])
    pairs = {tuple(pair) for batch in candidate_pairs(hashes, hashes) for pair in batch.tolist()}
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    assert pairs == {tuple(pair) for pair in np.argwhere(distances <= MAX_DISTANCE).tolist() if pair[0] < pair[1]}
    assert len(pairs) >= 100
