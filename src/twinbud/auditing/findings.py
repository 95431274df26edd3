"""What an audit finds, as one object that the page and the JSON are written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twinbud.auditing.probes import Probe
from twinbud.auditing.text_findings import TextFindings
from twinbud.data.index import IgnoredFile, ImageRow
from twinbud.data.near_duplicates import Mirrored

Kind = Literal["identical", "near-duplicate"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images that show the same picture.

    Attributes:
        kind: Whether their pixels are the same.
        first: Index of an image.
        second: Index of the other.
        correlation: Of their details; 1 for identical ones.
        mirrored: How the first is mirrored to match the second.
    """

    kind: Kind
    first: int
    second: int
    correlation: float = 1.0
    mirrored: Mirrored = "no"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in a set of images.

    Attributes:
        source: The images, as they were named.
        rows: The images that can be read.
        classes: Their classes.
        counts: Of each property, how many images have which value, most frequent first.
        left_out: Files that are not used, with the reason.
        identical: Groups of identical images, as indices into ``rows``.
        near_duplicates: Pairs of near-duplicates.
        num_near_groups: Groups of images that near-duplicates connect.
        leaks: Pairs of the same picture in two parts of the given split.
        patients_in_two_parts: Patients with images in two parts of the given split: how many.
        contradictions: Pairs of the same picture with different labels.
        inverted: Images that look like the negative of the others; None where the images are too unlike each other.
        probes: What predicts the class though it should not.
        text: Text-like marks in the pixels.
        has_split: Whether a split is given.
        notes: Further sentences about the images.
    """

    source: str
    rows: Sequence[ImageRow]
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    left_out: tuple[IgnoredFile, ...]
    identical: tuple[tuple[int, ...], ...]
    near_duplicates: tuple[Pair, ...]
    num_near_groups: int
    leaks: tuple[Pair, ...]
    patients_in_two_parts: int
    contradictions: tuple[Pair, ...]
    inverted: tuple[int, ...] | None
    probes: tuple[Probe, ...]
    text: TextFindings
    has_split: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with every finding, images named by their paths. Patients are not named."""
        return {
            "source": self.source,
            "num_images": len(self.rows),
            "classes": list(self.classes),
            "counts": self.counts,
            "left_out": [{"path": file.path, "reason": file.reason} for file in self.left_out],
            "identical": [[self.rows[index].path for index in group] for group in self.identical],
            "near_duplicates": [self._pair(pair) for pair in self.near_duplicates],
            "num_near_duplicate_groups": self.num_near_groups,
            "has_split": self.has_split,
            "leaks": [self._pair(pair) for pair in self.leaks],
            "patients_in_two_parts": self.patients_in_two_parts,
            "contradictory_labels": [self._pair(pair) for pair in self.contradictions],
            "inverted": None if self.inverted is None else [self.rows[index].path for index in self.inverted],
            "predicts_the_class": [probe.to_json() for probe in self.probes],
            "text_in_pixels": self._text(),
            "notes": list(self.notes),
        }

    def _text(self) -> dict[str, Any]:
        counts = self.counts["class"]
        return {
            "num_images": len(self.text.boxes),
            "by_class": {
                label: {"num_images": count, "share": count / counts[label]}
                for label, count in self.text.num_by_class.items()
            },
            "p_value": self.text.p_value,
            "images": [
                {"path": self.rows[index].path, "boxes": [box._asdict() for box in boxes]}
                for index, boxes in self.text.boxes.items()
            ],
            "undeclared": [self.rows[index].path for index in self.text.undeclared],
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": pair.kind, "correlation": pair.correlation, "mirrored": pair.mirrored}
        for name, index in (("first", pair.first), ("second", pair.second)):
            row = self.rows[index]
            found[name] = {"path": row.path, "label": row.label, "split": row.split}
        return found
