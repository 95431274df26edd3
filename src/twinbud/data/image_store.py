"""Decoded and resized images as uint8: in memory, or in the cache on disk if memory is too small.

Shape legend: N images, B batch, C channels (1 if all images are gray, else 3), S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch

from twinbud.core.errors import first_few
from twinbud.core.memory import available_bytes
from twinbud.data.formats.base import REPAIR, SKIP_ALL, BrokenImageError
from twinbud.data.formats.decoding import without_warnings
from twinbud.data.identity import visible_text
from twinbud.data.image_loading import load_file, load_in_threads
from twinbud.data.index import ImageIndex, ImageRef, split_frame_name
from twinbud.data.pixel_cache import PixelCache, SmallImage

OnProgress = Callable[[int], None]
"""Receives the number of images done, on the calling thread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStore:
    """Resized images, in the order of their files. A gray image is stored as one channel."""

    image_size: int
    """S, in pixels."""
    digests: tuple[str, ...]
    """SHA-256 of each image's decoded pixels at full resolution."""
    pixels: tuple[torch.Tensor | StoredImage, ...]
    """Pixels of each image, uint8 (1, S, S), or (3, S, S) if its channels differ; or where to read them."""
    empty_frames: tuple[int, ...] = ()
    """Which of the images are a frame of a file of several and have one value only, as a slice of air has."""

    def __len__(self) -> int:
        return len(self.pixels)

    def without(self, left_out: Container[int]) -> ImageStore:
        """Return the store without some images, in the same order."""
        kept = [index for index in range(len(self)) if index not in left_out]
        return replace(
            self,
            digests=tuple(self.digests[index] for index in kept),
            pixels=tuple(self.pixels[index] for index in kept),
            empty_frames=tuple(place for place, index in enumerate(kept) if index in self.empty_frames),
        )

    def tensor(self, indices: Sequence[int], num_channels: int = 3) -> torch.Tensor:
        """Gather images.

        Args:
            indices: Indices of the images, in the order of the result.
            num_channels: C: 3, or 1 if all of them are gray.

        Returns:
            (N, C, S, S) uint8, contiguous, on the CPU.
        """
        batch = torch.empty((len(indices), num_channels, self.image_size, self.image_size), dtype=torch.uint8)
        for place, index in enumerate(indices):
            image = self.pixels[index]
            batch[place] = image.read() if isinstance(image, StoredImage) else image
        return batch

    def rows(self, indices: Sequence[int]) -> ImageSubset:
        """Return a view of some images; their pixels are gathered on access."""
        return ImageSubset(self, indices)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image that is read on access: from the cache or, if its entry is missing, from its file."""

    cache: PixelCache
    entry: str
    digest: str
    is_gray: bool
    name: str
    decode: Callable[[], SmallImage | BrokenImageError]

    def read(self) -> torch.Tensor:
        """Return the pixels, uint8 (1, S, S) or (3, S, S).

        Raises:
            BrokenImageError: The cache entry is missing, and the file is missing too or has changed.
        """
        image = self.cache.load(self.entry) or self.decode()
        if isinstance(image, SmallImage) and image.digest != self.digest:
            image = BrokenImageError(
                "the file changed on disk during the run",
                name=self.name,
                advice="Restore it, or start the run again",
                skip=None,
            )
        if isinstance(image, BrokenImageError):
            raise image
        return image.channels


class ImageSubset:
    """Some images of a store, indexed like a tensor (N, C, S, S); pixels are gathered on access."""

    def __init__(self, image_store: ImageStore, indices: Sequence[int]) -> None:
        self.image_store, self.indices = image_store, indices
        images = (image_store.pixels[index] for index in indices)
        gray = all(image.is_gray if isinstance(image, StoredImage) else len(image) == 1 for image in images)
        self.num_channels = 1 if gray else 3

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return (B, C, S, S) uint8, on the CPU, of the images at these int64 positions."""
        return self.image_store.tensor([self.indices[row] for row in rows_B.tolist()], self.num_channels)

    @property
    def num_bytes(self) -> int:
        """Size of all pixels in bytes."""
        return len(self) * self.num_channels * self.image_store.image_size**2

    def tensor(self) -> torch.Tensor:
        """Return (N, C, S, S) uint8, on the CPU, of all images."""
        return self.image_store.tensor(self.indices, self.num_channels)

    def fitting(self, device: torch.device) -> torch.Tensor | ImageSubset:
        """Return all pixels on ``device`` if they need at most half of its free memory, else this subset."""
        return self.tensor().to(device) if 2 * self.num_bytes <= available_bytes(device) else self


