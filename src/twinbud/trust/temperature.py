"""Temperature scaling: one number that makes probabilities agree with accuracy (Guo et al., ICML 2017, section 4.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from twinbud.tasks.base import Task

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 0.2, 20.0
"""Beyond these, probabilities are all but 0 and 1, or all but equal."""
_TINY = 1e-12


def fit_temperature(task: Task, logits_NK: np.ndarray, labels: np.ndarray, weights_N: np.ndarray) -> float:
    """Return the temperature T > 0 with the smallest negative log-likelihood of logits / T.

    Args:
        task: Turns logits into probabilities.
        logits_NK: (N, K) float32 logits of images that the network has not learned from.
        labels: Their targets, see ``Task.encode``.
        weights_N: (N,) non-negative weights of the images, at least one positive.

    Returns:
        T in [0.2, 20]. It never changes the order of the classes.
    """

    def loss(log_temperature: float) -> float:
        probabilities_NC = task.probabilities(logits_NK / np.float32(math.exp(log_temperature)))
        return float(np.average(negative_log_likelihood(task, probabilities_NC, labels), weights=weights_N))

    bounds = (math.log(SMALLEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def negative_log_likelihood(task: Task, probabilities_NC: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of each image's label, in nats: (N,) float64.

    Of several labels an image, it is the mean over its known labels; 0 without any.
    """
    if task.is_exclusive:
        return -np.log(np.maximum(probabilities_NC[np.arange(len(labels)), labels], _TINY))
    shows, is_known = labels == 1, ~np.isnan(labels)
    likelihood_NC = np.where(shows, probabilities_NC, 1 - probabilities_NC)
    losses_NC = np.where(is_known, -np.log(np.maximum(likelihood_NC, _TINY)), 0.0)
    return losses_NC.sum(axis=1) / np.maximum(is_known.sum(axis=1), 1)
