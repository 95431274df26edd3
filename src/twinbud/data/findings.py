"""Several labels an image: how a CSV writes them, and the one text in which an index keeps them.

``effusion|mass|nodule?`` says that effusion and mass are there, that nodule is unknown, and that all other labels are
absent; ``no finding`` says that all are absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from twinbud.core.errors import TwinbudError
from twinbud.data.identity import MISSING_VALUES, comparison_key, sort_classes, visible_text
from twinbud.data.index import ImageRow

SEPARATOR, UNKNOWN, NO_FINDING = "|", "?", "no finding"
_STATES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "-1": None, "": None}
"""What a cell of a label's own column says, by its ``comparison_key``; None: unknown."""


@dataclass(frozen=True)
class Findings:
    """The labels that an image shows, and those of which this is unknown; both in the order of the source."""

    present: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text of the findings, which ``parse_findings`` reads."""
        return SEPARATOR.join((*self.present, *(f"{name}{UNKNOWN}" for name in self.unknown))) or NO_FINDING


def parse_findings(text: str) -> Findings:
    """Read the text of findings.

    >>> parse_findings("mass|nodule?")
    Findings(present=('mass',), unknown=('nodule',))
    >>> parse_findings("No Finding").present
    ()
    """
    if comparison_key(text) == NO_FINDING:
        return Findings(())
    parts = dict.fromkeys(part.strip() for part in text.split(SEPARATOR))
    unknown = [part for part in parts if part.endswith(UNKNOWN)]
    return Findings(
        tuple(part for part in parts if part not in unknown), tuple(part.removesuffix(UNKNOWN) for part in unknown)
    )


def findings_of_columns(cells: Mapping[str, str], columns: Sequence[str], where: str) -> Findings:
    """Read one column a label: 1 or 0, yes or no, true or false; nothing, -1 or a missing value is unknown.

    Raises:
        TwinbudError: A cell says something else.
    """
    states: dict[str, bool | None] = {}
    for name in columns:
        cell = cells[name].strip()
        key = "" if cell in MISSING_VALUES else comparison_key(cell) if cell else ""
        if key not in _STATES:
            raise TwinbudError(
                f"{visible_text(cell)} is neither yes nor no",
                where=f"{where}, column '{name}'",
                fix="Write 1 or 0, or -1 or nothing where it is unknown",
            )
        states[name] = _STATES[key]
    return Findings(
        tuple(name for name, state in states.items() if state),
        tuple(name for name, state in states.items() if state is None),
    )


def are_combinations(labels: Iterable[str]) -> bool:
    """Return whether labels are without doubt combinations, ``a|b``: each part of one also occurs in another."""
    texts = set(labels)
    parts = Counter(part for text in texts for part in parse_findings(text).present)
    combined = [text for text in texts if SEPARATOR in text]
    return bool(combined) and all(parts[part] > 1 for text in combined for part in parse_findings(text).present)


def with_findings(rows: Sequence[ImageRow]) -> tuple[list[ImageRow], tuple[str, ...]]:
    """Return the rows with the findings that their labels say, and the names of all labels, sorted.

    Raises:
        TwinbudError: A label is empty, as in ``a||b``, or "no finding" is one of several.
    """
    found = [parse_findings(row.label) for row in rows]
    for row, findings in zip(rows, found, strict=True):
        if any(comparison_key(name) == NO_FINDING for name in (*findings.present, *findings.unknown)):
            problem = f"{visible_text(row.label)} says '{NO_FINDING}' and something else"
            raise TwinbudError(problem, where=row.place, fix=f"Write '{NO_FINDING}' alone, or the labels alone")
        if not all((*findings.present, *findings.unknown)):
            problem = f"{visible_text(row.label)} has an empty label"
            raise TwinbudError(problem, where=row.place, fix="Write the labels as a|b, and 'no finding' for none")
    names = sort_classes(name for findings in found for name in (*findings.present, *findings.unknown))
    return [
        replace(row, label=findings.text, findings=findings.present) for row, findings in zip(rows, found, strict=True)
    ], names


def check_label_columns(columns: Sequence[str], where: str) -> None:
    """Check the names of the label columns.

    Raises:
        TwinbudError: There is only one, one is empty or named twice, one has a character that marks findings, or one
            is "no finding".
    """
    if len(columns) < 2:
        fix = f"Name at least two (A,B), or give --label-column {columns[0]}"
        raise TwinbudError(f"'{columns[0]}' is a single column", where=where, fix=fix)
    if "" in columns:
        raise TwinbudError("one name is empty", where=where, fix="Write the columns as A,B")
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise TwinbudError(f"'{repeated[0]}' is named twice", where=where, fix="Name each column once")
    if wrong := [name for name in columns if SEPARATOR in name or name.endswith(UNKNOWN)]:
        problem = f"the label {visible_text(wrong[0])} has a '{SEPARATOR}' or ends with '{UNKNOWN}'"
        raise TwinbudError(problem, where=where, fix="Rename the column")
    if none := [name for name in columns if comparison_key(name) == NO_FINDING]:
        problem = f"{visible_text(none[0])} says that no label applies, and is none itself"
        raise TwinbudError(problem, where=where, fix="Leave it out: an image without any label has no finding")
