"""Decoded images are kept under their file's contents, whole or not at all, and for their owner alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.processes import start_code
from twinbud.data import image_store as image_store_module
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import ImageFile
from twinbud.data.image_store import ImageStore, StoredImage, load_images
from twinbud.data.index import ImageRef
from twinbud.data.pixel_cache import PixelCache, SmallImage

SIZE = 16


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Gray and colored images by turns."""
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        shape = (20, 30, 3) if number % 2 else (20, 30)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return files


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    return PixelCache(tmp_path / "cache", SIZE)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were really decoded."""
    names: list[str] = []

    original = ImageFile.decode

    def counting(file: ImageFile, *frame: Any, name: str) -> np.ndarray:
        names.append(Path(name).name)
        return original(file, *frame, name=name)

    monkeypatch.setattr(ImageFile, "decode", counting)
    return names


def load(files: list[Path], cache: PixelCache | None, max_megapixels: float = 1) -> ImageStore:
    images = [ImageRef(file) for file in files]
    return load_images(images, image_size=SIZE, max_megapixels=max_megapixels, skip_broken=False, cache=cache)[0]


def entries(cache: PixelCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def test_a_second_run_decodes_nothing_and_gets_the_same(
    files: list[Path], cache: PixelCache, decoded: list[str]
) -> None:
    plain, first = load(files, None), load(files, cache)
    decoded.clear()
    second = load(files, cache)
    assert decoded == []
    assert plain.digests == first.digests == second.digests
    assert [len(image) for image in second.pixels if isinstance(image, torch.Tensor)] == [1, 3, 1, 3, 1, 3]
    assert torch.equal(plain.tensor(range(6)), second.tensor(range(6)))


def test_a_renamed_file_is_known_and_a_changed_one_is_not(
    files: list[Path], cache: PixelCache, decoded: list[str]
) -> None:
    load(files, cache)
    files[0] = files[0].rename(files[0].with_name("moved.png"))
    files[1].write_bytes(files[2].read_bytes())
    Image.new("L", (8, 8), 7).save(files[3])
    decoded.clear()
    assert int(load(files, cache).tensor([3])[0, 0, 0, 0]) == 7
    assert decoded == ["3.png"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"x" + data[41:]]
)
def test_a_damaged_entry_is_decoded_again_and_mended(
    files: list[Path], cache: PixelCache, decoded: list[str], damage: Callable[[bytes], bytes]
) -> None:
    expected = load(files, cache)
    entry = entries(cache)[0]
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    decoded.clear()
    assert torch.equal(load(files, cache).tensor(range(6)), expected.tensor(range(6)))
    assert len(decoded) == 1
    assert entry.read_bytes() == whole


def test_the_limit_of_size_holds_for_known_images_too(files: list[Path], cache: PixelCache) -> None:
    load(files, cache)
    with pytest.raises(BrokenImageError, match=r"none of the 6 images can be read"):
        load(files, cache, max_megapixels=0.0005)


def test_sizes_do_not_share_entries(files: list[Path], cache: PixelCache, tmp_path: Path) -> None:
    load(files, cache)
    other = PixelCache(tmp_path / "cache", 8)
    images = [ImageRef(file) for file in files]
    assert load_images(images, image_size=8, max_megapixels=1, skip_broken=False, cache=other)[0].image_size == 8
    assert len(entries(cache)) == len(entries(other)) == 6


def test_entries_are_for_their_owner_alone(files: list[Path], cache: PixelCache) -> None:
    load(files, cache)
    assert {path.stat().st_mode & 0o077 for path in entries(cache)} == {0}
    assert {path.parent.stat().st_mode & 0o077 for path in entries(cache)} == {0}


def test_a_cache_that_cannot_be_written_stops_nothing_and_says_so(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    cache = PixelCache(tmp_path / "taken", SIZE)
    assert len(load(files, cache)) == 6
    assert cache.trouble is not None
    assert cache.trouble.endswith("(Not a directory); set TWINBUD_CACHE to a folder that can be written")


def test_two_processes_share_the_folder(files: list[Path], cache: PixelCache) -> None:
    program = (
        "from pathlib import Path\nfrom twinbud.data.pixel_cache import PixelCache\n"
        "from twinbud.data.image_store import load_images\nfrom twinbud.data.index import ImageRef\n"
        f"images = [ImageRef(Path(file)) for file in {[str(file) for file in files]}]\n"
        f"for _ in range(20): load_images(images, image_size={SIZE}, max_megapixels=1, skip_broken=False, "
        f"cache=PixelCache(Path({str(cache.folder.parent)!r}), {SIZE}))"
    )
    processes = [start_code(program) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(entries(cache)) == 6
    assert torch.equal(load(files, cache).tensor(range(6)), load(files, None).tensor(range(6)))


@pytest.fixture
def stored(files: list[Path], cache: PixelCache, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    """A set for which there is no room in memory."""
    monkeypatch.setattr(image_store_module, "available_bytes", lambda device: 0)
    return load(files, cache)


def test_a_set_too_large_for_memory_stays_on_the_disk(files: list[Path], stored: ImageStore) -> None:
    assert all(isinstance(image, StoredImage) for image in stored.pixels)
    rows = stored.rows([5, 0, 2])
    assert isinstance(rows.fitting(torch.device("cpu")), type(rows))
    expected = load(files, None).tensor([2, 5])
    assert torch.equal(rows[torch.tensor([2, 0])], expected)
    assert stored.rows([0, 2])[torch.tensor([1])].shape == (1, 1, SIZE, SIZE)


def test_a_file_that_vanishes_during_the_run_does_no_harm_while_its_entry_stands(
    files: list[Path], cache: PixelCache, stored: ImageStore
) -> None:
    expected = load(files, None).tensor(range(6))
    for file in files[:3]:
        file.unlink()
    assert torch.equal(stored.tensor(range(6)), expected)
    for entry in entries(cache):
        entry.unlink()
    assert torch.equal(stored.tensor([3, 4, 5]), expected[3:])  # decoded again
    with pytest.raises(BrokenImageError, match=r"0\.png: the file does not exist"):
        stored.tensor([0])


def test_a_file_that_changes_during_the_run_is_not_mistaken_for_itself(
    files: list[Path], cache: PixelCache, stored: ImageStore
) -> None:
    for entry in entries(cache):
        entry.unlink()
    files[0].write_bytes(files[2].read_bytes())
    with pytest.raises(BrokenImageError, match=r"0\.png: the file changed on disk during the run"):
        stored.tensor([0])


def test_what_is_saved_is_what_is_loaded(cache: PixelCache) -> None:
    channels = torch.arange(3 * SIZE * SIZE).view(3, SIZE, SIZE).to(torch.uint8)
    image = SmallImage(entry="ab" * 32, channels=channels, digest="cd" * 32, num_pixels=12345)
    cache.save(image)
    found = cache.load(image.entry)
    assert found is not None
    assert (found.digest, found.num_pixels) == (image.digest, image.num_pixels)
    assert torch.equal(found.channels, channels)
    assert cache.load("ef" * 32) is None


def test_what_a_killed_process_has_left_is_deleted_and_what_is_being_written_stays(cache: PixelCache) -> None:
    image = SmallImage(
        entry="ab" * 32, channels=torch.zeros(1, SIZE, SIZE, dtype=torch.uint8), digest="cd" * 32, num_pixels=1
    )
    folder = cache.folder / "ab"
    folder.mkdir(parents=True)
    for name, age in (("tmpabandoned", 25 * 3600), ("tmpwritten", 600), ("cd" * 31, 25 * 3600)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    cache.save(image)
    assert {path.name for path in folder.iterdir()} == {"tmpwritten", "cd" * 31, "ab" * 31}
