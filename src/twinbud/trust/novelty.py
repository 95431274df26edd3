"""Whether an image is unlike those that a network was made for: a distance in the space of its features.

The score is the squared Mahalanobis distance of the features, which the classifier reads, to the mean of the nearest
class, with one covariance for all classes (Lee et al., NeurIPS 2018), shrunk as Ledoit and Wolf (2004) do because the
labelled images are few. docs/trust.md compares it with energy, confidence and nearest neighbors.

Shape legend: N images, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom
from sklearn.covariance import LedoitWolf

from twinbud.core.errors import TwinbudError

_ACCEPTED_SHARE = 0.95
"""Share of the images like those of the training that a threshold accepts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Novelty:
    """Statistics of the features of labelled images.

    Attributes:
        means_CD: Mean of each class that has images, or of all images; float32, multiplied by ``whitening_DD``.
        whitening_DD: The inverse square root of the covariance of the features around their means; float32.

    Raises:
        ValueError: The shapes do not fit together, there is no mean, or a value is not finite.
    """

    means_CD: np.ndarray
    whitening_DD: np.ndarray

    def __post_init__(self) -> None:
        means, whitening = self.means_CD.shape, self.whitening_DD.shape
        if len(means) != 2 or means[0] < 1 or whitening != (means[1], means[1]):
            raise ValueError(f"means {means} and whitening {whitening} are not (C, D) and (D, D)")
        if not (np.isfinite(self.means_CD).all() and np.isfinite(self.whitening_DD).all()):
            raise ValueError("a value of means or whitening is NaN or infinite")

    def scores(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the squared distance of each image to the nearest mean: (N,) float64, at least 0.

        Raises:
            TwinbudError: The statistics are of another number of features.
        """
        if features_ND.shape[1] != len(self.whitening_DD):
            problem = f"it is of {len(self.whitening_DD)} features, but the network has {features_ND.shape[1]}"
            raise TwinbudError(problem, where="trust.safetensors", fix="Run: twinbud calibrate RUN --force")
        white_ND = features_ND.astype(np.float64) @ self.whitening_DD
        squared_NC = (
            (white_ND**2).sum(axis=1, keepdims=True)
            - 2 * white_ND @ self.means_CD.T.astype(np.float64)
            + (self.means_CD.astype(np.float64) ** 2).sum(axis=1)
        )
        return squared_NC.min(axis=1).clip(min=0)


def fit_novelty(features_ND: np.ndarray, targets: np.ndarray) -> Novelty:
    """Compute the statistics from the labelled images that a network has learned from.

    Args:
        features_ND: (N, D) float32, N at least 2.
        targets: (N,) class indices; of several labels an image (N, C), and then all images count as one class.
    """
    classes_N = targets if targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    found, class_N = np.unique(classes_N, return_inverse=True)
    features_ND = features_ND.astype(np.float64)
    means_CD = np.stack([features_ND[class_N == k].mean(axis=0) for k in range(len(found))])
    covariance_DD = LedoitWolf(assume_centered=True).fit(features_ND - means_CD[class_N]).covariance_
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    largest = max(float(values_D[-1]), np.finfo(np.float32).tiny)
    whitening_DD = vectors_DD / np.sqrt(np.maximum(values_D, 1e-6 * largest)) @ vectors_DD.T
    return Novelty(means_CD=(means_CD @ whitening_DD).astype(np.float32), whitening_DD=whitening_DD.astype(np.float32))


def novelty_threshold(scores_N: np.ndarray) -> float:
    """Return the score that 95 % of the images like these do not exceed.

    Args:
        scores_N: (N,) scores of images that the network has not learned from, N at least 1; with fewer than 19, the
            largest is taken.
    """
    return float(np.sort(scores_N)[_rank(len(scores_N)) - 1])


def expected_share(num_scores: int) -> float:
    """Return the share of new images like these that are expected beyond the threshold: at most 5 % from 19 scores on.

    >>> expected_share(19)
    0.05

    Args:
        num_scores: Number of scores that the threshold was chosen on.
    """
    return (num_scores + 1 - _rank(num_scores)) / (num_scores + 1)


def novelty_p_value(num_novel: int, num_images: int, num_scores: int) -> float:
    """Return the probability that so many new images like these, or more, are beyond the threshold.

    It is beta-binomial: which share of all images is beyond a threshold that was chosen on few is itself uncertain.

    Args:
        num_novel: Images beyond the threshold.
        num_images: All of them.
        num_scores: Number of scores that the threshold was chosen on.
    """
    rank = _rank(num_scores)
    return float(betabinom.sf(num_novel - 1, num_images, num_scores + 1 - rank, rank))


def _rank(num_scores: int) -> int:
    """Return which of the ordered scores, from 1 on, is the threshold."""
    return min(int(np.ceil(_ACCEPTED_SHARE * (num_scores + 1))), num_scores)
