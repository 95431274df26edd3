"""The images of ``twinbud teach``: which are opened, which train, and which measure. No test image is ever opened."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from twinbud.config.data_config import DataConfig
from twinbud.config.teaching import TeachConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import Progress
from twinbud.core.rng import numpy_stream
from twinbud.data.duplicates import blank_digests, find_groups
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex, check_given_split
from twinbud.data.preprocessing import Preprocessing
from twinbud.data.seen_images import SEEN_IMAGES
from twinbud.data.source import read_unlabelled_index
from twinbud.data.split_file import PartName, SplitRow, matching_rows
from twinbud.data.split_notes import counted, near_duplicate_notes
from twinbud.runs.context import decode_images, look_for_near_duplicates
from twinbud.teaching.quality import MeasuredImages
from twinbud.training.unlabelled import UnlabelledImages

MIN_IMAGES = 10
"""Fewer images neither teach nor measure anything."""
_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.1, 256
_MAX_FITTED, _MAX_LABELLED = 1024, 2000
"""Largest number of images that the measurements read."""
_PART_NAMES: dict[PartName, str] = {"val": "validation", "test": "test", "held-out": "held-out"}


@dataclass(frozen=True, kw_only=True)
class ListedImages:
    """The images that may be opened.

    Attributes:
        image_index: Their rows, none of a test, validation or held-out part.
        labelled: Paths of those whose labels the measurements may read.
        digests_left_out: SHA-256 of the pixels of the images left out, as far as the split file has them.
        notes: What was left out, in plain sentences.
    """

    image_index: ImageIndex
    labelled: frozenset[str]
    digests_left_out: frozenset[str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TeachingImages:
    """The decoded images, and their use.

    Attributes:
        image_index: The images.
        image_store: Their pixels.
        train: Rows that train, ascending.
        held_out: Rows that only measure; no image of the same patient or of the same picture trains.
        fitted: Rows of ``train`` that the measurements fit linear maps on.
        labelled: Rows whose labels the measurements read.
        groups: (N,) int: the group of every row; one group has one patient, identical images, or near-duplicates.
        notes: Plain sentences about the images.
    """

    image_index: ImageIndex
    image_store: ImageStore
    train: tuple[int, ...]
    held_out: tuple[int, ...]
    fitted: tuple[int, ...]
    labelled: tuple[int, ...]
    groups: np.ndarray
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a SHA-256 of each image's pixels and use in order, without paths."""
        held_out = set(self.held_out)
        lines = [f"{digest} {row in held_out}" for row, digest in enumerate(self.image_store.digests)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def measured(self, preprocessing: Preprocessing, device: torch.device) -> MeasuredImages:
        """Return the images that measure a network: those that fit maps, those that test them, and labelled ones."""
        whole = (*self.fitted, *self.held_out)
        rows = (*whole, *sorted(set(self.labelled) - set(whole)))
        place_of = {row: place for place, row in enumerate(rows)}
        classes = self.image_index.classes
        return MeasuredImages(
            images=UnlabelledImages(
                images_NCSS=self.image_store.rows(rows).fitting(device), preprocessing=preprocessing, device=device
            ),
            num_fitted=len(self.fitted),
            num_held_out=len(self.held_out),
            labelled=np.array([place_of[row] for row in self.labelled], dtype=np.int64),
            labels=np.array([classes.index(self.image_index.rows[row].label) for row in self.labelled], dtype=np.int64),
            groups=self.groups[list(self.labelled)],
        )


def list_teaching_images(config: DataConfig, progress: Progress | None = None) -> ListedImages:
    """List the images without opening them, and leave out those that the split keeps for validation or test.

    Raises:
        TwinbudError: The source or the split file cannot be read, or do not fit each other; a patient is in two parts;
            or too few images are left.
    """
    image_index = read_unlabelled_index(config, progress)
    rows, place = image_index.rows, image_index.source
    parts: dict[str, PartName] = {row.path: row.split for row in rows if row.split is not None}
    split_rows: Sequence[SplitRow] = ()
    if config.split is not None:
        place = f"--split {config.split}"
        split_rows = matching_rows(image_index, config.split)
        parts = {row.image_path: row.split for row in split_rows}
    if parts:
        divided = (replace(row, split="test" if parts[row.path] == "held-out" else parts[row.path]) for row in rows)
        check_given_split(tuple(divided), place, way_out="give the split.csv of a run")
    kept = tuple(row for row in rows if parts.get(row.path, "train") == "train")
    _require_enough(len(kept), image_index.source)
    labelled = {row.image_path for row in split_rows if row.labelled} or {row.path for row in kept}
    return ListedImages(
        image_index=replace(image_index, rows=kept),
        labelled=frozenset(row.path for row in kept if row.label and row.path in labelled),
        digests_left_out=frozenset(row.digest for row in split_rows if row.split != "train" and row.digest),
        notes=(_split_note(Counter(parts[row.path] for row in rows) if parts else None, len(kept), place),),
    )


def _split_note(counts: Counter[PartName] | None, num_kept: int, place: str) -> str:
    if counts is None:
        return (
            f"there is no split: all {counted(num_kept, 'image')} are used, and none of them may be tested on later"
            f" ({SEEN_IMAGES} lists them)"
        )
    left_out = [f"{counts[part]:,} {name}" for part, name in _PART_NAMES.items() if counts[part]]
    used = f"{counted(num_kept, 'training image')} used"
    return f"{used}; not opened: {', '.join(left_out)} ({place})" if left_out else f"{used} ({place})"


def _require_enough(num_images: int, source: str) -> None:
    if num_images < MIN_IMAGES:
        raise TwinbudError(
            f"{counted(num_images, 'image')} to train on; teaching needs at least {MIN_IMAGES}",
            where=source,
            fix="Add images; no labels are needed",
        )


def open_teaching_images(listed: ListedImages, config: TeachConfig, progress: Progress) -> TeachingImages:
    """Decode the images, leave out copies of test images, and divide the others into training and measuring ones.

    Raises:
        TwinbudError: An image cannot be read, or too few images, or a single patient, are left.
    """
    image_index, image_store = decode_images(listed.image_index, config, progress)
    copies = {
        row: "identical to an image that the split keeps for validation or test"
        for row, digest in enumerate(image_store.digests)
        if digest in listed.digests_left_out
    }
    notes = listed.notes
    if copies:
        image_index, image_store = image_index.without(copies), image_store.without(copies)
        notes += (f"{counted(len(copies), 'training image')} left out: identical to validation or test images",)
    _require_enough(len(image_index.rows), image_index.source)
    rows, seed = image_index.rows, config.training.seed
    near = ()
    if config.data.groups_near_duplicates:
        near = look_for_near_duplicates(
            image_index, image_store.digests, config.data, progress, pixel_cache=config.pixel_cache
        )
    found = find_groups(
        rows,
        image_store.digests,
        blank=blank_digests(image_store),
        keep_duplicates_together=True,
        near_pairs=[(pair.first, pair.second) for pair in near],
    )
    notes += tuple(near_duplicate_notes(found)) if config.data.groups_near_duplicates else ()
    groups = found.numbers
    held_out = _held_out(groups, seed)
    if not held_out:
        raise TwinbudError(
            f"the {len(rows)} images are all of one patient, or show one picture: teaching needs a second patient"
            " (or picture) to measure on",
            where=image_index.source,
            fix="Add images of other patients",
        )
    train = tuple(sorted(set(range(len(rows))) - set(held_out)))
    labelled = [row for row, image in enumerate(rows) if image.path in listed.labelled]
    return TeachingImages(
        image_index=image_index,
        image_store=image_store,
        train=train,
        held_out=held_out,
        fitted=_sample(train, _MAX_FITTED, seed, "fitted"),
        labelled=_sample(labelled, _MAX_LABELLED, seed, "labelled"),
        groups=groups,
        notes=notes,
    )


def _held_out(groups: np.ndarray, seed: int) -> tuple[int, ...]:
    """Return a tenth of the rows, in whole groups, or the smallest group if none is that small; empty of one group."""
    sizes = np.bincount(groups)
    names = np.flatnonzero(sizes)
    if len(names) < 2:
        return ()
    room = min(max(1, round(_HELD_OUT_SHARE * len(groups))), _MAX_HELD_OUT)
    chosen: list[int] = []
    for name in names[numpy_stream("teaching", seed, "held-out").permutation(len(names))]:
        if sizes[name] <= room:
            chosen.append(int(name))
            room -= sizes[name]
    if not chosen:
        chosen = [int(names[sizes[names].argmin()])]
    return tuple(np.flatnonzero(np.isin(groups, chosen)).tolist())


def _sample(rows: Sequence[int], largest: int, seed: int, counter: str) -> tuple[int, ...]:
    order = numpy_stream("teaching", seed, counter).permutation(len(rows))[:largest]
    return tuple(sorted(rows[place] for place in order))
