"""Which images train and which test: stratified, patient-disjoint, duplicate-disjoint, reproducible.

A split comes from a file, from the data, or from folds.py (80/20), in this order. The images of a patient, and images
of identical pixels, are never torn apart by twinbud; what a given split tears is counted and said.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from twinbud.config.schema import DataConfig, Recover
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import write_text
from twinbud.core.rng import numpy_stream
from twinbud.data.csv_source import read_cells, split_word
from twinbud.data.folds import choose_test_part, connected_groups
from twinbud.data.index import SPLIT_NAMES, ImageIndex, ImageRow, SplitName, check_given_split

Parts = dict[SplitName, tuple[int, ...]]
"""Ascending row indices of train, val and test."""

SPLIT_COLUMNS = ("image_path", "label", "patient_id", "split", "labelled", "pixels_sha256")
"""Columns of split.csv; `labelled` is 1 for the training images whose labels were used."""

NO_PATIENTS = "no patient column: split by image, figures may be optimistic"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Ascending indices into the rows of a catalog, and what the report must say of them."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    """Reported, never trained on; only a given split has it."""
    test: tuple[int, ...]
    closed: tuple[int, ...]
    """The test part that nobody looks at while settings are being chosen (`develop`); else empty."""
    labelled: tuple[int, ...]
    """The part of `train` whose labels are used (`fraction`)."""
    duplicate_groups: int
    """Sets of images with identical decoded pixels."""
    duplicate_images: int
    """Copies beyond the first of each set."""
    conflicting_groups: int
    """Sets of identical images that carry different labels."""
    by_patient: bool
    """Whether no patient is in two parts."""
    given: bool
    """Whether the split came with the data or from a file."""
    notes: tuple[str, ...]
    """Plain sentences for the report."""

    def seen_by(self, recover: Recover) -> tuple[int, ...]:
        """The images that a run learns from, with their labels or, in recovery, without."""
        return self.train if recover == "unlabelled" else self.labelled


@dataclass(frozen=True, kw_only=True)
class SplitRow:
    """One row of a split.csv."""

    image_path: str
    label: str
    patient_id: str | None
    split: SplitName | Literal["closed"]
    labelled: bool
    digest: str | None = None
    """SHA-256 of the image's decoded pixels, where the file has it."""


def make_split(image_index: ImageIndex, digests: Sequence[str], config: DataConfig, *, seed: int) -> Split:
    """Divide a catalog into train and test, and choose the labelled part of train.

    The split depends on `config.split_seed` and the sorted paths alone; `seed` chooses the labelled part only.

    Args:
        image_index: The images.
        digests: For each row, the name of its pixels (`Pixels.digests`).
        config: `split` (a file) wins over a split in the data, which wins over 80/20.
        seed: Of the labelled part.

    Raises:
        TwinbudError: A split file that does not fit the data, a class that cannot be on both sides, or a plain
            subset with fewer than two classes.
    """
    groups = _groups(image_index.rows, digests, keep_duplicates_together=not config.split_duplicates)
    if config.split is not None:
        image_index = _with_split_file(image_index, config.split)
    if image_index.has_splits:
        check_given_split(image_index.rows, f"--split {config.split}" if config.split else image_index.source)
        parts, notes = _given_parts(image_index, groups, config.split_seed)
    else:
        parts, notes = _divide(image_index, groups, range(len(image_index.rows)), config.split_seed), []
    closed: tuple[int, ...] = ()
    if config.develop:
        closed, val = parts["test"], parts["val"]
        way_out = "leave out --develop, which divides the training part once more"
        parts = _divide(image_index, groups, parts["train"], config.split_seed, way_out=way_out)
        parts["val"] = val
        notes.append(
            f"developing: measured on a fifth of the training part; the test part ({len(closed)}) stays closed"
        )
    copies = [indices for indices in _by(digests).values() if len(indices) > 1]
    conflicting = sum(len({image_index.rows[index].label for index in indices}) > 1 for indices in copies)
    notes = [
        *_patient_notes(image_index),
        *notes,
        *_duplicate_notes(copies, parts, conflicting, together=not config.split_duplicates),
    ]
    return Split(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        closed=closed,
        labelled=_labelled(image_index, parts["train"], config, seed),
        duplicate_groups=len(copies),
        duplicate_images=sum(len(indices) - 1 for indices in copies),
        conflicting_groups=conflicting,
        by_patient=image_index.has_patients,
        given=image_index.has_splits,
        notes=tuple(notes),
    )


