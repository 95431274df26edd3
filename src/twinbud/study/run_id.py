"""The run id: a checksum of every fact that changes the numbers of a run, and of nothing else.

It includes the settings that change numbers, with ``auto`` resolved; the number of threads and the precision, which a
recipe fixes; the weights of the teacher; the images with their labels; and ``TRAINING_VERSION``. It excludes paths,
names, the number of workers and the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twinbud.config.effects import numeric_settings
from twinbud.config.schema import WHOLE_METHODS, RunConfig, resolve
from twinbud.config.settings import all_settings
from twinbud.data.patient_salt import is_key
from twinbud.models.teacher_fingerprint import teacher_fingerprint

if TYPE_CHECKING:
    from twinbud.data.index import ImageIndex
    from twinbud.models.families.base import SelectionFamily

TRAINING_VERSION = 2
"""Raised by every change after which the same settings give other numbers; earlier records are then not used."""

_ALWAYS = frozenset((
    "alpha", "attention", "auxiliary", "batch_size", "beta", "ce_temperature", "clip_norm", "compile", "crop_scale",
    "develop", "distillation", "drop_path", "epochs", "final_learning_rate", "flip", "fraction", "image_size",
    "layer_decay", "layer_scale", "learning_rate", "method", "min_steps", "precision", "recover",
    "recover_batch_size", "recover_blocks", "recover_epochs", "recover_learning_rate", "recover_memory",
    "recover_refit", "recover_target", "recover_views", "rule", "seed", "split_duplicates", "split_seed", "student",
    "subset", "swap_roles", "temperature", "warmup", "weight_decay",
))  # fmt: skip
"""The settings when ``TRAINING_VERSION`` became 2. A setting that was added later is a fact only where it differs from
its default, so that earlier records keep their run id; a change of such a default raises ``TRAINING_VERSION``."""
_NAMES = frozenset({"profile", "image_column", "label_column", "label_columns", "patient_column", "split_column"})
"""Settings that other facts stand for."""


def has_own_network(config: RunConfig) -> bool:
    """Return whether the student is a pretrained network other than the teacher, whose weights count too."""
    return config.model.method in WHOLE_METHODS and config.model.student != "same"


def run_facts(
    config: RunConfig,
    *,
    images: str,
    teacher: str,
    family: SelectionFamily,
    fingerprint: Callable[[str], str] = teacher_fingerprint,
) -> dict[str, Any]:
    """Collect every fact that the numbers of a run depend on, as a JSON object.

    Args:
        config: The configuration of the run.
        images: See ``images_fingerprint``.
        teacher: See ``models.teacher_fingerprint``.
        family: The family of the student, which resolves ``auto``.
        fingerprint: Gives that of a student that is a network of its own.
    """
    training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
    settings = numeric_settings(replace(config, training=training))
    if has_own_network(config):
        settings["student"] = fingerprint(config.model.student)
    return {
        "training_version": TRAINING_VERSION,
        "images": images,
        "teacher": teacher,
        "threads": training.threads,
        "settings": {
            name: value
            for name, value in sorted(settings.items())
            if name in _ALWAYS or (name not in _NAMES and value != all_settings()[name].default)
        },
    }


def make_run_id(facts: Mapping[str, Any]) -> str:
    """Return the first 20 hexadecimal digits of the SHA-256 of the facts."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:20]


def canonical(content: Any) -> str:
    """Serialize to JSON; equal contents give equal texts."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def images_fingerprint(image_index: ImageIndex, digests: Sequence[str]) -> str:
    """Return the SHA-256 of the decoded images in order, with label, patient and given split, but without paths.

    Hashed patients count by their order: the salt, which differs from machine to machine, changes no number.
    """
    hashed: dict[str, int] = {}
    lines = [
        json.dumps([digest, row.label, _patient(row.patient_id, hashed), row.split])
        for digest, row in zip(digests, image_index.rows, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _patient(patient_id: str | None, hashed: dict[str, int]) -> str | int | None:
    """Return the patient as the fingerprint has it; ``hashed`` counts the hashed ones met so far."""
    return hashed.setdefault(patient_id, len(hashed)) if patient_id and is_key(patient_id) else patient_id
