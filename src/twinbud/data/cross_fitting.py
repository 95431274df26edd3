"""Folds of the labelled images: a model that has not learned from an image can say how sure models may be of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from twinbud.config.schema import Fold
from twinbud.core.errors import TwinbudError
from twinbud.core.rng import stream_seed
from twinbud.data.duplicates import find_groups
from twinbud.data.folds import split_folds
from twinbud.data.index import ImageIndex
from twinbud.data.split import Split


def take_fold(
    split: Split,
    image_index: ImageIndex,
    digests: Sequence[str],
    *,
    blank: Collection[str],
    fold: Fold,
    split_seed: int,
) -> Split:
    """Return the split of the run that trains without one fold of the labelled images, and is measured on it.

    Test and validation parts are held out. So are images without label of which the fold has a copy, or the patient.

    Args:
        split: That of the run itself.
        image_index: The images.
        digests: For each row, the SHA-256 of its pixels.
        blank: Digests of blank images, which keep nothing together.
        fold: The fold to measure on.
        split_seed: Seed of the folds.

    Raises:
        TwinbudError: See ``assign_folds``.
    """
    groups = find_groups(
        image_index.rows, digests, blank=blank, keep_duplicates_together=True, near_pairs=split.near_pairs
    ).numbers
    labelled = np.asarray(split.labelled)
    # the labels of several findings an image are too many to stratify by
    names = ["" if image_index.task == "multi-label" else image_index.rows[row].label for row in split.labelled]
    folds = assign_folds(np.asarray(names), groups[labelled], fold.count, split_seed)
    measured = set(labelled[folds == fold.number].tolist())
    mates = set(groups[sorted(measured)].tolist())
    hidden = {row for row in split.train if groups[row] in mates} - measured
    return replace(
        split,
        train=tuple(row for row in split.train if row not in measured | hidden),
        val=(),
        test=tuple(sorted(measured)),
        held_out=tuple(sorted({*split.val, *split.test, *split.held_out, *hidden})),
        labelled=tuple(row for row in split.labelled if row not in measured),
        notes=(*split.notes, f"measured on fold {fold.number} of {fold.count} of the labelled images"),
    )


def assign_folds(labels: np.ndarray, groups: np.ndarray, count: int, split_seed: int) -> np.ndarray:
    """Divide images into stratified folds of whole groups.

    Args:
        labels: (N,) class names.
        groups: (N,) int.
        count: Number of folds, at least 2.
        split_seed: Seed of the shuffle.

    Returns:
        (N,) int from 1 to ``count``; 0 for a group that every fold learns from, because without it some fold
        would have to learn without its class.

    Raises:
        TwinbudError: No class has as many groups as there are folds.
    """
    most = max(len(set(groups[labels == name].tolist())) for name in set(labels.tolist()))
    if most < count:
        problem = f"{count} folds, but no class has labelled images of more than {most} patients or pictures"
        fix = f"Give at most {most}, or label more images" if most > 1 else "Label more images"
        raise TwinbudError(problem, where="--folds", fix=fix)
    numbers = np.zeros(len(labels), dtype=np.int64)
    for number, chosen in enumerate(
        split_folds(labels, groups, count, stream_seed("trust", split_seed, "folds")), start=1
    ):
        numbers[chosen] = number
    for name in sorted(set(labels.tolist())):
        of_class = labels == name
        if len(set(numbers[of_class].tolist()) - {0}) == 1 and not (numbers[of_class] == 0).any():
            sizes = {group: int((groups == group).sum()) for group in groups[of_class].tolist()}
            smallest = min(sizes, key=lambda group: (sizes[group], group))
            numbers[groups == smallest] = 0
    return numbers
