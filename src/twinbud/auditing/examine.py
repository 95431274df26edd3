"""Examine a set of images: read each once, as a thumbnail, and look for what would mislead a classifier."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from twinbud.auditing.facts import UNKNOWN, FileFacts, read_facts
from twinbud.auditing.findings import Audit, Pair
from twinbud.auditing.probes import border_probe, corrected, metadata_probes
from twinbud.auditing.text_findings import find_text
from twinbud.config.data_config import DataConfig
from twinbud.core.cache import cache_folder
from twinbud.core.progress import Progress
from twinbud.data.duplicates import Groups, blank_digests, find_groups
from twinbud.data.folds import connected_pairs
from twinbud.data.identity import patient_key
from twinbud.data.image_store import load_image_store
from twinbud.data.index import ImageIndex, ImageRow
from twinbud.data.near_duplicates import THUMBNAIL_SIZE, find_near_duplicates, gray_thumbnails
from twinbud.data.pixel_cache import PixelCache
from twinbud.data.source import read_index
from twinbud.data.split_file import with_split_file
from twinbud.data.split_leaks import leaking_pairs

_ALIKE, _INVERTED = 0.3, -0.3
"""Images are judged if half of them correlate with the mean image by 0.3; one below -0.3 looks like a negative."""


def examine(config: DataConfig, progress: Progress, *, pixel_cache: bool = True) -> Audit:
    """Examine the images of ``config.data``. Broken files are listed and not an error.

    Args:
        config: The images, and a split file to examine with them; ``skip_broken`` is on in any case.
        progress: Shows what is read.
        pixel_cache: Keep thumbnails in the cache folder and read them from there.

    Raises:
        TwinbudError: The source or the split cannot be read, or no image can.
    """
    listed = read_index(config, to_train=False, progress=progress)
    if config.split is not None:
        listed = with_split_file(listed, config.split)
    cache = PixelCache(cache_folder() / "pixels", THUMBNAIL_SIZE) if pixel_cache else None
    with progress.bar("reading images", len(listed.rows)) as advance:
        image_index, image_store = load_image_store(
            listed,
            image_size=THUMBNAIL_SIZE,
            max_megapixels=config.max_megapixels,
            skip_broken=True,
            cache=cache,
            on_progress=advance,
        )
    thumbnails = gray_thumbnails(image_store)
    progress.note("looking for near-duplicates")
    near = find_near_duplicates(thumbnails, image_store.digests)
    groups = find_groups(
        image_index.rows,
        image_store.digests,
        blank=blank_digests(image_store),
        keep_duplicates_together=True,
        near_pairs=[(pair.first, pair.second) for pair in near],
    )
    pairs = tuple(
        Pair(kind="near-duplicate", first=p.first, second=p.second, correlation=p.correlation, mirrored=p.mirrored)
        for p in near
    )
    labels = [row.label for row in image_index.rows]
    facts = _facts(image_index.rows)
    text = find_text(image_index.rows, facts, groups.numbers, max_megapixels=config.max_megapixels, progress=progress)
    progress.note("measuring what predicts the class")
    probes = [border_probe(thumbnails, labels, groups.numbers), *metadata_probes(facts, labels, groups.numbers)]
    return Audit(
        source=image_index.source,
        rows=image_index.rows,
        classes=image_index.classes,
        counts=_counts(image_index.rows, facts),
        left_out=tuple(image_index.ignored),
        identical=groups.copies,
        near_duplicates=tuple(sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))),
        num_near_groups=_num_groups(groups),
        leaks=_leaks(image_index, groups, pairs),
        patients_in_two_parts=_patients_in_two_parts(image_index.rows),
        contradictions=_contradictions(image_index.rows, groups, pairs),
        inverted=inverted_images(thumbnails),
        probes=corrected(probes),
        text=text,
        has_split=image_index.has_splits,
        notes=image_index.notes,
    )


def inverted_images(thumbnails: np.ndarray) -> tuple[int, ...] | None:
    """Return the images that look like the negative of the others.

    Args:
        thumbnails: (N, S, S) uint8.

    Returns:
        Their indices; None if the images have too little in common to tell.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    mean = flat.mean(0)
    likeness = flat @ (mean / max(float(np.linalg.norm(mean)), 1e-6))
    if np.median(likeness) < _ALIKE:
        return None
    return tuple(np.flatnonzero(likeness < _INVERTED).tolist())


def _facts(rows: Sequence[ImageRow]) -> list[FileFacts]:
    known: dict[Path, FileFacts] = {}
    for row in rows:
        if row.image.file not in known:
            known[row.image.file] = read_facts(row.image.file)
    return [known[row.image.file] for row in rows]


def _counts(rows: Sequence[ImageRow], facts: Sequence[FileFacts]) -> dict[str, dict[str, int]]:
    values: dict[str, list[str]] = {
        "class": [row.label for row in rows],
        "split": [row.split or UNKNOWN for row in rows],
        "size": [fact.size for fact in facts],
    }
    for name in ("mode", "format", "compression", "modality", "manufacturer"):
        values[name] = [getattr(fact, name) for fact in facts]
    return {name: dict(Counter(of).most_common()) for name, of in values.items() if set(of) != {UNKNOWN}}


def _num_groups(groups: Groups) -> int:
    numbers = connected_pairs(len(groups.rows), groups.near_pairs)
    return len({int(numbers[index]) for pair in groups.near_pairs for index in pair})


def _leaks(image_index: ImageIndex, groups: Groups, near: Sequence[Pair]) -> tuple[Pair, ...]:
    if not image_index.has_splits:
        return ()
    known = {(pair.first, pair.second): pair for pair in near}
    return tuple(
        known.get(pair) or Pair(kind="identical", first=pair[0], second=pair[1])
        for pair in leaking_pairs(image_index.rows, groups)
    )


def _patients_in_two_parts(rows: Sequence[ImageRow]) -> int:
    parts: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        if (key := patient_key(row.patient_id)) is not None:
            parts[key].add(row.split)
    return sum(len(of_patient) > 1 for of_patient in parts.values())


def _contradictions(rows: Sequence[ImageRow], groups: Groups, near: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return the pairs of the same picture with different labels; of identical images, one pair for each two labels."""
    found = []
    for copies in groups.copies:
        first_of = {rows[index].label: index for index in reversed(copies)}
        for first, second in combinations(sorted(first_of.values()), 2):
            found.append(Pair(kind="identical", first=first, second=second))
    return (*found, *(pair for pair in near if rows[pair.first].label != rows[pair.second].label))
