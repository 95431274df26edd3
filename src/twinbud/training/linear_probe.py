"""Logistic regression on the features of a pretrained network, which is not trained (``--method probe``).

The features are what the network's own classifier reads, so that the regression becomes that classifier and the model
folder opens with timm alone. Its strength is chosen by cross-validation on the labelled images.

Shape legend: N images, V views of each, M = V · N, D features, K classes, B batch, C channels, S image side.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError, first_few
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.rng import stream_seed
from twinbud.data.augment import apply_views
from twinbud.data.prefetch import prefetch
from twinbud.models.families.base import TimmModel
from twinbud.tasks.base import Task
from twinbud.tasks.single import SingleLabel
from twinbud.training.epoch_loop import History
from twinbud.training.epoch_plan import draw_training_views
from twinbud.training.fit import LabelledImages

_MAX_VIEWS, _MAX_ROWS = 8, 10_000
"""Of each labelled image, and of all of them together; every image has at least one view."""
STRENGTHS = tuple(10.0**power for power in range(-5, 1))
"""Candidates of scikit-learn's C, the inverse of the penalty, on standardized features."""
DEFAULT_STRENGTH = 0.01
"""C where cross-validation is not possible."""
NUM_FOLDS = 5
_MAX_ITERATIONS = 2000
_BATCH_SIZE = 64

Folds = list[tuple[np.ndarray, np.ndarray]]
"""Indices of the training and the validation part of each fold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearClassifier:
    """A linear classifier on features: logits = features · weightᵀ + bias.

    Attributes:
        weight_KD: float64.
        bias_K: float64.
        strength: scikit-learn's C.
        log_loss: Mean over the folds of the cross-validation; None without one.
    """

    weight_KD: np.ndarray
    bias_K: np.ndarray
    strength: float
    log_loss: float | None


def fit_probe(
    network: TimmModel,
    data: LabelledImages,
    config: TrainingConfig,
    *,
    groups_N: np.ndarray,
    class_names: tuple[str, ...],
    bf16: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> History:
    """Replace the classifier of a network by logistic regression on its features, in place.

    Args:
        network: A network whose classifier is one linear layer; nothing else of it changes.
        data: The labelled images, on the device of the network.
        config: Decides the augmentation of the views, and the seed.
        groups_N: Number of each image's group, such as its patient: no group is on both sides of a fold.
        class_names: K names, for errors and notes.
        bf16: Whether the network computes in bf16 autocast.
        stop_requested: Asked between batches.
        progress: Shows a bar, and a note on the strength.

    Returns:
        No epochs and no steps; the images whose features were computed, and the time.

    Raises:
        TwinbudError: A class has no labelled image.
        Stopped: A stop was requested; nothing is saved.
    """
    progress, start = progress or SilentProgress(), time.perf_counter()
    task = data.task or SingleLabel(class_names)
    labels_N = data.labels_N.cpu()
    counts_K = task.counts(labels_N).numpy()
    if not counts_K.all():
        absent = first_few(name for name, count in zip(class_names, counts_K, strict=True) if not count)
        problem = f"no image of {absent} is labelled, so that logistic regression cannot learn it"
        raise TwinbudError(problem, where="--method probe", fix="Use --subset stratified, or a larger --fraction")
    features_MD = probe_features(network, data, config, bf16=bf16, stop_requested=stop_requested, progress=progress)
    count = num_views(len(data))
    with threadpool_limits(torch.get_num_threads()):
        found = fit_classifier_of(
            task,
            features_MD,
            labels_N,
            np.tile(groups_N, count),
            config.seed,
            balanced=config.balance in ("weights", "sampler"),
            stop_requested=stop_requested,
        )
    if found.log_loss is None:
        choice = "the default: a class has too few labelled images or patients for cross-validation"
    else:
        choice = f"cross-validated log-loss {found.log_loss:.3f}"
    progress.note(f"logistic regression: C = {found.strength:g} ({choice})")
    classifier = network.get_classifier()
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(found.weight_KD))
        classifier.bias.copy_(torch.from_numpy(found.bias_K))
        if config.balance == "logit-adjusted":  # after the fit: the classifier is not trained further
            classifier.bias -= task.prior_logits(labels_N).to(classifier.bias)
    return History(num_images=len(features_MD), train_seconds=time.perf_counter() - start)


def num_views(num_images: int) -> int:
    """Return the views of each image: the image itself, and others as training would augment it."""
    return min(_MAX_VIEWS, max(1, _MAX_ROWS // num_images))


@torch.inference_mode()
def probe_features(
    network: TimmModel,
    data: LabelledImages,
    config: TrainingConfig,
    *,
    bf16: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Compute what the classifier of the network reads, view by view; the first view is not augmented.

    Returns:
        (M, D) float32: all images of the first view, then all of the next one.

    Raises:
        Stopped: A stop was requested.
    """
    network.eval()
    normalize = data.preprocessing.normalization(data.device)
    order = torch.arange(len(data), device=data.device).split(_BATCH_SIZE)
    found: list[torch.Tensor] = []
    count = num_views(len(data))
    with (progress or SilentProgress()).bar("computing features", count * len(order)) as advance:
        for number in range(count):
            views = draw_training_views(config, -number, len(data)).to(data.device)
            for rows, pixels_BCSS in zip(order, prefetch(data.images_NCSS, order, data.device), strict=True):
                _check_stop(stop_requested)
                images_BCSS = normalize(apply_views(pixels_BCSS, views[rows]) if number else pixels_BCSS)
                with torch.autocast(data.device.type, torch.bfloat16, enabled=bf16):
                    features_BD = network.forward_head(network.forward_features(images_BCSS), pre_logits=True)
                found.append(features_BD.float().cpu())
                advance(len(found))
    return torch.cat(found).numpy()


