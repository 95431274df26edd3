"""The images that a network has learned from without labels: checksums, which tell nothing of image or patient.

``twinbud teach`` writes the list beside a teacher's weights. What starts from these weights (a selection, a run) keeps
a copy, so that an evaluation can tell, on any machine, whether a test image was among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from twinbud.config.teacher_spec import parse_teacher
from twinbud.core.csv_files import read_cells, write_csv

SEEN_IMAGES = "seen_images.csv"
"""Name of the list in its folder."""
DIGEST_COLUMN = "pixels_sha256"
"""Its one column: the SHA-256 of the decoded pixels at full resolution, as in a split.csv."""


def write_seen_images(folder: Path, digests: Iterable[str]) -> None:
    """Write the list into an existing folder, sorted, each image once."""
    write_csv(folder / SEEN_IMAGES, [(DIGEST_COLUMN,), *((digest,) for digest in sorted(set(digests)))])


def read_seen_images(folder: Path) -> frozenset[str]:
    """Return the checksums in the list of a folder; none if it has no list.

    Raises:
        TwinbudError: The list cannot be read.
    """
    path = folder / SEEN_IMAGES
    if not os.path.lexists(path):
        return frozenset()
    rename = "Restore the file that 'twinbud teach' wrote"
    return frozenset(cells[DIGEST_COLUMN] for _, cells in read_cells(path, (DIGEST_COLUMN,), rename=rename))


def images_seen_by(teacher: str) -> frozenset[str]:
    """Return the checksums of the images that a teacher has learned from without labels, as far as that is known.

    The list lies beside its weights, or, for ``RUN/model`` and ``RUN/teacher``, in the folder above.

    Args:
        teacher: As ``--teacher`` spells it.

    Raises:
        TwinbudError: The list cannot be read.
    """
    spec = parse_teacher(teacher)
    if spec.path is None:
        return frozenset()
    folder = (spec.path if spec.kind == "folder" else spec.path.parent).absolute()
    return read_seen_images(folder) or read_seen_images(folder.parent)
