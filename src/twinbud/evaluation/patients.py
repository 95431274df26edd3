"""Predictions of patients, from those of their images. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinbud.config.task import Aggregate
from twinbud.data.identity import patient_key
from twinbud.evaluation.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class PatientPredictions:
    """One prediction for each patient.

    Attributes:
        predictions: One row a patient, under the key that ``patient_key`` gives the id.
        num_left_out: Patients whose images have labels that contradict each other, and who have no row.
    """

    predictions: Predictions
    num_left_out: int


def predictions_of_patients(predictions: Predictions, how: Aggregate) -> PatientPredictions | None:
    """Join the labelled predictions of each patient's images; an image without a patient is a patient of its own.

    Args:
        predictions: N labelled images.
        how: How probabilities are joined, see ``Task.aggregate``.

    Returns:
        None where every patient has a single image, or no patient is left.
    """
    assert predictions.labels is not None, "the images have labels"
    images: dict[tuple[str, str], list[int]] = {}
    for index, path in enumerate(predictions.paths):
        key = patient_key(predictions.patient_ids[index]) if predictions.patient_ids else None
        images.setdefault(("image", path) if key is None else ("patient", key), []).append(index)
    if len(images) == len(predictions.paths):
        return None
    task, labels = predictions.asked, predictions.labels
    joined = {key: task.joined_label(labels[rows]) for key, rows in images.items()}
    kept = [key for key, label in joined.items() if label is not None]
    if not kept:
        return None
    names = tuple(name for _, name in kept)
    return PatientPredictions(
        predictions=Predictions(
            paths=names,
            labels=np.array([joined[key] for key in kept]),
            probabilities=np.stack([task.aggregate(predictions.probabilities[images[key]], how) for key in kept]),
            classes=predictions.classes,
            patient_ids=tuple(map(str, range(len(kept)))),  # a path could be the key of another one, or of a patient
            task=predictions.task,
        ),
        num_left_out=len(images) - len(kept),
    )
