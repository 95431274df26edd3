"""Rows of a CSV that name an image again: left out and listed, or refused if they contradict the first one."""

from __future__ import annotations

from collections.abc import Sequence

from twinbud.core.errors import TwinbudError
from twinbud.data.identity import patient_key, same_path_key, visible_text
from twinbud.data.index import IgnoredFile, ImageRow


def without_repetitions(
    source: str, rows: Sequence[ImageRow], *, of_images: bool = False
) -> tuple[list[ImageRow], list[IgnoredFile]]:
    """Leave out rows that repeat an earlier one.

    Args:
        source: The CSV, for the error.
        rows: Its rows.
        of_images: Whether each row is one image: no frame then is frame 0, and not all frames of a file.

    Raises:
        TwinbudError: A row names the image of an earlier one with another label, patient or split.
    """
    first: dict[tuple[tuple[str, str], int | None], ImageRow] = {}
    ignored = []
    for row in rows:
        frame = 0 if of_images and row.image.frame is None else row.image.frame
        earlier = first.setdefault((same_path_key(row.image.file), frame), row)
        if earlier is row:
            continue
        for what, here, there in (
            ("label", row.label, earlier.label),
            ("patient", patient_key(row.patient_id), patient_key(earlier.patient_id)),
            ("split", row.split, earlier.split),
        ):
            if here != there:
                raise TwinbudError(
                    f"rows {earlier.row_number} and {row.row_number} give {visible_text(row.path)} a different {what}: "
                    f"{visible_text(there or 'none')} and {visible_text(here or 'none')}",
                    where=source,
                    fix="Drop the wrong row",
                )
        ignored.append(IgnoredFile(path=row.path, reason=f"row {row.row_number} repeats row {earlier.row_number}"))
    return list(first.values()), ignored
