"""The images of a source with labels and patients, and the checks that training requires of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from twinbud.config.reading import Plane
from twinbud.config.task import TaskName
from twinbud.core.csv_files import write_csv
from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.identity import MISSING_VALUES, comparison_key, patient_key, respellings, visible_text

SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)

SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Accepted names of split folders and words of a split column; case does not count."""

LAYOUTS = "FOLDER/CLASS/image.png, FOLDER/train/CLASS/image.png with FOLDER/test/CLASS/image.png, or a CSV"
REARRANGE = f"Arrange the images as {LAYOUTS}, and give the outermost folder"


@dataclass(frozen=True, slots=True)  # a set may have millions of these, and of the rows below
class ImageRef:
    """Names the pixels of one image: a file, a frame of it and the window to read it with.

    Attributes:
        file: Path of the file.
        frame: Index of the frame, counted from 0; None for a file that holds a single frame.
        window: The intensity window as ``config.reading`` spells it; None for the format's default.
        plane: Which slices of a volume ``frame`` counts.
    """

    file: Path
    frame: int | None = None
    window: str | None = None
    plane: Plane = Plane()


def frame_name(path: str, frame: int | None) -> str:
    """Return how outputs name a frame of a file; ``split_frame_name`` is the inverse.

    >>> frame_name("scan.dcm", 12), frame_name("x-ray.dcm", None)
    ('scan.dcm[12]', 'x-ray.dcm')
    """
    return path if frame is None else f"{path}[{frame}]"


def split_frame_name(name: str) -> tuple[str, int | None]:
    """Return the path and the frame that ``frame_name`` joined; a name without a frame is the path.

    >>> split_frame_name("scan.dcm[12]")
    ('scan.dcm', 12)
    """
    match = _FRAME_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


