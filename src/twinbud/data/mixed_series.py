"""Series and patients whose files contradict each other: an id that was given twice, or a series put together by hand.

By the standard, a series has one modality and one patient. Each image is read by itself, so a mixed series is a warning
and not an error: but its ids may say little about who is on which side of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from twinbud.data.formats.base import FileSurvey, NoPixels, Trait
from twinbud.data.identity import visible_text

_EFFECTS = {
    ("series", "modality"): "is the SeriesInstanceUID right?",
    ("series", "patient"): "is the SeriesInstanceUID right?",
    ("series", "size"): "they count as volumes of their own",
    ("series", "photometric interpretation"): "they count as volumes of their own",
    ("patient", "sex"): "they count as one patient: is the PatientID right?",
}
"""What each contradiction leads to, or what to look at, by group and name of the trait."""


def mixed_notes(surveys: Mapping[str, FileSurvey | NoPixels]) -> Iterator[str]:
    """Yield one line for each kind of contradiction, with two files of the first such series or patient.

    Args:
        surveys: What each file holds, by its path, in the order of the files.
    """
    first: dict[tuple[str, str, str], tuple[str, Trait]] = {}
    found: dict[tuple[str, str], dict[str, str]] = {kind: {} for kind in _EFFECTS}
    for path, known in surveys.items():
        for trait in known.traits if isinstance(known, FileSurvey) else ():
            first_path, other = first.setdefault((trait.group, trait.key, trait.name), (path, trait))
            if other.value != trait.value:
                files = (_shown(first_path, other), _shown(path, trait))
                found[trait.group, trait.name].setdefault(trait.key, " and ".join(files))
    for (group, name), contradictions in found.items():
        if contradictions:
            count, files = len(contradictions), next(iter(contradictions.values()))
            which = f"{group} has" if count == 1 else f"{'series' if group == 'series' else 'patients'} have"
            yield f"{count:,} {which} files of different {name}: {files}; {_EFFECTS[group, name]}"


def _shown(path: str, trait: Trait) -> str:
    return f"{visible_text(path)} ({trait.value})" if trait.shown else visible_text(path)
