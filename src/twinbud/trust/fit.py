"""Choose everything that ``trust.json`` holds, on images that the network has not learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinbud.evaluation.bootstrap import bootstrap_units
from twinbud.evaluation.predictions import Predictions
from twinbud.trust.conformal import fit_prediction_sets
from twinbud.trust.novelty import novelty_threshold
from twinbud.trust.operating_points import choose_points
from twinbud.trust.record import Source, Trust, with_temperature
from twinbud.trust.report import against_rest
from twinbud.trust.temperature import fit_temperature


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of prediction sets.

    Attributes:
        coverage: Probability, in (0, 1), with which a set contains the right class.
        per_class: Whether this is to hold for the images of each class.
    """

    coverage: float
    per_class: bool


def fit_trust(
    examples: Predictions,
    novelty_N: np.ndarray,
    wanted: Wanted,
    *,
    source: Source,
    num_folds: int | None,
    weights_sha256: str,
) -> Trust:
    """Choose temperature, prediction sets, operating points and the threshold of novelty.

    Args:
        examples: Predictions with labels and logits of N images, by models that have not learned from them.
        novelty_N: (N,) novelty scores of the same models.
        wanted: What is asked of prediction sets.
        source: Which images these are.
        num_folds: Number of models; None for the delivered one.
        weights_sha256: Checksum of the delivered weights.

    Returns:
        The trust, not yet checked against shifts.

    Raises:
        TwinbudError: There are too few images for the coverage.
    """
    task, labels, logits_NK = examples.asked, examples.labels, examples.logits
    _, patients_N = bootstrap_units(examples)
    assert labels is not None
    assert logits_NK is not None
    weights_N = 1 / np.bincount(patients_N)[patients_N]
    temperature = fit_temperature(task, logits_NK, labels, weights_N)
    calibrated = with_temperature(examples, temperature)
    sets = None
    if task.is_exclusive:
        sets = fit_prediction_sets(calibrated.probabilities, labels, patients_N, classes=task.classes, **vars(wanted))
    points = {}
    for k, name in enumerate(task.classes):
        probability_N, is_positive_N, is_known_N = against_rest(calibrated, k)
        points[name] = choose_points(is_positive_N[is_known_N], probability_N[is_known_N])
    return Trust(
        weights_sha256=weights_sha256,
        source=source,
        num_images=len(labels),
        num_patients=len(np.unique(patients_N)),
        num_folds=num_folds,
        temperature=temperature,
        sets=sets,
        points=points,
        novelty_threshold=novelty_threshold(novelty_N),
        shifts={},
    )