def _check_stop(stop_requested: Callable[[], bool]) -> None:
    if stop_requested():
        raise Stopped("stopped before the logistic regression ended; repeat the same command with --resume")


def fit_classifier_of(
    task: Task,
    features_MD: np.ndarray,
    targets_N: torch.Tensor,
    groups_M: np.ndarray,
    seed: int = 0,
    *,
    balanced: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> LinearClassifier:
    """Fit the logits of a task: one multinomial regression, or a binary one for each output.

    Args:
        task: What is asked of the images.
        features_MD: float32, V views of N images, view by view.
        targets_N: Targets of the images, on the CPU.
        groups_M: See ``fit_linear_classifier``, and likewise the others.
        seed: See there.
        balanced: See there.
        stop_requested: See there.

    Returns:
        The classifier. Of binary regressions, ``strength`` is the geometric mean and ``log_loss`` the mean.

    Raises:
        Stopped: A stop was requested.
    """
    count = len(features_MD) // len(targets_N)
    options: dict[str, Any] = {"balanced": balanced, "stop_requested": stop_requested}
    binary_NK = task.binary_targets(targets_N)
    if binary_NK is None:
        return fit_linear_classifier(features_MD, np.tile(targets_N.numpy(), count), groups_M, seed, **options)
    found: list[LinearClassifier] = []
    for target_M in np.tile(binary_NK.numpy(), (count, 1)).T:
        known_M = np.isfinite(target_M)
        labels = target_M[known_M].astype(np.int64)
        if labels.min(initial=1) == labels.max(initial=0) or not len(labels):
            found.append(_constant_classifier(labels, features_MD.shape[1]))
            continue
        found.append(fit_linear_classifier(features_MD[known_M], labels, groups_M[known_M], seed, **options))
    losses = [one.log_loss for one in found if one.log_loss is not None]
    return LinearClassifier(
        weight_KD=np.stack([one.weight_KD[1] - one.weight_KD[0] for one in found]),
        bias_K=np.array([one.bias_K[1] - one.bias_K[0] for one in found]),
        strength=float(np.exp(np.mean(np.log([one.strength for one in found])))),
        log_loss=float(np.mean(losses)) if losses else None,
    )


def _constant_classifier(labels_M: np.ndarray, num_features: int) -> LinearClassifier:
    """Return the classifier of labels of which all, or none, are 1: their log-odds, as if half an image were else."""
    log_odds = float(np.log((labels_M.sum() + 0.5) / ((labels_M == 0).sum() + 0.5)))
    bias_K = np.array([-log_odds, log_odds]) / 2
    return LinearClassifier(
        weight_KD=np.zeros((2, num_features)), bias_K=bias_K, strength=DEFAULT_STRENGTH, log_loss=None
    )


def fit_linear_classifier(
    features_MD: np.ndarray,
    labels_M: np.ndarray,
    groups_M: np.ndarray,
    seed: int = 0,
    *,
    balanced: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> LinearClassifier:
    """Fit multinomial logistic regression on standardized features.

    Args:
        features_MD: float32.
        labels_M: Class indices; every class from 0 to K − 1 occurs.
        groups_M: int; samples of one group are on one side of each fold.
        seed: Seed of the folds.
        balanced: Whether all classes count the same, however many samples they have.
        stop_requested: Asked before each regression.

    Raises:
        Stopped: A stop was requested.
    """
    strength, loss = DEFAULT_STRENGTH, None
    if folds := probe_folds(labels_M, groups_M, seed):
        losses = {
            candidate: _validation_loss(features_MD, labels_M, folds, candidate, balanced, stop_requested)
            for candidate in STRENGTHS
        }
        strength = min(losses, key=losses.__getitem__)
        loss = losses[strength]
    scaler, regression = _regression(features_MD, labels_M, strength, balanced)
    weight_KD, bias_K = regression.coef_, regression.intercept_
    if len(weight_KD) == 1:  # of two classes: the log-odds of the second
        weight_KD, bias_K = np.concatenate([-weight_KD, weight_KD]) / 2, np.concatenate([-bias_K, bias_K]) / 2
    scale_D, mean_D = np.asarray(scaler.scale_), np.asarray(scaler.mean_)
    weight_KD = weight_KD / scale_D
    return LinearClassifier(weight_KD=weight_KD, bias_K=bias_K - weight_KD @ mean_D, strength=strength, log_loss=loss)


def probe_folds(labels_M: np.ndarray, groups_M: np.ndarray, seed: int = 0) -> Folds:
    """Divide samples into stratified folds of whole groups; none if a class would be missing from a training part.

    Up to NUM_FOLDS folds, as many as the class with the fewest groups has groups.
    """
    fewest = min(len(set(groups_M[labels_M == label])) for label in np.unique(labels_M))
    if fewest < 2:
        return []
    splitter = StratifiedGroupKFold(
        min(NUM_FOLDS, fewest), shuffle=True, random_state=stream_seed("probe", seed) % 2**32
    )
    folds = [fold for fold in splitter.split(labels_M, labels_M, groups_M) if len(fold[1])]
    num_classes = len(set(labels_M))
    return folds if all(len(set(labels_M[train])) == num_classes for train, _ in folds) else []


def _validation_loss(
    features_MD: np.ndarray,
    labels_M: np.ndarray,
    folds: Folds,
    strength: float,
    balanced: bool,
    stop_requested: Callable[[], bool],
) -> float:
    """Return the mean log-loss over the folds."""
    losses = []
    for train, validation in folds:
        _check_stop(stop_requested)
        scaler, regression = _regression(features_MD[train], labels_M[train], strength, balanced)
        probabilities = regression.predict_proba(scaler.transform(features_MD[validation]))
        weights = compute_sample_weight("balanced", labels_M[validation]) if balanced else None
        classes = np.arange(labels_M.max() + 1)
        losses.append(log_loss(labels_M[validation], probabilities, labels=classes, sample_weight=weights))
    return float(np.mean(losses))


def _regression(
    features_MD: np.ndarray, labels_M: np.ndarray, strength: float, balanced: bool
) -> tuple[StandardScaler, LogisticRegression]:
    """Fit a scaler, and a regression on the scaled features."""
    weights = "balanced" if balanced else None
    scaler = StandardScaler()
    regression = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, class_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps, the rest changes little
        regression.fit(scaler.fit_transform(features_MD), labels_M)
    return scaler, regression
