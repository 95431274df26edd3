"""Plain sentences about a split, for the report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from twinbud.core.errors import first_few
from twinbud.data.duplicates import Groups
from twinbud.data.folds import NUM_FOLDS, connected_pairs
from twinbud.data.identity import patient_key, respellings, visible_text
from twinbud.data.index import ImageIndex, SplitName

NO_PATIENTS = "no patient column: split by image, figures may be optimistic"

_ROUNDED_NUMBER = re.compile(r"\s*\d\.\d+[eE]\+\d\d\s*")
"""How a spreadsheet shows, and saves, a long number."""


def patient_notes(image_index: ImageIndex) -> list[str]:
    """Say how many patients there are, which spellings were joined, and how many images have no patient."""
    if not image_index.has_patients:
        return [NO_PATIENTS]
    ids = {row.patient_id for row in image_index.rows if row.patient_id is not None}
    num_patients = len({patient_key(patient) for patient in ids})
    notes = [f"split by patient: no patient is in two parts ({counted(num_patients, 'patient')})"]
    if joined := [" = ".join(map(visible_text, group)) for group in respellings(ids)]:
        notes.append(f"patient ids that differ only in spelling count as one patient: {first_few(joined, 3)}")
    if rounded := sorted(visible_text(patient) for patient in ids if _ROUNDED_NUMBER.fullmatch(patient)):
        notes.append(
            f"patient ids in scientific notation may have lost digits in a spreadsheet: {first_few(rounded, 3)}"
        )
    if unknown := sum(row.patient_id is None for row in image_index.rows):
        notes.append(f"the patient of {counted(unknown, 'image')} is not known: each counts as a patient of its own")
    return notes


def duplicate_notes(groups: Groups, parts: Mapping[SplitName, Sequence[int]], *, together: bool) -> list[str]:
    """Count images that are identical, blank, labelled differently, shared by patients, or in several parts."""
    part_of = {index: name for name, indices in parts.items() for index in indices}
    copies, rows = groups.copies, groups.rows
    notes = [f"{counted(len(copies), 'group')} of identical images found"]
    if copies:
        where = "each group is in one part only"
        if in_several_parts := sum(
            len({part_of.get(index, "held-out") for index in indices}) > 1 for indices in copies
        ):
            reason = "as in the given split" if together else "because --split-duplicates is set"
            where = f"{in_several_parts} of them in more than one part, {reason}"
        notes[0] += f" ({counted(sum(len(indices) - 1 for indices in copies), 'extra copy')}): {where}"
    if conflicting := sum(len({rows[index].label for index in indices}) > 1 for indices in copies):
        notes.append(f"{counted(conflicting, 'group')} of identical images with different labels")
    if groups.blank:
        notes.append(
            f"{counted(len(groups.blank), 'blank image')} with identical copies: they may be in more than one part"
        )
    return notes


def near_duplicate_notes(groups: Groups) -> list[str]:
    """Count the groups of near-duplicates."""
    if not groups.near_pairs:
        return ["no near-duplicates found"]
    members = {index for pair in groups.near_pairs for index in pair}
    numbers = connected_pairs(len(groups.rows), groups.near_pairs)
    count = len({numbers[index] for index in members})
    size = counted(len(members), "image")
    notes = [f"{counted(count, 'group')} of near-duplicates found ({size}): each group is in one part only"]
    labels = ({groups.rows[index].label for index in pair} for pair in groups.near_pairs)
    if conflicting := sum(len(pair) > 1 for pair in labels):
        notes.append(f"{counted(conflicting, 'pair')} of near-duplicates with different labels")
    return notes


def connection_notes(groups: Groups) -> list[str]:
    """Say which identical images keep several patients together, and which of them a fifth of the images or more."""
    notes = []
    known = [[i for i in indices if groups.rows[i].patient_id is not None] for indices in groups.copies]
    if shared := [indices for indices in known if groups.num_patients(indices) > 1]:
        most = max(shared, key=groups.num_patients)
        notes.append(
            f"{counted(len(shared), 'group')} of identical images in several patients, who stay together: "
            f"most of all {groups.describe(most)}"
        )
    number, size = Counter(groups.numbers.tolist()).most_common(1)[0]
    members = [index for index, of in enumerate(groups.numbers.tolist()) if of == number]
    if size > len(groups.rows) / NUM_FOLDS and (copies := groups.connecting_copies(members)):
        notes.append(
            f"{counted(size, 'image')} of {len(groups.rows)} stay on one side because of {groups.describe(copies)}; "
            "leave that image out, or set --split-duplicates, if it says nothing about a patient"
        )
    return notes


def counted(number: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``, ``2 extra copies``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
