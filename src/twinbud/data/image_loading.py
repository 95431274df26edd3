"""Decodes and resizes the images of files, on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch

from twinbud.core.environment import num_cores
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import ImageFile, decode, digest, read_file
from twinbud.data.formats.mapped import sha256
from twinbud.data.index import ImageRef, ImageRow
from twinbud.data.pixel_cache import PixelCache, SmallImage, entry_name
from twinbud.data.preprocessing import resize

_AHEAD = 64
"""Files that are decoded or queued ahead of the one whose images are taken, for each core."""
Loaded = TypeVar("Loaded")
"""What becomes of an image."""


def load_in_threads(
    load: Callable[[Sequence[ImageRef], Sequence[str]], Sequence[Loaded]],
    images: Sequence[ImageRef],
    names: Sequence[str],
) -> Iterator[Loaded]:
    """Load images on all cores of the process, with no more than some of them waiting in memory.

    Args:
        load: Loads images of one file; an error that it raises is raised here.
        images: Where they are.
        names: Their names in messages.

    Yields:
        The images in their order; those of one file that follow each other are loaded together.
    """
    files = [list(places) for _, places in groupby(range(len(images)), lambda index: images[index].file)]
    of_file = [([images[index] for index in places], [names[index] for index in places]) for places in files]
    # threads, not processes: Pillow and hashlib release the interpreter lock while they work
    cores = num_cores()
    with ThreadPoolExecutor(cores, thread_name_prefix="decode") as pool:
        ahead: deque[Future[Sequence[Loaded]]] = deque()
        for places in of_file:
            ahead.append(pool.submit(load, *places))
            if len(ahead) == _AHEAD * cores:  # and no more, or the images of a large set would wait in memory
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def load_file(
    images: Sequence[ImageRef],
    names: Sequence[str],
    *,
    cache: PixelCache | None,
    image_size: int,
    max_megapixels: float,
) -> list[SmallImage | BrokenImageError]:
    """Load images of one file, each from the cache if it has an entry; the file is read once.

    Args:
        images: The images, all of one file.
        names: Their names in messages.
        cache: Where decoded images are kept; None for nowhere.
        image_size: Side of the images in pixels.
        max_megapixels: Largest number of pixels, in millions.

    Returns:
        For each image its pixels, or the error.
    """
    try:
        contents = read_file(images[0].file, names[0])
    except BrokenImageError as error:
        return [BrokenImageError(error.problem, name=name, advice=error.advice) for name in names]
    contents_digest = sha256(contents)
    file = ImageFile(contents, max_megapixels=max_megapixels, plane=images[0].plane)
    loaded: list[SmallImage | BrokenImageError] = []
    for image_ref, name in zip(images, names, strict=True):
        entry = entry_name(contents_digest, image_ref)
        try:
            loaded.append(_load(file, entry, image_ref, name, cache=cache, image_size=image_size))
        except BrokenImageError as error:
            loaded.append(error)
    return loaded


def decode_row(row: ImageRow, max_megapixels: float) -> np.ndarray:
    """Decode one image at full resolution: uint8 (H, W, 3).

    Raises:
        BrokenImageError: It cannot be read, or has more than ``max_megapixels`` million pixels.
    """
    image = row.image
    return decode(
        image.file,
        name=row.path,
        max_megapixels=max_megapixels,
        frame=image.frame,
        window=image.window,
        plane=image.plane,
    )


def _load(
    file: ImageFile, entry: str, image_ref: ImageRef, name: str, *, cache: PixelCache | None, image_size: int
) -> SmallImage:
    known = cache.load(entry) if cache else None
    if known is not None and known.num_pixels <= file.max_megapixels * 1e6:
        return known
    image = file.decode(image_ref.frame, image_ref.window, name=name)
    small = SmallImage(
        entry=entry,
        channels=_channels(resize(image, image_size)),
        digest=digest(image),
        num_pixels=image.shape[0] * image.shape[1],
    )
    if cache:
        cache.save(small)
    return small


def _channels(image: np.ndarray) -> torch.Tensor:
    """Rearrange (S, S, 3) as (3, S, S), or as (1, S, S) if all three channels are equal."""
    red, green, blue = np.moveaxis(image, 2, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return torch.from_numpy(red[None].copy())
    return torch.from_numpy(np.stack([red, green, blue]))
