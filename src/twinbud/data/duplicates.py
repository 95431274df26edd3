"""Identical images and near-duplicates: which of them keep images and patients on one side of a split.

Images of identical pixels are one image: if one copy trains and another tests, the test is not independent, and
patients who share an image may be one patient under two ids. Both therefore stay together. A blank image (an empty
slice, a scanner's padding) tells nothing about a patient and has copies in every set, so it connects nothing. The same
holds for near-duplicates (``twinbud.data.near_duplicates``), where the caller has looked for them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from twinbud.data.folds import connected_groups, connected_pairs
from twinbud.data.identity import patient_key, visible_text
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageRow

BLANK_SHARE = 0.99
BLANK_TOLERANCE = 3
"""An image is blank if at least BLANK_SHARE of its pixels lie within BLANK_TOLERANCE (of 255) of their median."""


def is_blank(pixels: torch.Tensor) -> bool:
    """Return whether an image has almost one value only.

    Args:
        pixels: uint8 (C, H, W).
    """
    values = pixels.flatten(1).short()
    near_median = (values - values.median(dim=1, keepdim=True).values).abs() <= BLANK_TOLERANCE
    return bool(near_median.all(dim=0).float().mean() >= BLANK_SHARE)


def blank_digests(image_store: ImageStore) -> frozenset[str]:
    """Return the digests of the blank images that occur more than once, judged at the resolution of the store."""
    counts = Counter(image_store.digests)
    first = {digest: index for index, digest in enumerate(image_store.digests) if counts[digest] > 1}
    return frozenset(digest for digest, index in first.items() if is_blank(image_store.tensor([index])[0]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Which images must be on one side of a split, and why.

    Attributes:
        rows: The images.
        copies: Sets of two or more identical images that are not blank, as ascending indices into ``rows``.
        blank: Indices of the blank images that have identical copies.
        patients: For each image the key of its patient; where the patient is not known, a key of its own.
        numbers: (N,) int: images with one number stay on one side.
        near_pairs: Pairs of near-duplicates, as indices into ``rows``.
    """

    rows: Sequence[ImageRow]
    copies: tuple[tuple[int, ...], ...]
    blank: tuple[int, ...]
    patients: tuple[str, ...]
    numbers: np.ndarray
    near_pairs: tuple[tuple[int, int], ...] = ()

    def connecting_copies(self, indices: Collection[int]) -> tuple[int, ...]:
        """Return the identical images among ``indices`` that connect the most patients; empty if none connects two."""
        chosen = set(indices)
        touching = (copies for copies in self.copies if chosen.intersection(copies))
        best = max(touching, key=lambda copies: (self.num_patients(copies), len(copies)), default=())
        return best if self.num_patients(best) > 1 else ()

    def num_patients(self, indices: Collection[int]) -> int:
        """Return how many patients some images are of; an image of unknown patient counts as one."""
        return len({self.patients[index] for index in indices})

    def describe(self, copies: Sequence[int]) -> str:
        """Return ``'a.png' (the same image in 20 patients)``, or in so many files where patients are not known."""
        num_known = len({self.patients[index] for index in copies if self.rows[index].patient_id is not None})
        where = f"{num_known} patients" if num_known > 1 else f"{len(copies)} files"
        return f"{visible_text(self.rows[copies[0]].path)} (the same image in {where})"


def find_groups(
    rows: Sequence[ImageRow],
    digests: Sequence[str],
    *,
    blank: Collection[str],
    keep_duplicates_together: bool,
    near_pairs: Sequence[tuple[int, int]] = (),
) -> Groups:
    """Group the images that share a patient or their pixels, directly or in a chain.

    Args:
        rows: The images.
        digests: For each row, the SHA-256 of its pixels.
        blank: Digests that connect nothing (``blank_digests``).
        keep_duplicates_together: Whether identical pixels and near-duplicates connect at all.
        near_pairs: Pairs of near-duplicates.
    """
    counts, repeated = Counter(digests), defaultdict[str, list[int]](list)
    for index, digest in enumerate(digests):
        if counts[digest] > 1:
            repeated[digest].append(index)
    patients = [
        f"row {index}" if (key := patient_key(row.patient_id)) is None else f"patient {key}"
        for index, row in enumerate(rows)
    ]
    pixels = [index if digest in blank else digest for index, digest in enumerate(digests)]
    near = connected_pairs(len(rows), near_pairs).tolist()
    keys = (patients, pixels, near) if keep_duplicates_together else (patients,)
    return Groups(
        rows=rows,
        copies=tuple(tuple(indices) for digest, indices in repeated.items() if digest not in blank),
        blank=tuple(sorted(index for digest in blank for index in repeated.get(digest, ()))),
        patients=tuple(patients),
        numbers=connected_groups(*keys),
        near_pairs=tuple(near_pairs),
    )
