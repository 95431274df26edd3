"""Divergences and class weights that tasks share, as pure functions.

Shape legend: N samples, B batch, C classes, K outputs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Convert logits of lower precision to float32; return others unchanged."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def softmax_divergence(
    student_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float, *, targets_are_probabilities: bool = False
) -> torch.Tensor:
    """Compute KL(p′ ‖ p) of softmax probabilities (eqs. 1-3 of arXiv 2508.20461): sum over classes, mean over B.

    Args:
        student_BK: Logits of the student, with gradient.
        targets_BK: Soft targets: logits, or probabilities; detached.
        temperature: τ > 0.
        targets_are_probabilities: Whether the targets are p′ itself, which may contain zeros, not logits.

    Returns:
        Scalar in the dtype of the logits.
    """
    log_p = F.log_softmax(student_BK / temperature, dim=1)
    if targets_are_probabilities:
        return F.kl_div(log_p, targets_BK.detach(), reduction="batchmean")
    log_p_auxiliary = F.log_softmax(targets_BK.detach() / temperature, dim=1)
    return F.kl_div(log_p, log_p_auxiliary, reduction="batchmean", log_target=True)


def binary_divergence(student_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute eqs. 1-3 for each output as a probability of its own: KL of two Bernoulli distributions, mean over B, K.

    Args:
        student_BK: Logits of the student, with gradient.
        targets_BK: Logits of the soft targets; detached.
        temperature: τ > 0.

    Returns:
        Scalar in the dtype of the logits.
    """
    student_BK, targets_BK = student_BK / temperature, targets_BK.detach() / temperature
    p_BK = torch.sigmoid(targets_BK)
    yes_BK = F.logsigmoid(targets_BK) - F.logsigmoid(student_BK)
    no_BK = F.logsigmoid(-targets_BK) - F.logsigmoid(-student_BK)
    return (p_BK * yes_BK + (1 - p_BK) * no_BK).mean()


def softmax_mean_logits(one_BK: torch.Tensor, other_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits whose softened softmax probabilities are the mean of those of two networks.

    softmax(z / τ) = (softmax(z_1 / τ) + softmax(z_2 / τ)) / 2, so z = τ log of the right side.

    Args:
        one_BK: Logits of one network.
        other_BK: Logits of the other.
        temperature: τ > 0.

    Returns:
        (B, K) logits, at least float32.
    """
    log_p_BK, log_q_BK = (
        F.log_softmax(at_least_float32(logits_BK) / temperature, dim=1) for logits_BK in (one_BK, other_BK)
    )
    return temperature * (torch.logaddexp(log_p_BK, log_q_BK) - math.log(2))


def binary_mean_logits(one_BK: torch.Tensor, other_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits whose softened sigmoid probabilities are the mean of those of two networks.

    Args:
        one_BK: Logits of one network.
        other_BK: Logits of the other.
        temperature: τ > 0.

    Returns:
        (B, K) logits, at least float32.
    """
    one_BK, other_BK = (at_least_float32(logits_BK) / temperature for logits_BK in (one_BK, other_BK))
    yes_BK = torch.logaddexp(F.logsigmoid(one_BK), F.logsigmoid(other_BK))
    no_BK = torch.logaddexp(F.logsigmoid(-one_BK), F.logsigmoid(-other_BK))
    return temperature * (yes_BK - no_BK)


def class_weights(labels_N: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the weight N / (C · images of the class) of each class, with which all classes count the same.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])

    Args:
        labels_N: int64 class indices.
        num_classes: C; a class without images has the weight 0, and C counts the classes that have some.

    Returns:
        (C,) float32; the mean over the images is 1.
    """
    counts_C = torch.bincount(labels_N, minlength=num_classes).double()
    weights_C = len(labels_N) / ((counts_C > 0).sum() * counts_C)
    return torch.where(counts_C > 0, weights_C, 0.0).float()


def f1_threshold(scores_N: np.ndarray, is_positive_N: np.ndarray) -> float:
    """Return the threshold with the highest F1.

    Of equally good ones it is 0.5 or, where that is none of them, the middle between the two scores around those that
    are nearest to 0.5: at a score, rounding would decide.

    >>> f1_threshold(np.array([0.125, 0.25, 0.375]), np.array([False, False, True]))
    0.3125

    Args:
        scores_N: Probabilities, float64.
        is_positive_N: bool.

    Returns:
        A sample is predicted positive if its score is at least the threshold, in [0, 1]; 0.5 without a positive sample.
    """
    if not is_positive_N.any():
        return 0.5
    values, place_N = np.unique(scores_N, return_inverse=True)
    totals = np.bincount(place_N, minlength=len(values))[::-1].cumsum()[::-1]
    hits = np.bincount(place_N, weights=is_positive_N, minlength=len(values))[::-1].cumsum()[::-1]
    f1 = 2 * hits / (totals + is_positive_N.sum())
    best = np.flatnonzero(np.isclose(f1, f1.max()))
    lower, upper = np.concatenate([[0.0], values])[best], values[best]  # all thresholds between them decide alike
    place = np.argmin(np.abs(np.clip(0.5, lower, upper) - 0.5))
    if lower[place] < 0.5 <= upper[place]:
        return 0.5
    return float((lower[place] + upper[place]) / 2)


def softmax_curvature(logits_BK: torch.Tensor, noise_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return a scalar whose gradient has as covariance the curvature of ``softmax_divergence`` where both agree.

    With p = softmax(z/τ) held fixed and standard normal noise ε, the gradient of Σ √p (z − p·z) ε has the covariance
    diag(p) − pᵀp, the Fisher information of p, for each image.
    """
    p_BK = (logits_BK.detach() / temperature).softmax(dim=1)
    centered_BK = logits_BK - (p_BK * logits_BK).sum(dim=1, keepdim=True)
    return (p_BK.sqrt() * centered_BK * noise_BK).sum()


def binary_curvature(logits_BK: torch.Tensor, noise_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the same for outputs that are compared one by one: the covariance is p (1 − p) with p = σ(z/τ)."""
    p_BK = (logits_BK.detach() / temperature).sigmoid()
    return ((p_BK * (1 - p_BK)).sqrt() * logits_BK * noise_BK).sum()
