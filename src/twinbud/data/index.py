"""What is known of each image of a source, and what any source must hold to be trained on."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import write_text

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
"""Names of split folders and words of a split column, in any case."""

LAYOUTS = "FOLDER/CLASS/image.png, FOLDER/train/CLASS/image.png with FOLDER/test/CLASS/image.png, or a CSV"
REARRANGE = f"Arrange the images as {LAYOUTS}, and give --data the folder that stands first"


@dataclass(frozen=True)
class ImageRef:
    """Names the pixels of one image: a file, a frame of it and the window to read it with.

    Attributes:
        file: Path of the file.
        frame: Index of the frame, counted from 0; None for a file that holds a single frame.
        window: Name of the intensity window; None for the format's default.
    """

    file: Path
    frame: int | None = None
    window: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One labelled image."""

    path: str
    """As it is reported: relative to the source folder, with /; or as the CSV writes it."""
    image: ImageRef
    """Which pixels to read."""
    label: str
    patient_id: str | None = None
    split: SplitName | None = None
    """The side that the source itself gives it, if it does."""


@dataclass(frozen=True, kw_only=True)
class IgnoredFile:
    """A file that was met and left out."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """All images of one source, sorted by path, so that the order of files on the disk changes nothing."""

    source: str
    rows: tuple[ImageRow, ...]
    classes: tuple[str, ...]
    """Sorted."""
    ignored: tuple[IgnoredFile, ...] = ()
    to_train: bool = True
    """Whether each class needs an image on either side of a split."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda row: row.path)))

    @property
    def has_patients(self) -> bool:
        """Whether any image has a patient."""
        return any(row.patient_id is not None for row in self.rows)

    @property
    def has_splits(self) -> bool:
        """Whether the source itself divides its images."""
        return any(row.split is not None for row in self.rows)

    def without(self, left_out: Mapping[int, str]) -> ImageIndex:
        """The catalog less some rows, which join `ignored`.

        Args:
            left_out: For each index into `rows`, the reason.

        Raises:
            TwinbudError: A class is left with fewer images than training needs.
        """
        kept = [row for index, row in enumerate(self.rows) if index not in left_out]
        dropped = [IgnoredFile(path=self.rows[index].path, reason=why) for index, why in sorted(left_out.items())]
        if self.to_train:
            check_classes(kept, self.source, classes=self.classes)
        return replace(self, rows=tuple(kept), ignored=(*self.ignored, *dropped))


def check_classes(rows: Iterable[ImageRow], source: str, *, classes: Iterable[str] = ()) -> None:
    """Raise TwinbudError unless there are two classes, and two images in each of them and of `classes`."""
    counts = Counter(dict.fromkeys(classes, 0))
    counts.update(row.label for row in rows)
    if len(counts) < 2:
        got = f"one, '{next(iter(counts))}'" if counts else "none"
        raise TwinbudError("at least two classes", got=got, where=source, fix=REARRANGE)
    small = [f"'{name}' with {count}" for name, count in sorted(counts.items()) if count < 2]
    if small:
        raise TwinbudError(
            "at least two images a class (one to train on, one to test on)",
            got=first_few(small),
            where=source,
            fix="Add images, or take the class out",
        )


def check_given_split(rows: Sequence[ImageRow], where: str) -> None:
    """Raise TwinbudError unless the rows' splits leave each patient on one side and each class in train."""
    sides: dict[SplitName, set[str]] = {name: set() for name in SPLIT_NAMES}
    patients: dict[str, set[SplitName]] = defaultdict(set)
    for row in rows:
        if row.split is not None:
            sides[row.split].add(row.label)
        if row.split is not None and row.patient_id is not None:
            patients[row.patient_id].add(row.split)
    if not sides["train"]:
        given = first_few(name for name in SPLIT_NAMES if sides[name])
        raise TwinbudError("a train part", got=f"only {given}", where=where, fix="Add one, or give no split at all")
    both = {name: " and ".join(sorted(on)) for name, on in sorted(patients.items()) if len(on) > 1}
    if both:
        raise TwinbudError(
            "each patient on one side of the given split",
            got=first_few((f"'{name}' in {on}" for name, on in both.items()), 3),
            where=where,
            fix="Move all images of a patient to one side, or leave the split to twinbud",
        )
    for name in ("val", "test"):
        unknown = sorted(sides[name] - sides["train"])
        if unknown:
            raise TwinbudError(
                f"no class in the {name} part that the train part lacks",
                got=first_few(f"'{label}'" for label in unknown),
                where=where,
                fix="Give both parts the same class names, or leave the split to twinbud",
            )


def write_left_out(path: Path, image_index: ImageIndex) -> None:
    """Write a CSV of the files that were met and left out: path, reason."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "reason"])
    rows.writerows([file.path, file.reason] for file in image_index.ignored)
    write_text(path, text.getvalue())
