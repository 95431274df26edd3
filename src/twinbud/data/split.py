"""Divide the images into train and test: stratified by class, reproducible, no patient and no image in two parts.

A split comes from a file, from the data, or from folds.py (80/20), in this order. Twinbud never divides the images of
a patient or a set of identical images (``twinbud.data.duplicates``); if a given split does so, the notes say it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from twinbud.config.data_config import DataConfig
from twinbud.config.recovery import Recover
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.rng import numpy_stream
from twinbud.data.duplicates import Groups, find_groups
from twinbud.data.folds import choose_test_part, members_of
from twinbud.data.identity import visible_text
from twinbud.data.index import SPLIT_NAMES, ImageIndex, SplitName, check_given_split
from twinbud.data.split_file import PartName, SplitRow, read_split, with_split_file
from twinbud.data.split_leaks import refuse_leak
from twinbud.data.split_notes import connection_notes, duplicate_notes, near_duplicate_notes, patient_notes

Parts = dict[SplitName, tuple[int, ...]]
"""Ascending row indices of train, val and test."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which rows of an index train, validate and test: ascending indices.

    Attributes:
        train: The training part.
        val: Reported, never trained on; only a given split has it.
        test: What the model is measured on.
        held_out: With ``develop``, the test part, which is not used while settings are chosen; else empty.
        labelled: The part of ``train`` whose labels are used (``fraction``).
        by_patient: Whether patients are known, so that none is in two parts.
        given: Whether the split came with the data or from a file.
        notes: Plain sentences for the report.
        near_pairs: Pairs of near-duplicates that were kept on one side.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    held_out: tuple[int, ...]
    labelled: tuple[int, ...]
    by_patient: bool
    given: bool
    notes: tuple[str, ...]
    near_pairs: tuple[tuple[int, int], ...] = ()

    def seen_by(self, recover: Recover) -> tuple[int, ...]:
        """Return the images that a run learns from, with their labels or, in recovery, without."""
        return self.train if recover == "unlabelled" else self.labelled

    def rows(self, image_index: ImageIndex, digests: Sequence[str]) -> list[SplitRow]:
        """Return the rows of ``split.csv``: one an image of the index, with the SHA-256 of its pixels."""
        parts: dict[PartName, tuple[int, ...]] = {
            "train": self.train,
            "val": self.val,
            "test": self.test,
            "held-out": self.held_out,
        }
        part_of: dict[int, PartName] = {index: name for name, indices in parts.items() for index in indices}
        labelled = set(self.labelled)
        return [
            SplitRow(
                image_path=row.path,
                label=row.label,
                patient_id=row.patient_id,
                split=part_of[index],
                labelled=index in labelled,
                digest=digests[index],
            )
            for index, row in enumerate(image_index.rows)
        ]


def make_split(
    image_index: ImageIndex,
    digests: Sequence[str],
    config: DataConfig,
    *,
    seed: int,
    blank: Collection[str] = (),
    near_pairs: Sequence[tuple[int, int]] = (),
) -> Split:
    """Divide an index into train and test, and choose the labelled part of train.

    The split depends on ``config.split_seed`` and the sorted paths alone; ``seed`` chooses the labelled part only.

    Args:
        image_index: The images.
        digests: For each row, the SHA-256 of its pixels (``ImageStore.digests``).
        config: ``split`` (a file) takes precedence over a split in the data, which takes precedence over 80/20.
        seed: Seed of the labelled part.
        blank: Digests of blank images, which keep nothing together (``blank_digests``).
        near_pairs: Pairs of near-duplicates, where ``config.groups_near_duplicates``.

    Raises:
        TwinbudError: A split file that does not fit the data, a given split with near-duplicates or identical images
            in two parts where ``config.groups_near_duplicates``, a class that cannot be on both sides, or a plain
            subset with fewer than two classes.
    """
    together = not config.split_duplicates
    near_pairs = near_pairs if config.groups_near_duplicates else ()
    groups = find_groups(
        image_index.rows, digests, blank=blank, keep_duplicates_together=together, near_pairs=near_pairs
    )
    if config.split is not None:
        image_index = with_split_file(image_index, config.split)
    if image_index.has_splits:
        where = f"--split {config.split}" if config.split else image_index.source
        way_out = "leave out --split" if config.split else "remove the split column or the split folders"
        check_given_split(image_index.rows, where, way_out=way_out)
        if config.groups_near_duplicates:
            refuse_leak(image_index.rows, groups, where)
        parts, notes = _given_parts(image_index, groups, config.split_seed)
    else:
        parts, notes = _divide(image_index, groups, range(len(image_index.rows)), config.split_seed), []
    held_out: tuple[int, ...] = ()
    if config.develop:
        held_out, val = parts["test"], parts["val"]
        way_out = "leave out --develop, which divides the training part once more"
        parts = _divide(image_index, groups, parts["train"], config.split_seed, way_out=way_out)
        parts["val"] = val
        notes.append(
            f"developing: measured on a fifth of the training part; the test part ({len(held_out)}) is held out"
        )
    notes = [
        *image_index.notes,
        *patient_notes(image_index),
        *notes,
        *duplicate_notes(groups, parts, together=together),
        *(near_duplicate_notes(groups) if config.groups_near_duplicates else ()),
    ]
    if together and not image_index.has_splits:
        notes += connection_notes(groups)
    return Split(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        held_out=held_out,
        labelled=_labelled(image_index, parts["train"], config, seed),
        by_patient=image_index.has_patients,
        given=image_index.has_splits,
        notes=tuple(notes),
        near_pairs=tuple(near_pairs),
    )


