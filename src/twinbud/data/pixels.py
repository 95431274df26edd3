"""Every image decoded once, resized, and kept in memory as uint8: no file is read again in any epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from twinbud.data.catalog import Catalog
from twinbud.data.decode import BrokenImageError, decode, digest, resize, without_warnings
from twinbud.errors import TwinbudError, first_few

OnProgress = Callable[[int], None]
"""Called with the number of images done, from the thread that asked."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Resized images in memory, in the order of their files; a grey image is kept as one channel."""

    image_size: int
    """S, in pixels."""
    digests: tuple[str, ...]
    """For each image, the SHA-256 of its decoded pixels at full resolution."""
    channels: tuple[torch.Tensor, ...]
    """For each image, uint8 (1, S, S), or (3, S, S) where its channels differ."""

    def __len__(self) -> int:
        return len(self.channels)

    def without(self, left_out: Container[int]) -> Pixels:
        """The images less some, in the same order."""
        kept = [index for index in range(len(self)) if index not in left_out]
        return replace(
            self,
            digests=tuple(self.digests[index] for index in kept),
            channels=tuple(self.channels[index] for index in kept),
        )

    def tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """Gather images.

        Args:
            indices: Which, in the order wanted.

        Returns:
            (N, 3, S, S) uint8 RGB, contiguous, on the CPU.
        """
        batch = torch.empty((len(indices), 3, self.image_size, self.image_size), dtype=torch.uint8)
        for place, index in enumerate(indices):
            batch[place] = self.channels[index]
        return batch


def load_pixels(
    catalog: Catalog,
    *,
    image_size: int,
    max_megapixels: float,
    skip_broken: bool,
    on_progress: OnProgress | None = None,
) -> tuple[Catalog, Pixels]:
    """Decode every image of a catalog, once.

    Args:
        catalog: The images.
        image_size: S, in pixels; proportions are not kept.
        max_megapixels: Largest image to decode, in millions of pixels.
        skip_broken: Leave broken images out and list them in the catalog's `ignored`.
        on_progress: Called with the number of images decoded so far.

    Returns:
        The catalog of the images that could be read, and their pixels in the order of its rows.

    Raises:
        BrokenImageError: An image cannot be used and `skip_broken` is off; it names the first few and counts.
        TwinbudError: Without its broken images, a class has fewer than two.
    """
    pixels, broken = load_images(
        [row.file for row in catalog.rows],
        names=[row.path for row in catalog.rows],
        image_size=image_size,
        max_megapixels=max_megapixels,
        skip_broken=skip_broken,
        on_progress=on_progress,
    )
    return (catalog.without(broken) if broken else catalog), pixels


def load_images(
    files: Sequence[Path],
    *,
    image_size: int,
    max_megapixels: float,
    skip_broken: bool,
    names: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Pixels, dict[int, str]]:
    """Decode image files, once each, with as many threads as the process may use cores.

    Args:
        files: The images.
        image_size: S, in pixels; proportions are not kept.
        max_megapixels: Largest image to decode, in millions of pixels.
        skip_broken: Leave broken images out.
        names: What errors call the files; their paths by default.
        on_progress: Called with the number of images decoded so far.

    Returns:
        The pixels of the images that could be read, in the order of `files`; and for each of the others its
        place in `files` and the reason.

    Raises:
        BrokenImageError: An image cannot be used and `skip_broken` is off, or none can be used.
    """
    names = [str(file) for file in files] if names is None else names
    loaded: list[tuple[torch.Tensor, str]] = []
    broken: dict[int, BrokenImageError] = {}
    load = partial(_load, image_size=image_size, max_megapixels=max_megapixels)
    with without_warnings():
        for index, result in enumerate(_in_threads(load, files, names)):
            if isinstance(result, BrokenImageError):
                broken[index] = result
            else:
                loaded.append(result)
            if on_progress is not None:
                on_progress(index + 1)
    if broken and (not skip_broken or not loaded):
        raise _summary(list(broken.values()), len(files))
    channels, digests = zip(*loaded, strict=True) if loaded else ((), ())
    pixels = Pixels(image_size=image_size, digests=digests, channels=channels)
    return pixels, {index: error.reason for index, error in broken.items()}


def _in_threads(
    load: Callable[[Path, str], tuple[torch.Tensor, str] | BrokenImageError],
    files: Sequence[Path],
    names: Sequence[str],
) -> Iterator[tuple[torch.Tensor, str] | BrokenImageError]:
    # threads, not processes: Pillow and hashlib let go of the interpreter lock while they work
    with ThreadPoolExecutor(_num_cores(), thread_name_prefix="decode") as pool:
        yield from pool.map(load, files, names)


def _num_cores() -> int:
    # the cores of this process: a container's share of a large machine, not the machine
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(
    file: Path, name: str, *, image_size: int, max_megapixels: float
) -> tuple[torch.Tensor, str] | BrokenImageError:
    try:
        image = decode(file, name=name, max_megapixels=max_megapixels)
    except BrokenImageError as error:
        return error
    return _channels(resize(image, image_size)), digest(image)


def _channels(image: np.ndarray) -> torch.Tensor:
    """(S, S, 3) to (3, S, S), or to (1, S, S) where all three channels are equal."""
    red, green, blue = np.moveaxis(image, 2, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return torch.from_numpy(red[None].copy())
    return torch.from_numpy(np.stack([red, green, blue]))


def _summary(broken: list[BrokenImageError], num_files: int) -> TwinbudError:
    if len(broken) == 1:
        return broken[0]
    named = first_few((f"{error.name} ({error.reason})" for error in broken), 3)
    return BrokenImageError(
        f"{len(broken)} of {num_files} that cannot be used",
        name=named,
        expected="images that can be read",
        fix="Mend or remove them, or give --skip-broken to leave them out and list them",
    )
