"""How well probabilities and prediction sets hold on labelled images, with 95 % intervals.

Shape legend: N images, C classes, M decisions, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from twinbud.core.rng import numpy_stream
from twinbud.evaluation.bootstrap import Interval, bootstrap_weights, mean_of_defined, percentiles, ratio
from twinbud.evaluation.calibration import (
    NUM_CALIBRATION_BINS,
    ReliabilityBin,
    brier_per_image,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    reliability_bins,
)
from twinbud.evaluation.predictions import Predictions
from twinbud.trust.temperature import negative_log_likelihood

_NUM_CHANCE_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number, and its 95 % percentile bootstrap interval; None with a single unit, or if no replicate defines it."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well the probabilities of labelled images agree with what is true."""

    ece: Measured = field(metadata={"label": "Calibration error", "meaning": "15 bins of equal width"})
    """Expected calibration error in [0, 1], see ``expected_calibration_error``."""
    ece_adaptive: Measured = field(metadata={"label": "Adaptive", "meaning": "15 bins with equally many images"})
    """The same in bins with equally many decisions (Nguyen and O'Connor, EMNLP 2015)."""
    ece_classwise: Measured = field(
        metadata={"label": "Classwise", "meaning": "mean over the probabilities of classes"}
    )
    """Mean over the classes of the error of each class's own probability (Kull et al., NeurIPS 2019)."""
    nll: Measured = field(metadata={"label": "Negative log-likelihood", "meaning": "in nats; 0 is best"})
    """Mean negative log-likelihood of the images, or of the known labels where images have several, in nats."""
    brier: Measured = field(metadata={"label": "Brier score", "meaning": "squared error; 0 is best"})
    """Mean squared error of the probabilities, see ``brier_per_image``; of several labels, mean of the known ones."""
    ece_by_chance: float
    """``ece`` that would be measured on as many images if every probability were exactly right: the mean of 200 draws
    of labels from the probabilities. An error near it says nothing against the calibration."""
    ece_chance_limit: float
    """97.5 % of these draws have a smaller error."""
    reliability: tuple[ReliabilityBin, ...]
    """The 15 bins behind ``ece``."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often prediction sets contain the right class, and how large they are."""

    wanted: float
    """In (0, 1)."""
    covered: Measured
    """Share of the images whose set contains the right class, in [0, 1]."""
    per_class: Mapping[str, float | None]
    """The same share among the images of each class; None without images."""
    mean_size: float
    """Mean number of classes in a set."""
    sizes: tuple[int, ...]
    """Number of images with a set of 1, 2, … C classes."""


def measure_calibration(
    predictions: Predictions, unit_of_image: np.ndarray, *, num_bootstrap: int = 1000, seed: int = 0
) -> Calibration:
    """Measure the probabilities of labelled images.

    Args:
        predictions: N images with labels.
        unit_of_image: (N,) index of each image's bootstrap unit.
        num_bootstrap: Number of replicates.
        seed: Seed of the random stream "bootstrap".
    """
    decisions = _decisions(predictions)
    image_M, probability_M, is_true_M, class_M = decisions
    image_P, confidence_P, is_right_P = _confident(predictions, decisions)
    num_images = len(predictions.paths)
    errors = {
        "ece": _BinnedError(image_P, confidence_P, is_right_P, equal_width_bins(confidence_P)),
        "ece_adaptive": _BinnedError(image_P, confidence_P, is_right_P, equal_mass_bins(confidence_P)),
    }
    of_classes = [
        _BinnedError(image_M[here], probability_M[here], is_true_M[here], equal_width_bins(probability_M[here]))
        for here in (class_M == k for k in range(len(predictions.classes)))
        if here.any()
    ]
    losses = _losses(predictions, decisions)

    def values(weights_RN: np.ndarray) -> dict[str, np.ndarray]:
        classwise = [error.of(weights_RN) for error in of_classes]
        weights_RP = weights_RN[:, image_P]
        total_R = weights_RP.sum(axis=1)
        return {
            **{name: error.of(weights_RN) for name, error in errors.items()},
            "ece_classwise": mean_of_defined(np.stack(classwise, axis=1))
            if classwise
            else np.full(len(weights_RN), np.nan),
            **{name: ratio(weights_RP @ losses_P, total_R) for name, losses_P in losses.items()},
        }

    point = {name: float(array[0]) for name, array in values(np.ones((1, num_images))).items()}
    size = max(num_images, len(image_P), NUM_CALIBRATION_BINS)
    blocks = [values(weights) for weights in bootstrap_weights(unit_of_image, num_bootstrap, size, seed)]
    intervals = {
        name: percentiles(np.concatenate([block[name] for block in blocks])) if blocks else None for name in point
    }
    chance = _chance_errors(confidence_P, seed)
    return Calibration(
        **{name: Measured(value=value, interval=intervals[name]) for name, value in point.items()},
        ece_by_chance=float(chance.mean()),
        ece_chance_limit=float(np.percentile(chance, 97.5)),
        reliability=reliability_bins(confidence_P, is_right_P),
    )