def check_split_file(image_index: ImageIndex, config: DataConfig) -> None:
    """Check ``config.split`` before anything is decoded.

    With ``skip_broken`` it is only read: images may yet be left out, so whether it fits is not known.

    Raises:
        TwinbudError: The file cannot be read, or does not fit the data.
    """
    if config.split is None:
        return
    if config.skip_broken:
        read_split(config.split)
    else:
        with_split_file(image_index, config.split)


def fingerprint(image_index: ImageIndex, digests: Sequence[str], split: Split) -> str:
    """Return a SHA-256 of the class order, and of each image's pixels, label and use in order, without paths."""
    use = dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, "val") | dict.fromkeys(split.test, "test")
    use |= dict.fromkeys(split.held_out, "held-out") | dict.fromkeys(split.labelled, "labelled")
    lines = [f"{digests[i]} {row.label} {use[i]}" for i, row in enumerate(image_index.rows)]
    return hashlib.sha256("\n".join([*image_index.classes, *lines]).encode()).hexdigest()


def _divide(
    image_index: ImageIndex, groups: Groups, indices: Sequence[int], split_seed: int, *, way_out: str = ""
) -> Parts:
    """Divide some rows 80/20, each class on both sides and no group on both; ``way_out`` ends the error's advice."""
    chosen = np.asarray(indices)
    rows = [image_index.rows[index] for index in indices]
    labels, several = np.array([row.label for row in rows]), None
    if image_index.task == "multi-label":
        several = {name: np.array([name in row.shown for row in rows]) for name in image_index.classes}
        several = {name: of_label for name, of_label in several.items() if of_label.any()}
    in_test = choose_test_part(labels, groups.numbers[chosen], split_seed, members=several)
    for name, of_class in (several or members_of(labels)).items():
        if in_test[of_class].all() or not in_test[of_class].any():
            problem, fix = _why_indivisible(groups, chosen[of_class].tolist(), name)
            raise TwinbudError(problem, where=image_index.source, fix=f"{fix}, or {way_out}" if way_out else fix)
    return {"train": tuple(chosen[~in_test].tolist()), "val": (), "test": tuple(chosen[in_test].tolist())}


def _why_indivisible(groups: Groups, indices: Sequence[int], name: str) -> tuple[str, str]:
    """Return why the images of a class cannot be on both sides, and what to do."""
    images = f"the {len(indices)} images of class {visible_text(name)}"
    if len({groups.patients[index] for index in indices}) == 1:
        if len(indices) == 1:
            return f"class {visible_text(name)} has one image, which cannot both train and test", "Add images"
        patient = visible_text(groups.rows[indices[0]].patient_id or "")
        return (
            f"{images} are all of patient {patient}, who cannot be in both train and test",
            "Add images of other patients, leave the class out, or give a split that has the class in train only",
        )
    if len({groups.numbers[index] for index in indices}) == 1 and (copies := groups.connecting_copies(indices)):
        return (
            f"{images} cannot be divided, because they are connected by {groups.describe(copies)}",
            "If that image says nothing about a patient (a logo, a localizer), leave its copies out or add "
            "--split-duplicates; else add images of other patients",
        )
    return (
        f"{images} cannot be in both train and test without dividing a patient or a set of identical images",
        "Add images of other patients, leave the class out, or give a split that has the class in train only",
    )


def _given_parts(image_index: ImageIndex, groups: Groups, split_seed: int) -> tuple[Parts, list[str]]:
    rows = image_index.rows
    parts: Parts = {name: tuple(index for index, row in enumerate(rows) if row.split == name) for name in SPLIT_NAMES}
    if not parts["test"]:
        note = "the given split has no test part: a fifth of its train part became one"
        return {**_divide(image_index, groups, parts["train"], split_seed), "val": parts["val"]}, [note]
    notes = ["the split is the one given"]
    trained, tested = ({name for index in parts[part] for name in rows[index].shown} for part in ("train", "test"))
    absent = sorted(trained - tested)
    if absent:
        notes.append(f"the given test part has no image of {first_few(absent)}")
    return parts, notes


def _labelled(image_index: ImageIndex, train: tuple[int, ...], config: DataConfig, seed: int) -> tuple[int, ...]:
    """Return the first images of one permutation a class (or of one in all): smaller fractions are nested.

    Of several labels an image, the first image of each label in one permutation comes before all others.
    """
    rows = image_index.rows
    pools = {(name,): places for name, places in _by(rows[index].label for index in train).items()}
    covers = config.subset == "stratified" and image_index.task == "multi-label"
    if config.subset == "plain" or covers:
        pools = {(): list(range(len(train)))}
    chosen: list[int] = []
    for counters, places in pools.items():
        count = max(1, round(config.fraction * len(places)))
        order = numpy_stream("subset", seed, *counters).permutation(len(places))
        if covers:
            first = {name: place for place in order[::-1].tolist() for name in rows[train[places[place]]].shown}
            order = list(dict.fromkeys([*sorted(set(first.values()), key=order.tolist().index), *order.tolist()]))
            count = max(count, len(set(first.values())))
        chosen += [train[places[place]] for place in order[:count]]
    classes = sorted({name for index in chosen for name in rows[index].shown})
    if len(classes) < 2:
        raise TwinbudError(
            f"the labelled images ({len(chosen)}) are all of class {first_few(map(visible_text, classes))}; training "
            "needs two classes",
            where=f"--fraction {config.fraction:g} --subset {config.subset} --seed {seed}",
            fix="Give a larger --fraction, or --subset stratified",
        )
    return tuple(sorted(chosen))


def _by(keys: Iterable[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return places
