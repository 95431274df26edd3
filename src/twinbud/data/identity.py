"""When two spellings, paths or images are the same: the rules that every package follows.

Labels
    A label is its exact text. Labels that differ only in spelling (``comparison_key``) are refused before training:
    they are never merged and never become two classes in silence. Texts that spreadsheets and pandas write for a
    missing value (``MISSING_VALUES``) are refused as labels.
Patients
    Two ids are one patient if their ``comparison_key`` is the same: ``001``, ``1`` and ``1.0`` are one. Grouping images
    of two patients together costs little; measuring on a training patient makes the result wrong. Ids keep their
    spelling in every output, and the notes of a split name those that were joined. An id that stands for a missing
    value (``is_missing_patient``) is no id: each such image counts as a patient of its own.
Images
    Rows whose paths lead to the same file by the same name (``a.png``, ``./a.png``) are one row: the repetition is
    listed as left out, or refused if it contradicts the first. Links and copies stay rows of their own; they have
    identical pixels, and identical pixels keep images on one side of a split (``twinbud.data.duplicates``).
Classes
    Their order is that of timm's folder reader (``sort_classes``), so that class indices agree with timm's.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

MISSING_VALUES = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
    | {"N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"}
)
"""What ``pandas.read_csv`` takes for a missing value, and ``NaT``; ``none`` in lower case is a word like any other."""

_MISSING_PATIENTS = (
    {value.casefold() for value in MISSING_VALUES}
    | {"unknown", "unk", "unspecified", "undefined", "missing", "not available"}
    | {"anonymous", "anonymized", "anonymised", "anon"}
)
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters without a glyph that are not in the Unicode category Cf."""
_DASHES = "\u2010-\u2015\u2212"
_BETWEEN_WORDS = re.compile(rf"(?<=\w)[\s_{_DASHES}-]+(?=\w)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:[ ,'\u2019]\d{3})+(?:\.0*)?")
_WHOLE_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:[.,]0*)?")
_SCIENTIFIC = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?e\+?(\d{1,2})")
_NUMBER_IN_TEXT = re.compile(r"(?<![\d.,])0*(\d+)(?:[.,]0+)?(?![.,]?\d)")


def comparison_key(text: str) -> str:
    """Reduce a label or a patient id to what remains when spelling does not count.

    Does not distinguish: upper and lower case; Unicode compositions (NFC, NFD), full-width and other compatibility
    forms; zero-width and other invisible characters; white space, underscores and dashes between words; white space,
    dots, quotes and ``=`` around the text; whole numbers (``1``, ``01``, ``+1``, ``1.0``, ``1e0``, ``1,000``), also
    within a text (``patient_001``, ``Patient 1.0``).
    """
    visible = _INVISIBLE.sub("", "".join(c for c in text if unicodedata.category(c) != "Cf"))
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain)
    plain = " ".join(re.sub(rf"[{_DASHES}]", "-", plain).translate(_CONTROL_TO_SPACE).split())
    plain = plain.strip(" .'\"=") or plain
    return _whole_number(plain) or _NUMBER_IN_TEXT.sub(r"\1", _BETWEEN_WORDS.sub(" ", plain))


def patient_key(patient_id: str | None) -> str | None:
    """Return the comparison key of a patient id; None where the patient is not known."""
    return None if patient_id is None or is_missing_patient(patient_id) else comparison_key(patient_id)


def is_missing_patient(patient_id: str) -> bool:
    """Return whether an id stands for a missing value: blank, ``nan``, ``unknown``, ``-`` and the like."""
    return not re.search(r"\w", patient_id) or " ".join(patient_id.casefold().split()) in _MISSING_PATIENTS


def respellings(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of two or more texts that have the same ``comparison_key``, each sorted by code point."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for text in set(texts):
        by_key[comparison_key(text)].add(text)
    return sorted(tuple(sorted(group)) for group in by_key.values() if len(group) > 1)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names as timm's folder reader does: digits as numbers, case ignored; ties by code point.

    >>> sort_classes(["Normal", "covid", "grade10", "grade9"])
    ('covid', 'grade9', 'grade10', 'Normal')
    """
    return tuple(sorted(set(names), key=lambda name: (_natural_key(name), name)))


def same_path_key(path: Path) -> tuple[str, str]:
    """Return one key for two paths to the same file by the same name: ``a.png``, ``./a.png``, ``b/../a.png``.

    A link and its target differ, and so do two links to one file.
    """
    return os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - Path.absolute keeps '..'


def visible_text(text: str) -> str:
    """Quote a text, with an escape for each character that cannot be seen, or that an error line would lose."""
    shown = "".join(c if _is_visible(c) else ascii(c)[1:-1] for c in text)
    return "'" + re.sub("(?<= ) ", r"\\x20", shown) + "'"


def _is_visible(character: str) -> bool:
    return character.isprintable() and unicodedata.category(character) != "Mn" and not _INVISIBLE.match(character)


_CONTROL_TO_SPACE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")


def _natural_key(name: str) -> list[str | int]:
    """Split a text as ``timm.utils.misc.natural_key`` does: text and numbers in turn."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", name.lower()))]


def _whole_number(text: str) -> str | None:
    """Return the shortest spelling of a whole number, or None where the text is none."""
    if _THOUSANDS.fullmatch(text):
        text = re.sub(r"[ ,'\u2019]", "", text)
    if match := _WHOLE_NUMBER.fullmatch(text):
        sign, digits = match.groups()
    elif match := _SCIENTIFIC.fullmatch(text):
        sign, whole, fraction, exponent = match.groups()
        fraction = (fraction or "").rstrip("0")
        if len(fraction) > int(exponent):
            return None
        digits = (whole + fraction.ljust(int(exponent), "0")).lstrip("0") or "0"
    else:
        return None
    return f"-{digits}" if sign == "-" and digits != "0" else digits
