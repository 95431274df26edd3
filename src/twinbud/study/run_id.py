"""What makes two runs the same run: everything that changes its numbers, and nothing else.

Counted: the settings that change numbers, with ``auto`` resolved; the number of threads and the precision, which a
recipe fixes; the teacher's weights; the images with their labels; and TRAINING_VERSION. Not counted: paths, names,
the number of workers, the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbud.config.loading import numeric_settings, unread_settings
from twinbud.config.schema import RunConfig, resolve
from twinbud.core.errors import TwinbudError

if TYPE_CHECKING:
    from twinbud.data.index import ImageIndex
    from twinbud.models.families.base import Family

TRAINING_VERSION = 1
"""Raised by every change after which the same settings give other numbers; earlier records are then made anew."""

_NAMES = frozenset({"profile", "image_column", "label_column", "patient_column", "split_column", "teacher"})
"""Settings that only say where other facts come from."""

_BEFORE = {"recover": "none", "recover_memory": 0.625, "develop": False, "layer_decay": 1.0}
"""Settings that came later, at the value that stands for what was done before there was a choice."""


def run_facts(config: RunConfig, *, images: str, teacher: str, family: Family) -> dict[str, Any]:
    """All that a run's numbers depend on, as plain JSON.

    Args:
        config: The run.
        images: See ``images_fingerprint``.
        teacher: See ``teacher_fingerprint``.
        family: That of the student, which says what ``auto`` stands for.
    """
    training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
    settings = numeric_settings(replace(config, training=training))
    if config.recovery.num_epochs and training.layer_decay != 1.0:
        # records without it are of a time when steps of recovery had one learning rate for all layers
        settings["recover_layer_decay"] = training.layer_decay
    unread = _NAMES | {name for name, value in _BEFORE.items() if settings[name] == value}
    if config.recovery.recover == "none":
        unread |= unread_settings(config.recovery)
    return {
        "training_version": TRAINING_VERSION,
        "images": images,
        "teacher": teacher,
        "threads": training.threads,
        "settings": {name: value for name, value in sorted(settings.items()) if name not in unread},
    }


def make_run_id(facts: Mapping[str, Any]) -> str:
    """The name of a run: 20 hexadecimal digits of the SHA-256 of its facts."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def canonical(content: Any) -> str:
    """JSON that is the same text whenever the content is the same."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def images_fingerprint(image_index: ImageIndex, digests: Sequence[str]) -> str:
    """A SHA-256 of the decoded images in their order, with label, patient and given split; paths do not count."""
    lines = [
        json.dumps([digest, row.label, row.patient_id, row.split])
        for digest, row in zip(digests, image_index.rows, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def teacher_fingerprint(teacher: str) -> str:
    """The teacher's name; where it is a file or a folder, the SHA-256 of what lies there instead of where it lies.

    Raises:
        TwinbudError: The file is missing.
    """
    architecture, at, file = teacher.partition("@")
    if teacher.startswith("local-dir:"):
        folder = Path(teacher.removeprefix("local-dir:"))
        return f"sha256:{_sha256(folder / 'config.json', folder / 'model.safetensors')}"
    return f"{architecture}@sha256:{_sha256(Path(file))}" if at else teacher


def _sha256(*files: Path) -> str:
    checksum = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                checksum.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise TwinbudError(
                "the teacher's files", got=(error.strerror or "none").lower(), where=str(path), fix="Check its path"
            ) from error
    return checksum.hexdigest()