def load_image_store(
    image_index: ImageIndex,
    *,
    image_size: int,
    max_megapixels: float,
    skip_broken: bool,
    cache: PixelCache | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[ImageIndex, ImageStore]:
    """Decode every image of an index, once.

    Args:
        image_index: The images.
        image_size: S, in pixels; proportions are not kept.
        max_megapixels: Largest image to decode, in millions of pixels.
        skip_broken: Leave broken images out and list them in the index's `ignored`.
        cache: Cache of decoded images, for the same image size; None: no cache.
        on_progress: Called with the number of images decoded so far.

    Returns:
        The index of the images that were decoded, with a note of empty frames; and their pixels in the order of its
        rows.

    Raises:
        BrokenImageError: An image cannot be decoded and `skip_broken` is off.
        TwinbudError: Without its broken images, a class has fewer than two images.
    """
    image_store, broken = load_images(
        [row.image for row in image_index.rows],
        names=[row.path for row in image_index.rows],
        image_size=image_size,
        max_megapixels=max_megapixels,
        skip_broken=skip_broken,
        cache=cache,
        on_progress=on_progress,
    )
    image_index = image_index.without(broken) if broken else image_index
    return replace(image_index, notes=(*image_index.notes, *_empty_note(image_index, image_store))), image_store


def _empty_note(image_index: ImageIndex, image_store: ImageStore) -> list[str]:
    names = [visible_text(image_index.rows[index].path) for index in image_store.empty_frames]
    if not names:
        return []
    count = f"{len(names):,} of {len(image_index.rows):,} images"
    return [f"{count} are frames or slices that show a single value, such as air: {first_few(names, 3)}"]


def load_images(
    images: Sequence[ImageRef],
    *,
    image_size: int,
    max_megapixels: float,
    skip_broken: bool,
    names: Sequence[str] | None = None,
    cache: PixelCache | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[ImageStore, dict[int, str]]:
    """Decode image files, once each, with one thread per available core.

    Args:
        images: The images.
        image_size: S, in pixels; proportions are not kept.
        max_megapixels: Largest image to decode, in millions of pixels.
        skip_broken: Leave broken images out.
        names: Names of the images in messages; their paths by default.
        cache: Cache of decoded images. Pixels that need more than half of the free memory stay there and are read
            on access.
        on_progress: Called with the number of images decoded so far.

    Returns:
        The pixels of the images that were decoded, in the order of `images`; and for each of the others its
        position in `images` and the reason.

    Raises:
        BrokenImageError: An image cannot be decoded and `skip_broken` is off, or none can be decoded.
    """
    names = [str(image.file) for image in images] if names is None else names
    loaded: list[tuple[torch.Tensor | StoredImage, str]] = []
    empty: list[int] = []
    broken: dict[int, BrokenImageError] = {}
    load = partial(load_file, cache=cache, image_size=image_size, max_megapixels=max_megapixels)
    in_memory = 2 * len(images) * 3 * image_size**2 <= available_bytes(torch.device("cpu"))
    with without_warnings():
        for index, image in enumerate(load_in_threads(load, images, names)):
            if isinstance(image, SmallImage) and images[index].frame is not None and image.is_uniform:
                empty.append(len(loaded))
            if isinstance(image, BrokenImageError):
                broken[index] = image
            elif cache is None or cache.trouble or in_memory:
                loaded.append((image.channels, image.digest))
            else:
                stored = StoredImage(
                    cache=cache,
                    entry=image.entry,
                    digest=image.digest,
                    is_gray=len(image.channels) == 1,
                    name=names[index],
                    decode=lambda index=index: load([images[index]], [names[index]])[0],
                )
                loaded.append((stored, image.digest))
            if on_progress is not None:
                on_progress(index + 1)
    if broken and (not skip_broken or not loaded):
        raise _summary(list(broken.values()), len(images), can_skip=bool(loaded) and not skip_broken)
    pixels, digests = zip(*loaded, strict=True) if loaded else ((), ())
    image_store = ImageStore(image_size=image_size, digests=digests, pixels=pixels, empty_frames=tuple(empty))
    return image_store, {index: error.problem for index, error in broken.items()}


def _summary(broken: list[BrokenImageError], num_files: int, *, can_skip: bool) -> BrokenImageError:
    if len(broken) == 1:
        return broken[0] if can_skip else broken[0].without_skip()
    named: list[str] = []
    for (_, problem), of_file in groupby(broken, lambda error: (split_frame_name(error.name or "")[0], error.problem)):
        first, *others = of_file
        named.append(f"{first.name}{f' and {len(others)} more of this file' if others else ''} ({problem})")
    if can_skip:
        problem, advice = f"{len(broken)} of {num_files} image files cannot be used", "Repair or remove them"
    else:
        problem = f"none of the {num_files} images can be read"
        advice = "Check that the right folder or files are given"
    if len(special := {error.advice for error in broken} - {REPAIR}) == 1:
        advice = special.pop()
    problem += f": {first_few(named, 3)}"
    return BrokenImageError(problem, advice=advice, skip=SKIP_ALL if can_skip else None)