def check_split_file(image_index: ImageIndex, config: DataConfig) -> None:
    """Refuse, before anything is decoded, a `config.split` that will not do.

    Raises:
        TwinbudError: It cannot be read, or does not fit the data; the latter is known now unless images may yet be
            left out as broken.
    """
    if config.split is None:
        return
    if config.skip_broken:
        read_split(config.split)
    else:
        _with_split_file(image_index, config.split)


def fingerprint(image_index: ImageIndex, digests: Sequence[str], split: Split) -> str:
    """A SHA-256 of the images in their order, their labels and what each is used for; paths do not count."""
    use = dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, "val") | dict.fromkeys(split.test, "test")
    use |= dict.fromkeys(split.closed, "closed") | dict.fromkeys(split.labelled, "labelled")
    lines = [f"{digests[i]} {row.label} {use[i]}" for i, row in enumerate(image_index.rows)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_split(path: Path, image_index: ImageIndex, split: Split, digests: Sequence[str]) -> None:
    """Save a split as a CSV with the columns of SPLIT_COLUMNS, one image a row, by path."""
    parts = {"train": split.train, "val": split.val, "test": split.test, "closed": split.closed}
    part_of = {index: name for name, indices in parts.items() for index in indices}
    labelled = set(split.labelled)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    for index, row in enumerate(image_index.rows):
        use = (part_of[index], int(index in labelled))
        writer.writerow((row.path, row.label, row.patient_id or "", *use, digests[index]))
    write_text(path, text.getvalue())


def read_split(path: Path) -> tuple[SplitRow, ...]:
    """Read a split.csv; `patient_id`, `labelled` and `pixels_sha256` may be absent from it.

    Raises:
        TwinbudError: No such file, missing columns, an unknown or blank split, or a path twice.
    """
    rows: dict[str, SplitRow] = {}
    for line, cells in read_cells(path, ("image_path", "label", "split"), rename="Give the split.csv of a run"):
        where = f"{path}, row {line}"
        name = cells["image_path"]
        word = cells["split"]
        split = "closed" if word == "closed" else split_word(word, f"{where}, 'split'")
        if split is None:
            raise TwinbudError("train, val or test", got="a blank", where=f"{where}, 'split'", fix="Fill it in")
        if name in rows:
            raise TwinbudError("each image once", got=f"'{name}' again", where=where, fix="Drop one of the rows")
        rows[name] = SplitRow(
            image_path=name,
            label=cells["label"],
            patient_id=cells.get("patient_id") or None,
            split=split,
            labelled=cells.get("labelled") == "1",
            digest=cells.get("pixels_sha256") or None,
        )
    return tuple(rows.values())


def _by(keys: Iterable[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return places


def _groups(rows: Sequence[ImageRow], digests: Sequence[str], *, keep_duplicates_together: bool) -> np.ndarray:
    """(N,) int: the images that must not be torn apart share a patient or their pixels, or both in a chain."""
    patients = [f"patient {row.patient_id}" if row.patient_id else f"row {i}" for i, row in enumerate(rows)]
    return connected_groups(patients, digests) if keep_duplicates_together else connected_groups(patients)


def _divide(
    image_index: ImageIndex, groups: np.ndarray, indices: Sequence[int], split_seed: int, *, way_out: str = ""
) -> Parts:
    """Divide some rows 80/20, each class on both sides and no group on both; ``way_out`` ends the error's advice."""
    chosen = np.asarray(indices)
    labels = np.array([image_index.rows[index].label for index in indices])
    in_test = choose_test_part(labels, groups[chosen], split_seed)
    for name in sorted(set(labels)):
        of_class = labels == name
        if in_test[of_class].all() or not in_test[of_class].any():
            raise TwinbudError(
                "images of each class on both sides, no patient and no duplicate on both",
                got=f"the {of_class.sum()} images of '{name}' in {len(set(groups[chosen][of_class]))} patient(s) or "
                "set(s) of identical images, which cannot be divided so",
                where=image_index.source,
                fix=f"Add images of other patients, leave the class out, or {way_out or 'give a split of your own'}",
            )
    return {"train": tuple(chosen[~in_test].tolist()), "val": (), "test": tuple(chosen[in_test].tolist())}


def _with_split_file(image_index: ImageIndex, path: Path) -> ImageIndex:
    """The catalog with the parts that a split.csv gives its rows, matched by path."""
    given: dict[str, SplitName] = {}
    for row in read_split(path):
        if row.split == "closed":
            raise TwinbudError(
                "train, val or test for every image",
                got="'closed', from a run with --develop",
                where=f"--split {path}",
                fix="Give the split.csv of a run without it, and --develop again if need be",
            )
        given[row.image_path] = row.split
    known = {row.path for row in image_index.rows}
    absent = [name for name in given if name not in known]
    extra = [row.path for row in image_index.rows if row.path not in given]
    if absent or extra:
        got = f"{len(absent)} that the data lacks ({first_few(absent, 3)})" if absent else ""
        got += " and " if absent and extra else ""
        got += f"{len(extra)} in the data that it lacks ({first_few(extra, 3)})" if extra else ""
        raise TwinbudError(
            f"the paths of {image_index.source}",
            got=got,
            where=f"--split {path}",
            fix="Give the split of the same data, or leave --split out",
        )
    return replace(image_index, rows=tuple(replace(row, split=given[row.path]) for row in image_index.rows))


def _given_parts(image_index: ImageIndex, groups: np.ndarray, split_seed: int) -> tuple[Parts, list[str]]:
    rows = image_index.rows
    parts: Parts = {name: tuple(index for index, row in enumerate(rows) if row.split == name) for name in SPLIT_NAMES}
    if not parts["test"]:
        note = "the given split has no test part: a fifth of its train part became one"
        return {**_divide(image_index, groups, parts["train"], split_seed), "val": parts["val"]}, [note]
    notes = ["the split is the one given"]
    absent = sorted({rows[index].label for index in parts["train"]} - {rows[index].label for index in parts["test"]})
    if absent:
        notes.append(f"the given test part has no image of {first_few(absent)}")
    return parts, notes


def _patient_notes(image_index: ImageIndex) -> list[str]:
    if not image_index.has_patients:
        return [NO_PATIENTS]
    patients = {row.patient_id for row in image_index.rows if row.patient_id is not None}
    unknown = sum(row.patient_id is None for row in image_index.rows)
    notes = [f"split by patient: no patient is in two parts ({_count(len(patients), 'patient')})"]
    if unknown:
        notes.append(f"no patient is known of {_count(unknown, 'image')}: each was taken for a patient of its own")
    return notes


def _duplicate_notes(copies: list[list[int]], parts: Parts, conflicting: int, *, together: bool) -> list[str]:
    part_of = {index: name for name, indices in parts.items() for index in indices}
    torn = sum(len({part_of.get(index, "closed") for index in indices}) > 1 for indices in copies)
    extra = sum(len(indices) - 1 for indices in copies)
    if not copies:
        return ["0 groups of identical images found"]
    where = "each group is in one part only"
    if torn:
        reason = "as the given split has it" if together else "as the plain random split was asked for"
        where = f"{torn} of them in more than one part, {reason}"
    notes = [f"{_count(len(copies), 'group')} of identical images found ({_count(extra, 'extra copy')}): {where}"]
    if conflicting:
        notes.append(f"{_count(conflicting, 'group')} of identical images with different labels")
    return notes


def _count(number: int, noun: str) -> str:
    plural = {"group": "groups", "extra copy": "extra copies", "patient": "patients", "image": "images"}
    return f"{number} {noun if number == 1 else plural[noun]}"


def _labelled(image_index: ImageIndex, train: tuple[int, ...], config: DataConfig, seed: int) -> tuple[int, ...]:
    """The first images of one permutation a class (or of one in all), so that smaller fractions are nested."""
    by_class = _by(image_index.rows[index].label for index in train)
    pools = {(name,): places for name, places in by_class.items()}
    if config.subset == "plain":
        pools = {(): list(range(len(train)))}
    chosen: list[int] = []
    for counters, places in pools.items():
        count = max(1, round(config.fraction * len(places)))
        order = numpy_stream("subset", seed, *counters).permutation(len(places))
        chosen += [train[places[place]] for place in order[:count]]
    classes = {image_index.rows[index].label for index in chosen}
    if len(classes) < 2:
        raise TwinbudError(
            "labelled images of at least two classes",
            got=f"{len(chosen)} of {first_few(sorted(classes))} only",
            where=f"--fraction {config.fraction:g} --subset {config.subset} --seed {seed}",
            fix="Give a larger --fraction, or --subset stratified",
        )
    return tuple(sorted(chosen))