def measure_coverage(
    predictions: Predictions, unit_of_image: np.ndarray, wanted: float, *, num_bootstrap: int = 1000, seed: int = 0
) -> Coverage:
    """Measure the prediction sets of images with one label each.

    Args:
        predictions: N images with labels and sets.
        unit_of_image: (N,) index of each image's bootstrap unit.
        wanted: The coverage that the sets were made for.
        num_bootstrap: Number of replicates.
        seed: Seed of the random stream "bootstrap".
    """
    assert predictions.labels is not None
    assert predictions.sets is not None
    labels, sizes_N = predictions.labels, predictions.sets.sum(axis=1)
    covered_N = predictions.sets[np.arange(len(labels)), labels]
    blocks = [
        weights @ covered_N / weights.sum(axis=1)
        for weights in bootstrap_weights(unit_of_image, num_bootstrap, len(labels), seed)
    ]
    return Coverage(
        wanted=wanted,
        covered=Measured(
            value=float(covered_N.mean()), interval=percentiles(np.concatenate(blocks)) if blocks else None
        ),
        per_class={
            name: float(covered_N[labels == k].mean()) if (labels == k).any() else None
            for k, name in enumerate(predictions.classes)
        },
        mean_size=float(sizes_N.mean()),
        sizes=tuple(int((sizes_N == size).sum()) for size in range(1, len(predictions.classes) + 1)),
    )


class _BinnedError:
    """An expected calibration error under any weights of the images; its bins stay those of all images."""

    def __init__(
        self, image_M: np.ndarray, probability_M: np.ndarray, is_true_M: np.ndarray, bin_M: np.ndarray
    ) -> None:
        self.image_M = image_M
        self.gaps = np.zeros((len(bin_M), NUM_CALIBRATION_BINS))
        self.gaps[np.arange(len(bin_M)), bin_M] = is_true_M - probability_M

    def of(self, weights_RN: np.ndarray) -> np.ndarray:
        weights_RM = weights_RN[:, self.image_M]
        return ratio(np.abs(weights_RM @ self.gaps).sum(axis=1), weights_RM.sum(axis=1))


def _decisions(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image, probability, truth and class of each known pair of image and class."""
    num_images, num_classes = predictions.probabilities.shape
    labels = predictions.labels
    assert labels is not None
    truth_NC = np.eye(num_classes)[labels] if predictions.asked.is_exclusive else labels.astype(np.float64)
    known_NC = ~np.isnan(truth_NC)
    image_NC, class_NC = np.indices((num_images, num_classes))
    return (
        image_NC[known_NC],
        predictions.probabilities[known_NC],
        truth_NC[known_NC] == 1,
        class_NC[known_NC],
    )


def _confident(
    predictions: Predictions, decisions: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, confidence and correctness of each prediction: one an image, or one a known label.

    A known label counts as predicted from a probability of 0.5 on, as in ``EvaluationMetrics.ece``.
    """
    if predictions.asked.is_exclusive:
        is_right_N = predictions.predicted == predictions.labels
        return np.arange(len(is_right_N)), predictions.confidence, is_right_N
    image_M, probability_M, is_true_M, _ = decisions
    is_likely_M = probability_M >= 0.5
    return image_M, np.where(is_likely_M, probability_M, 1 - probability_M), is_likely_M == is_true_M


def _losses(
    predictions: Predictions, decisions: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return negative log-likelihood and squared error of each image, summed over classes, or of each known label."""
    task, labels, probabilities_NC = predictions.asked, predictions.labels, predictions.probabilities
    assert labels is not None
    if task.is_exclusive:
        likelihoods = negative_log_likelihood(task, probabilities_NC, labels)
        return {"nll": likelihoods, "brier": brier_per_image(labels, probabilities_NC)}
    _, probability_M, is_true_M, _ = decisions
    likelihoods = negative_log_likelihood(task, probability_M[:, None], is_true_M[:, None].astype(np.float64))
    return {"nll": likelihoods, "brier": (probability_M - is_true_M) ** 2}


def _chance_errors(confidence_P: np.ndarray, seed: int) -> np.ndarray:
    """Return the errors of 200 draws in which each prediction is right with the probability that it states."""
    random = numpy_stream("trust", seed, "chance")
    draws = random.random((_NUM_CHANCE_DRAWS, len(confidence_P))) < confidence_P
    return np.array([expected_calibration_error(confidence_P, is_right_P) for is_right_P in draws])
