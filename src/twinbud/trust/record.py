"""``trust.json`` and ``trust.safetensors`` of a model folder: what makes the answers of its network trustworthy."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save

from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.core.files import read_sealed, sealed, write_bytes, write_json
from twinbud.core.typed_json import from_json, to_json
from twinbud.evaluation.predictions import Predictions
from twinbud.models.weights_file import read_safetensors
from twinbud.tasks.base import Task
from twinbud.trust.conformal import PredictionSets
from twinbud.trust.novelty import Novelty
from twinbud.trust.operating_points import Criterion, OperatingPoint
from twinbud.trust.temperature import LARGEST_TEMPERATURE, SMALLEST_TEMPERATURE

TRUST_FILE, STATISTICS_FILE = "trust.json", "trust.safetensors"
Source = Literal["folds", "val", "data"]
_WEIGHTS = "model.safetensors"
_AGAIN = "Run: twinbud calibrate RUN --force"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What is known of the answers of a network, from images that it, or models made like it, had not learned from.

    Raises:
        ValueError: A value is outside its range.
    """

    weights_sha256: str
    """SHA-256 of the ``model.safetensors`` that it belongs to."""
    statistics_sha256: str | None = None
    """SHA-256 of the ``trust.safetensors`` that belongs to it; None before that is written."""
    source: Source
    """Which images: the labelled ones of the run, in folds; its validation part; or labelled ones of another place."""
    num_images: int
    num_patients: int
    """Images without a known patient count as one each."""
    num_folds: int | None = None
    """None where the delivered model has judged the images."""
    temperature: float
    """Divides the logits before they become probabilities, in [0.2, 20]."""
    sets: PredictionSets | None = None
    """None for several labels an image."""
    points: Mapping[str, Mapping[Criterion, OperatingPoint]]
    """By class, against the rest, for calibrated probabilities; none for a class of no images, or of all."""
    novelty_threshold: float
    """An image with a larger score is unlike those of the training; at least 0."""
    shifts: Mapping[str, float]
    """Share of changed test images that the threshold finds, in [0, 1], by the change; ``none`` for unchanged ones."""

    def __post_init__(self) -> None:
        if not SMALLEST_TEMPERATURE <= self.temperature <= LARGEST_TEMPERATURE:
            limits = f"{SMALLEST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}"
            raise ValueError(f"temperature is {self.temperature:g}, outside {limits}")
        if not 0 <= self.novelty_threshold < math.inf:
            raise ValueError(f"novelty_threshold is {self.novelty_threshold:g}, not a finite number of at least 0")

    @property
    def measured_on(self) -> str:
        """Which images have measured what was chosen, in the plural."""
        return "the other half of the images of that place" if self.source == "data" else "the test images"

    @property
    def origin(self) -> str:
        """A sentence that states which images everything was chosen on."""
        patients = f" of {self.num_patients:,} patients" if self.num_patients < self.num_images else ""
        images = f"{self.num_images:,} images{patients}"
        if self.source != "folds":
            return f"Chosen on {images} of {'the validation part' if self.source == 'val' else 'another place'}."
        return (
            f"Chosen on {images} that have a label, each judged by one of {self.num_folds} models that were trained "
            "like this one without it."
        )


@dataclass(frozen=True, kw_only=True)
class TrustedModel:
    """The trust of a model folder, ready to be applied.

    Attributes:
        trust: Content of ``trust.json``.
        novelty: Content of ``trust.safetensors``.
    """

    trust: Trust
    novelty: Novelty

    def apply(self, predictions: Predictions, features_ND: np.ndarray) -> Predictions:
        """Return predictions with calibrated probabilities, prediction sets, and whether each image is novel.

        Args:
            predictions: What the network says, with logits.
            features_ND: (N, D) float32 features of the same images.
        """
        calibrated = with_temperature(predictions, self.trust.temperature)
        sets = self.trust.sets.members(calibrated.probabilities) if self.trust.sets else None
        is_novel = self.novelty.scores(features_ND) > self.trust.novelty_threshold
        return replace(calibrated, sets=sets, is_novel=is_novel)


def with_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Return predictions with logits at a temperature; decisions stay as they were (``Task.at_temperature``)."""
    assert predictions.logits is not None
    return Predictions.from_logits(
        predictions.logits,
        paths=predictions.paths,
        classes=predictions.classes,
        labels=predictions.labels,
        patient_ids=predictions.patient_ids,
        task=predictions.asked.at_temperature(temperature),
        temperature=temperature,
    )


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of the weights in a model folder."""
    return hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()


@contextmanager
def new_trust(folder: Path, trusted: TrustedModel) -> Iterator[Trust]:
    """Write both files into a model folder, ``trust.json`` when the context ends without an error.

    Until then the model has no trust, and what is written in the context, such as the report, is not final.

    Args:
        folder: A model folder.
        trusted: What to write.

    Yields:
        The trust as ``trust.json`` will hold it.

    Raises:
        TwinbudError: The disk is full or the folder cannot be written.
    """
    novelty = trusted.novelty
    tensors = save({"means": torch.from_numpy(novelty.means_CD), "whitening": torch.from_numpy(novelty.whitening_DD)})
    with explained_writes(folder):
        (folder / TRUST_FILE).unlink(missing_ok=True)
    write_bytes(folder / STATISTICS_FILE, tensors)
    trust = replace(trusted.trust, statistics_sha256=hashlib.sha256(tensors).hexdigest())
    yield trust
    write_json(folder / TRUST_FILE, sealed(to_json(trust)))


def read_trust(folder: Path, task: Task) -> TrustedModel | None:
    """Read the trust of a model folder; None if it has none.

    Args:
        folder: A model folder whose weights can be read.
        task: What its network answers.

    Raises:
        TwinbudError: The files are damaged, or belong to other weights or other classes.
    """
    path = folder / TRUST_FILE
    if not os.path.lexists(path):
        return None
    try:
        trust = read_sealed(path, lambda content: from_json(Trust, content, "trust"))
    except (OSError, ValueError) as error:
        raise TwinbudError(f"the file cannot be read ({error})", where=str(path), fix=_AGAIN) from error
    if trust.weights_sha256 != hash_weights(folder):
        raise TwinbudError(f"it belongs to other weights than {_WEIGHTS} here", where=str(path), fix=_AGAIN)
    known = set(trust.points) | set(trust.sets.thresholds if trust.sets else ())
    if not known <= set(task.classes) or (trust.sets and tuple(trust.sets.thresholds) != task.classes):
        raise TwinbudError("it belongs to other classes than config.json here", where=str(path), fix=_AGAIN)
    state = read_safetensors(folder / STATISTICS_FILE)
    if trust.statistics_sha256 != hashlib.sha256((folder / STATISTICS_FILE).read_bytes()).hexdigest():
        raise TwinbudError(f"it belongs to another {STATISTICS_FILE} than that here", where=str(path), fix=_AGAIN)
    if set(state) != {"means", "whitening"}:
        raise TwinbudError("it lacks 'means' or 'whitening'", where=str(folder / STATISTICS_FILE), fix=_AGAIN)
    try:
        novelty = Novelty(means_CD=state["means"].numpy(), whitening_DD=state["whitening"].numpy())
    except ValueError as error:
        raise TwinbudError(str(error), where=str(folder / STATISTICS_FILE), fix=_AGAIN) from error
    return TrustedModel(trust=trust, novelty=novelty)