_FRAME_NAME = re.compile(r"(.+)\[(0|[1-9][0-9]{0,8})\]", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One labelled image.

    Attributes:
        path: As it is reported: relative to the source folder, with ``/``; or as the CSV writes it. A frame of a file
            of several has its number behind it (``frame_name``).
        image: Which pixels to read.
        label: Name of the class; of several labels, their text (``data.findings``).
        patient_id: As the source writes it; None where the patient is not known. Compare ids by ``patient_key``.
        split: The part that the source gives the image, if it gives one.
        row_number: Row of the CSV, as a spreadsheet numbers it; None for an image of a folder.
        findings: Of several labels, those that the image shows; None for one class an image.
    """

    path: str
    image: ImageRef
    label: str
    patient_id: str | None = None
    split: SplitName | None = None
    row_number: int | None = None
    findings: tuple[str, ...] | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes that the image shows: one, or any number of several labels."""
        return (self.label,) if self.findings is None else self.findings

    @property
    def place(self) -> str:
        """The place where a user finds the row: ``row 7`` of a CSV, or the path."""
        return visible_text(self.path) if self.row_number is None else f"row {self.row_number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class IgnoredFile:
    """A file that was found and not used."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """All images of one source, sorted by path, so that the order of files on the disk has no effect.

    Attributes:
        source: Folder or CSV, as errors name it.
        rows: One row an image.
        classes: In the order of ``twinbud.data.identity.sort_classes``, which is timm's, or as the user gives it.
        ignored: Files that were found and not used.
        to_train: Whether each class needs an image in the training and in the test part.
        notes: Sentences about the source for the report.
        task: What is asked of the images.
    """

    source: str
    rows: tuple[ImageRow, ...]
    classes: tuple[str, ...]
    ignored: tuple[IgnoredFile, ...] = ()
    to_train: bool = True
    notes: tuple[str, ...] = ()
    task: TaskName = "single"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=_place_in_order)))

    @property
    def has_patients(self) -> bool:
        """Whether the patient of any image is known."""
        return any(row.patient_id is not None for row in self.rows)

    @property
    def has_splits(self) -> bool:
        """Whether the source itself gives images to train, val and test."""
        return any(row.split is not None for row in self.rows)

    def without(self, left_out: Mapping[int, str]) -> ImageIndex:
        """Return the index without some rows, which join ``ignored``.

        Args:
            left_out: For each of these indices into ``rows``, the reason.

        Raises:
            TwinbudError: A class is left with fewer images than training needs.
        """
        kept = [row for index, row in enumerate(self.rows) if index not in left_out]
        dropped = [IgnoredFile(path=self.rows[index].path, reason=why) for index, why in sorted(left_out.items())]
        if self.to_train:
            check_classes(kept, self.source, classes=self.classes)
        return replace(self, rows=tuple(kept), ignored=(*self.ignored, *dropped))


def _place_in_order(row: ImageRow) -> tuple[str, int]:
    """Sort by path, and the frames of a file by number."""
    if row.image.frame is None:
        return row.path, -1
    return row.path.removesuffix(frame_name("", row.image.frame)), row.image.frame


def check_classes(rows: Iterable[ImageRow], source: str, *, classes: Iterable[str] = ()) -> None:
    """Check that the labels of a source can be trained on.

    Args:
        rows: The images.
        source: Folder or CSV, for the error.
        classes: Classes that must have images, beside those of the rows.

    Raises:
        TwinbudError: Labels that differ only in spelling, a label that stands for a missing value, fewer than two
            classes, or a class with fewer than two images.
    """
    by_label: dict[str, list[ImageRow]] = {name: [] for name in classes}
    for row in rows:
        for name in row.shown:
            by_label.setdefault(name, []).append(row)
    _check_spelling(by_label, source)
    if len(by_label) < 2:
        only = f"all images are of one class, {visible_text(next(iter(by_label)))}" if by_label else "there is no image"
        is_csv = any(row.row_number for of in by_label.values() for row in of)
        fix = "Add images of a second class, or name the column with the classes: --label-column"
        problem = f"{only}; training needs at least two classes"
        raise TwinbudError(problem, where=source, fix=fix if is_csv else REARRANGE)
    if small := [f"{visible_text(name)} has {len(of)}" for name, of in sorted(by_label.items()) if len(of) < 2]:
        raise TwinbudError(
            f"every class needs at least two images, one to train on and one to test on: {first_few(small)}",
            where=source,
            fix="Add images, or take the class out",
        )


def _check_spelling(by_label: Mapping[str, Sequence[ImageRow]], source: str) -> None:
    for group in respellings(by_label):
        named = (f"{visible_text(label)} ({_places(by_label[label])})" for label in group)
        usual = max(group, key=lambda label: (len(by_label[label]), -len(visible_text(label)), label))
        raise TwinbudError(
            f"labels differ only in spelling: {first_few(named)}",
            where=source,
            fix=f"Write {visible_text(usual)} for all of them, or give different classes different names",
        )
    if missing := sorted(set(by_label) & MISSING_VALUES):
        named = (f"{visible_text(label)} ({_places(by_label[label])})" for label in missing)
        raise TwinbudError(
            f"labels that stand for a missing value: {first_few(named)}",
            where=source,
            fix="Fill in the labels or drop the images; rename a class of that name, for example to 'no finding'",
        )


def _places(rows: Sequence[ImageRow]) -> str:
    """Return ``rows 2, 5 and 7 more``, or the first paths."""
    numbers = [row.row_number for row in rows if row.row_number is not None]
    if len(numbers) == len(rows) > 1:
        return f"rows {first_few(sorted(numbers), 3)}"
    return first_few((row.place for row in rows), 1)


Item = TypeVar("Item")


def evenly(items: Sequence[Item], limit: int) -> tuple[Item, ...]:
    """Return at most ``limit`` of the items, at equal distances: of sorted images, from every class.

    >>> evenly("abcdefg", 3)
    ('a', 'c', 'e')
    """
    count = min(limit, len(items))
    return tuple(items[place * len(items) // count] for place in range(count))


def unknown_labels(rows: Iterable[ImageRow], classes: Sequence[str]) -> list[str]:
    """Describe labels that are not in ``classes``, each with the class that differs only in spelling, if any."""
    by_key = {comparison_key(name): name for name in classes}
    unknown = sorted({name for row in rows for name in row.shown} - set(classes))
    near = (by_key.get(comparison_key(label)) for label in unknown)
    return [
        visible_text(label) + (f" (the model spells it {visible_text(name)})" if name else "")
        for label, name in zip(unknown, near, strict=True)
    ]


def check_given_split(rows: Sequence[ImageRow], where: str, *, way_out: str) -> None:
    """Check a split that was given.

    Args:
        rows: The images with their parts.
        where: Where the split was given, for the error.
        way_out: How to let twinbud split the images instead, as a clause for the error's advice.

    Raises:
        TwinbudError: There is no train part, a patient is in two parts, or a class is in val or test only.
    """
    labels: dict[SplitName, set[str]] = {name: set() for name in SPLIT_NAMES}
    patients: dict[str, set[tuple[SplitName, str]]] = defaultdict(set)
    for row in rows:
        if row.split is not None:
            labels[row.split].update(row.shown)
            if key := patient_key(row.patient_id):
                patients[key].add((row.split, row.patient_id or ""))
    if not labels["train"]:
        has = first_few(name for name in SPLIT_NAMES if labels[name])
        fix = f"Add a train part, or {way_out}"
        raise TwinbudError(f"the given split has no train part, only {has}", where=where, fix=fix)
    if in_several_parts := [
        _parts_of(seen) for _, seen in sorted(patients.items()) if len({part for part, _ in seen}) > 1
    ]:
        raise TwinbudError(
            f"the given split has patients in more than one part: {first_few(in_several_parts, 3)}",
            where=where,
            fix=f"Move all images of a patient to one part, or {way_out}",
        )
    for name in ("val", "test"):
        if unknown := sorted(labels[name] - labels["train"]):
            raise TwinbudError(
                f"the {name} part has classes that the train part lacks: {first_few(map(visible_text, unknown))}",
                where=where,
                fix=f"Use the same class names in all parts, or {way_out}",
            )


def _parts_of(seen: set[tuple[SplitName, str]]) -> str:
    """Return ``'P0' in test and train``, with every spelling of the patient."""
    spellings = " = ".join(visible_text(text) for text in sorted({text for _, text in seen}))
    return f"{spellings} in {' and '.join(sorted({part for part, _ in seen}))}"


def write_left_out(path: Path, ignored: Iterable[IgnoredFile]) -> None:
    """Write a CSV of the files that were found and not used: path, reason."""
    write_csv(path, [("path", "reason"), *((file.path, file.reason) for file in ignored)])
