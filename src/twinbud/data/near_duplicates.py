"""Near-duplicates: pairs of images that show the same picture, re-encoded, brightened, mirrored or slightly cropped.

Three steps, each on thumbnails of a fixed size, so that the pairs do not depend on the image size of a run:

1. A perceptual hash of 64 bits: the signs, about their median, of the 8 x 8 lowest frequencies of the image's cosine
   transform. It equals that of ``imagehash.phash`` for a 32 x 32 image. A mirrored image needs no second transform:
   mirroring changes the signs of the odd frequencies.
2. Candidates: pairs whose hashes differ in at most ``MAX_DISTANCE`` bits. Each hash is cut into four words of 16 bits.
   By the pigeonhole principle two such hashes have a word that differs in at most one bit, so that a sorted table of
   words finds all candidates without comparing all pairs.
3. Confirmation: the correlation of the fine details (the image less its blurred copy), after alignment. Slices of
   different patients have nearly the same shape, and so correlate at 0.95; their details do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from twinbud.data.alignment import aligned_pairs
from twinbud.data.image_store import ImageStore, OnProgress, load_images
from twinbud.data.index import ImageIndex
from twinbud.data.pixel_cache import PixelCache

THUMBNAIL_SIZE = 64
"""Side of the thumbnails in pixels."""
MAX_DISTANCE = 7
"""Largest number of bits in which the hashes of a pair may differ: four words with one differing bit each, less one."""
MIN_CORRELATION = 0.9
"""Smallest correlation of the details of a near-duplicate; docs/audit.md shows what lies above and below."""
_MIN_SHAPE_CORRELATION, _MIN_START_CORRELATION = 0.8, 0.3
"""Pairs whose shapes, or details before alignment, correlate less are not aligned: no such crop has a near hash."""
_DETAIL_BLUR = 2.0
"""Standard deviation, in pixels of the thumbnail, of the blur that separates shape and details."""
_MIN_DETAIL = 0.5
"""Smallest standard deviation of the details, in gray values: a smooth image has none that could be compared."""
_HASH_SIDE, _FREQUENCIES, _WORDS, _WORD_BITS = 32, 8, 4, 16
_BATCH = 512
"""Pairs at a time: what fits into the caches of a CPU core."""

Mirrored = Literal["no", "left-right", "top-bottom", "both"]
"""How the first image of a pair is mirrored to match the second; ``both`` is a turn by 180 degrees."""
_SIGNS = np.where(np.arange(_FREQUENCIES) % 2, -1, 1)


@dataclass(frozen=True, kw_only=True, order=True)
class NearDuplicate:
    """Two images that show the same picture.

    Attributes:
        first: Index of an image.
        second: Index of the other, larger than ``first``.
        correlation: Correlation of their details after alignment, from ``MIN_CORRELATION`` to 1.
        mirrored: How ``first`` is mirrored to match ``second``.
    """

    first: int
    second: int
    correlation: float
    mirrored: Mirrored


def load_thumbnails(
    image_index: ImageIndex,
    *,
    max_megapixels: float,
    cache: PixelCache | None = None,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """Decode every image of an index to a thumbnail.

    Args:
        image_index: The images, all of which can be read.
        max_megapixels: Largest image to decode, in millions of pixels.
        cache: Cache of decoded images of ``THUMBNAIL_SIZE``; None: no cache.
        on_progress: Called with the number of images decoded so far.

    Returns:
        (N, 64, 64) uint8, gray: the mean of the channels.

    Raises:
        BrokenImageError: An image cannot be read any more.
    """
    image_store, _ = load_images(
        [row.image for row in image_index.rows],
        names=[row.path for row in image_index.rows],
        image_size=THUMBNAIL_SIZE,
        max_megapixels=max_megapixels,
        skip_broken=False,
        cache=cache,
        on_progress=on_progress,
    )
    return gray_thumbnails(image_store)


def gray_thumbnails(image_store: ImageStore) -> np.ndarray:
    """Return the images of a store, uint8 (N, S, S): the mean of the channels, rounded."""
    batches = (image_store.tensor([index]) for index in range(len(image_store)))
    gray = [images.float().mean(1).round().to(torch.uint8) for images in batches]
    return torch.cat(gray).numpy() if gray else np.empty((0, image_store.image_size, image_store.image_size), np.uint8)


def find_near_duplicates(thumbnails: np.ndarray, digests: Sequence[str]) -> tuple[NearDuplicate, ...]:
    """Find the pairs of near-duplicates among images.

    Of identical images only the first takes part. Images without details (blank ones) have no near-duplicates.

    Args:
        thumbnails: (N, 64, 64) uint8, gray.
        digests: For each image, the SHA-256 of its pixels.

    Returns:
        Pairs in the order of their indices; one a pair, with the mirroring that fits best.
    """
    first_of = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    chosen = np.array(sorted(first_of.values()), dtype=np.int64)
    details = _details(thumbnails[chosen])
    has_detail = details.std((1, 2)) >= _MIN_DETAIL
    chosen, details = chosen[has_detail], details[has_detail]
    best: dict[tuple[int, int], NearDuplicate] = {}
    own = perceptual_hashes(thumbnails[chosen], "no")
    for mirrored in get_args(Mirrored):
        hashes = own if mirrored == "no" else perceptual_hashes(thumbnails[chosen], mirrored)
        for pairs in candidate_pairs(hashes, own):
            found = _confirm(thumbnails[chosen], details, pairs, mirrored)
            for (first, second), correlation in zip(pairs.tolist(), found.tolist(), strict=True):
                key = int(chosen[first]), int(chosen[second])
                if correlation >= MIN_CORRELATION and (key not in best or best[key].correlation < correlation):
                    best[key] = NearDuplicate(
                        first=key[0], second=key[1], correlation=round(correlation, 4), mirrored=mirrored
                    )
    return tuple(sorted(best.values()))


def perceptual_hashes(thumbnails: np.ndarray, mirrored: Mirrored = "no") -> np.ndarray:
    """Return the perceptual hash of each image after mirroring it.

    Args:
        thumbnails: (N, 64, 64) uint8.
        mirrored: How images are mirrored first.

    Returns:
        (N,) uint64.
    """
    factor = THUMBNAIL_SIZE // _HASH_SIDE
    small = thumbnails.reshape(-1, _HASH_SIDE, factor, _HASH_SIDE, factor).mean((2, 4), dtype=np.float32)
    lowest = np.asarray(dctn(small, axes=(1, 2)))[:, :_FREQUENCIES, :_FREQUENCIES]
    if mirrored in ("left-right", "both"):
        lowest = lowest * _SIGNS
    if mirrored in ("top-bottom", "both"):
        lowest = lowest * _SIGNS[:, None]
    flat = lowest.reshape(len(thumbnails), _FREQUENCIES**2)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def candidate_pairs(queries: np.ndarray, hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Find all pairs whose hashes differ in at most ``MAX_DISTANCE`` bits.

    Args:
        queries: (N,) uint64: hashes of the images, mirrored or not.
        hashes: (N,) uint64: hashes of the images as they are.

    Yields:
        (B, 2) int64 pairs of a query and a hash of a larger index. Each pair comes once.
    """
    mask = np.uint64(2**_WORD_BITS - 1)
    found: list[np.ndarray] = []
    for word in range(_WORDS):
        shift = np.uint64(word * _WORD_BITS)
        words, asked = (((values >> shift) & mask).astype(np.int64) for values in (hashes, queries))
        order = np.argsort(words, kind="stable")
        for change in (0, *(1 << bit for bit in range(_WORD_BITS))):
            start, stop = (np.searchsorted(words[order], asked ^ change, side=side) for side in ("left", "right"))
            for rows in _in_batches(stop - start):
                counts = (stop - start)[rows]
                first = np.repeat(rows, counts)
                offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                second = order[np.repeat(start[rows], counts) + offset]
                near = np.bitwise_count(queries[first] ^ hashes[second]) <= MAX_DISTANCE
                found.append(np.stack([first, second], 1)[near & (first < second)])
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)
    for start in range(0, len(pairs), _BATCH):
        yield pairs[start : start + _BATCH]


