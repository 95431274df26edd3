"""Images are decoded once, kept small, and the broken ones are never dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data import image_loading
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import ImageFile, decode
from twinbud.data.image_store import ImageStore, load_image_store, load_images
from twinbud.data.index import IgnoredFile, ImageIndex, ImageRef
from twinbud.data.pixel_cache import SmallImage
from twinbud.data.preprocessing import resize
from twinbud.data.source import read_index


@pytest.fixture
def image_index(tmp_path: Path) -> ImageIndex:
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            shape = (20, 30, 3) if number % 2 else (20, 30)
            image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
            image.save(tmp_path / label / f"{number}.png")
    return read_index(DataConfig(data=str(tmp_path)))


def load(image_index: ImageIndex, *, skip_broken: bool = False) -> tuple[ImageIndex, ImageStore]:
    return load_image_store(image_index, image_size=16, max_megapixels=1, skip_broken=skip_broken)


def test_tensor_gathers_resized_images_in_the_order_asked(image_index: ImageIndex) -> None:
    _, pixels = load(image_index)
    batch = pixels.tensor([5, 0, 0])
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    for place, index in enumerate([5, 0, 0]):
        image = decode(image_index.rows[index].image.file, name="", max_megapixels=1)
        np.testing.assert_array_equal(batch[place].permute(1, 2, 0).numpy(), resize(image, 16))
    assert pixels.tensor([]).shape == (0, 3, 16, 16)


def test_gray_images_are_kept_as_one_channel(image_index: ImageIndex) -> None:
    _, pixels = load(image_index)
    assert [len(image) for image in pixels.pixels if isinstance(image, torch.Tensor)] == [1, 3, 1, 3] * 2
    assert len(pixels) == len(pixels.digests) == 8


def test_every_image_is_decoded_exactly_once(image_index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    original = ImageFile.decode

    def counting(file: ImageFile, *frame: Any, name: str) -> np.ndarray:
        decoded.append(name)
        return original(file, *frame, name=name)

    monkeypatch.setattr(ImageFile, "decode", counting)
    load(image_index)
    assert sorted(decoded) == [row.path for row in image_index.rows]


def test_progress_counts_up_to_all(image_index: ImageIndex) -> None:
    seen: list[int] = []
    load_image_store(
        image_index,
        image_size=8,
        max_megapixels=1,
        skip_broken=False,
        on_progress=seen.append,
    )
    assert seen == list(range(1, 9))


def test_a_broken_image_stops_and_is_named(image_index: ImageIndex) -> None:
    image_index.rows[2].image.file.write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"^a/2\.png: the file is empty .*--skip-broken"):
        load(image_index)


def test_an_image_that_vanishes_stops_and_is_named(image_index: ImageIndex) -> None:
    image_index.rows[2].image.file.unlink()
    with pytest.raises(BrokenImageError, match=r"^a/2\.png: the file does not exist"):
        load(image_index)


def test_several_broken_images_are_one_error_with_their_number(image_index: ImageIndex) -> None:
    for row in image_index.rows[1:5]:
        row.image.file.write_bytes(b"no image")
    with pytest.raises(BrokenImageError) as caught:
        load(image_index)
    unknown = r"\(the file is not a PNG, [^)]* image\)"
    assert re.fullmatch(
        f"4 of 8 image files cannot be used: a/1.png {unknown}, a/2.png {unknown}, a/3.png {unknown} and 1 more\\. "
        "Repair or remove them, or give --skip-broken to leave them out and list them\\.",
        str(caught.value),
    )


def test_skipped_images_leave_the_index_and_are_listed(image_index: ImageIndex) -> None:
    image_index.rows[2].image.file.write_bytes(b"")
    kept, pixels = load(image_index, skip_broken=True)
    assert kept.ignored == (IgnoredFile(path="a/2.png", reason="the file is empty (0 bytes)"),)
    assert [row.path for row in kept.rows] == [row.path for row in image_index.rows if row.path != "a/2.png"]
    whole = load(ImageIndex(source="", rows=kept.rows, classes=kept.classes))[1]
    assert pixels.digests == whole.digests
    assert torch.equal(pixels.tensor(range(7)), whole.tensor(range(7)))


def test_a_class_must_keep_two_images_when_broken_ones_are_skipped(image_index: ImageIndex) -> None:
    for row in image_index.rows[:3]:
        row.image.file.write_bytes(b"")
    with pytest.raises(TwinbudError, match=r"every class needs at least two images, .*: 'a' has 1\."):
        load(image_index, skip_broken=True)


def test_a_class_of_which_nothing_can_be_read_is_not_forgotten(image_index: ImageIndex) -> None:
    for row in image_index.rows[:4]:
        row.image.file.write_bytes(b"")
    with pytest.raises(TwinbudError, match=r"every class needs at least two images, .*: 'a' has 0\."):
        load(image_index, skip_broken=True)


def test_images_to_predict_take_the_same_way(image_index: ImageIndex) -> None:
    images = [row.image for row in image_index.rows]
    pixels, broken = load_images(images, image_size=16, max_megapixels=1, skip_broken=False)
    assert broken == {}
    assert torch.equal(pixels.tensor([0, 5]), load(image_index)[1].tensor([0, 5]))
    images[1].file.write_bytes(b"")
    pixels, broken = load_images(images, image_size=16, max_megapixels=1, skip_broken=True)
    assert broken == {1: "the file is empty (0 bytes)"}
    assert len(pixels) == 7


def test_nothing_readable_at_all_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.touch()
    for count, said in (
        (1, r"a\.png: the file is empty \(0 bytes\)\. Repair or remove the file\.$"),
        (6, r"^none of the 6 images can be read: .* Check that the right folder or files are given\.$"),
    ):
        for skip_broken in (True, False):
            with pytest.raises(BrokenImageError, match=said):
                load_images([ImageRef(file)] * count, image_size=16, max_megapixels=1, skip_broken=skip_broken)


def test_few_images_are_decoded_ahead_of_the_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded pixels of a large set would otherwise wait in memory."""
    monkeypatch.setattr(image_loading, "_AHEAD", 3)
    monkeypatch.setattr(image_loading, "num_cores", lambda: 2)
    started: list[str] = []

    def load(images: Sequence[ImageRef], names: Sequence[str]) -> list[SmallImage | BrokenImageError]:
        del images
        started.extend(names)
        return [BrokenImageError("no image", name=name) for name in names]

    names = [f"{number}.png" for number in range(40)]
    found: list[str | None] = []
    for image in image_loading.load_in_threads(load, [ImageRef(Path(name)) for name in names], names):
        assert isinstance(image, BrokenImageError)
        found.append(image.name)
        assert len(started) <= len(found) + 6
    assert found == names, "in order"
