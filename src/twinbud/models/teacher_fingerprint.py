"""Checksum of a teacher's files, which tells whether two runs have the same teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path

from twinbud.config.teacher_spec import parse_teacher
from twinbud.core.errors import TwinbudError
from twinbud.core.files import open_regular


def teacher_fingerprint(teacher: str) -> str:
    """Return the name of the teacher, with the SHA-256 of its files in place of a path.

    Raises:
        TwinbudError: A file cannot be read.
    """
    spec = parse_teacher(teacher)
    if spec.path is None:
        return teacher
    if spec.architecture is None:
        return f"sha256:{_sha256(spec.path / 'config.json', spec.path / 'model.safetensors')}"
    return f"{spec.architecture}@sha256:{_sha256(spec.path)}"


def _sha256(*files: Path) -> str:
    checksum = hashlib.sha256()
    for path in files:
        try:
            with open_regular(path) as file:
                checksum.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise TwinbudError(
                f"the teacher's file cannot be read ({error.strerror})", where=str(path), fix="Check the path"
            ) from error
    return checksum.hexdigest()