def _in_batches(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the indices of nonzero counts, in batches of limited sum unless a single count is larger."""
    rows = np.flatnonzero(counts)
    batch = np.cumsum(counts[rows]) // 10**6
    for name in np.unique(batch):
        yield rows[batch == name]


def _details(images: np.ndarray) -> np.ndarray:
    """Return (N, H, W) float32: the images less their blurred copies."""
    sharp = images.astype(np.float32)
    return sharp - gaussian_filter(sharp, (0, _DETAIL_BLUR, _DETAIL_BLUR))


def _confirm(thumbnails: np.ndarray, details: np.ndarray, pairs: np.ndarray, mirrored: Mirrored) -> np.ndarray:
    """Return (B,) float: the correlation of the details of each pair, aligned where that may help."""
    first, second = (torch.from_numpy(details[pairs[:, side]]) for side in (0, 1))
    found = _correlation(_mirror(first, mirrored), second)
    shapes = [torch.from_numpy(thumbnails[pairs[:, side]].astype(np.float32)) for side in (0, 1)]
    shapes[0] = _mirror(shapes[0], mirrored)
    may_help = (found >= _MIN_START_CORRELATION) & (_correlation(*shapes) >= _MIN_SHAPE_CORRELATION)
    again = np.flatnonzero((found < MIN_CORRELATION) & may_help)
    if len(again):
        warped, target = (images.numpy() for images in aligned_pairs(shapes[0][again], shapes[1][again]))
        found[again] = np.maximum(
            found[again], _correlation(torch.from_numpy(_details(warped)), torch.from_numpy(_details(target)))
        )
    return found


def _mirror(images: torch.Tensor, mirrored: Mirrored) -> torch.Tensor:
    axes = {"no": (), "left-right": (2,), "top-bottom": (1,), "both": (1, 2)}[mirrored]
    return images.flip(axes) if axes else images


def _correlation(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return (B,): the correlation of two (B, H, W) images; 0 where one of them is constant."""
    flat = [images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (first, second)]
    lengths = flat[0].norm(dim=1) * flat[1].norm(dim=1)
    return ((flat[0] * flat[1]).sum(1) / lengths.clamp_min(1e-6)).numpy()
