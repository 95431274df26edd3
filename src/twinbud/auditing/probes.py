"""How well something that should not matter tells the class: the border of an image, or how its file was made.

A simple classifier is cross-validated, and so are its copies on shuffled labels: what these reach is chance. The
p-value is the share of labellings, the true one included, that reach as much. Folds do not depend on the labels, so
that no labelling has an advantage. Shuffling ends early where many shuffles reach as much (sequential Monte Carlo
p-values: Besag and Clifford 1991, Biometrika 78), and p-values are multiplied by the number of probes (Bonferroni).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from twinbud.auditing.facts import UNKNOWN, FileFacts
from twinbud.core.rng import numpy_stream

NUM_SHUFFLES = 199
"""Shuffles of the labels: with 199, the least p-value is 1 in 200, and 1 in 28 after correction for seven probes."""
MAX_P = 0.05
"""Largest corrected p-value of a suspicious probe."""
MIN_GROUPS = 10
"""Fewer patients, or groups of images, of a class are too few to judge."""
_MIN_EXCESS = 0.05
"""A suspicious probe is better than chance by at least this much: less would mislead no classifier."""
_MAX_EXCEEDED = 10
"""So many shuffles that reach as much end the shuffling."""
MAX_IMAGES = 2000
"""More images are sampled, in whole groups."""
_FOLDS = 5
_CELLS = 16
_RING = 2
"""The border: the outer 2 of 16 rows and columns of cells, an eighth of each side."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well one thing predicts the class by itself.

    Attributes:
        name: What is looked at.
        balanced_accuracy: Cross-validated, from 0 to 1; None where it cannot be measured.
        chance: Mean over shuffled labels.
        p_value: Share of the labellings, the true one included, that reach ``balanced_accuracy``.
        corrected_p_value: The same times the number of probes, at most 1; None before ``corrected``.
        reason: Why it cannot be measured.
    """

    name: str
    balanced_accuracy: float | None = None
    chance: float | None = None
    p_value: float | None = None
    corrected_p_value: float | None = None
    reason: str | None = None

    @property
    def is_suspicious(self) -> bool:
        """Whether it beats chance: by its corrected p-value, and by an amount that can mislead."""
        reached, chance, p_value = self.balanced_accuracy, self.chance, self.corrected_p_value
        if reached is None or chance is None or p_value is None:
            return False
        return p_value <= MAX_P and reached >= chance + _MIN_EXCESS

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self) | {"is_suspicious": self.is_suspicious}


def corrected(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Return the probes of one audit with p-values that are corrected for their number."""
    count = sum(probe.p_value is not None for probe in probes)
    return tuple(
        probe if probe.p_value is None else replace(probe, corrected_p_value=min(1.0, count * probe.p_value))
        for probe in probes
    )


def least_p_value(probes: Sequence[Probe]) -> float:
    """Return the least corrected p-value that a probe of an audit can have."""
    return min(1.0, sum(probe.p_value is not None for probe in probes) / (1 + NUM_SHUFFLES))


def border_probe(thumbnails: np.ndarray, labels: Sequence[str], groups: np.ndarray) -> Probe:
    """Tell the class from the border alone: burnt-in marks and text, frames, collimation, the field of view.

    Args:
        thumbnails: (N, S, S) uint8, S a multiple of 16.
        labels: The class of each image.
        groups: (N,) int; images of one group are in one fold.
    """
    side = thumbnails.shape[1] // _CELLS
    cells = thumbnails.reshape(-1, _CELLS, side, _CELLS, side)
    inner = np.zeros((_CELLS, _CELLS), bool)
    inner[_RING:-_RING, _RING:-_RING] = True
    pooled = [cells.mean((2, 4), dtype=np.float32), cells.max((2, 4)).astype(np.float32)]
    features = np.concatenate([values[:, ~inner] for values in pooled], axis=1)
    return _probe(
        "the border of the image",
        features,
        labels,
        groups,
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)),
    )


def metadata_probes(facts: Sequence[FileFacts], labels: Sequence[str], groups: np.ndarray) -> list[Probe]:
    """Tell the class from each property of the files by itself.

    Args:
        facts: Those of each image's file.
        labels: The class of each image.
        groups: (N,) int; images of one group are in one fold.
    """
    sizes = np.array([[fact.width, fact.height, fact.width / max(fact.height, 1)] for fact in facts], float)
    features = {"size": sizes}
    for name in ("mode", "format", "compression", "modality", "manufacturer"):
        values = [getattr(fact, name) for fact in facts]
        if set(values) != {UNKNOWN}:
            features[name] = np.unique(values, return_inverse=True)[1][:, None] == np.arange(len(set(values)))
    return [
        _probe(
            name,
            values,
            labels,
            groups,
            lambda: DecisionTreeClassifier(max_depth=4, min_samples_leaf=5, class_weight="balanced", random_state=0),
        )
        for name, values in features.items()
    ]


def _probe(
    name: str, features: np.ndarray, labels: Sequence[str], groups: np.ndarray, make: Callable[[], Any]
) -> Probe:
    """Measure one probe, on all images or on a sample of them."""
    targets = np.unique(labels, return_inverse=True)[1]
    rows = _sample(groups)
    features, targets, groups = features[rows], targets[rows], groups[rows]
    if (features == features[:1]).all():
        return Probe(name=name, reason="it is the same for all images")
    by_class = [len(set(groups[targets == label].tolist())) for label in np.unique(targets)]
    if len(by_class) < 2:
        return Probe(name=name, reason="there is one class only")
    if min(by_class) < MIN_GROUPS:
        reason = f"too few images to judge: a class has fewer than {MIN_GROUPS} patients or groups of images"
        return Probe(name=name, reason=reason)
    reached = _cross_validated(features, targets, groups, make)
    shuffled: list[float] = []
    while len(shuffled) < NUM_SHUFFLES and sum(value >= reached for value in shuffled) < _MAX_EXCEEDED:
        shuffled.append(_cross_validated(features, _shuffle(targets, groups, len(shuffled)), groups, make))
    exceeded = sum(value >= reached for value in shuffled)
    ended_early = exceeded == _MAX_EXCEEDED
    return Probe(
        name=name,
        balanced_accuracy=reached,
        chance=float(np.mean(shuffled)),
        p_value=exceeded / len(shuffled) if ended_early else (1 + exceeded) / (1 + NUM_SHUFFLES),
    )


def _cross_validated(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, make: Callable[[], Any]) -> float:
    predicted = np.full_like(targets, -1)
    fold = numpy_stream("audit", 0, "folds").permutation(int(groups.max()) + 1)[groups] % _FOLDS
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore")  # a fold without a class, or a fit that did not converge: both only lower it
        for number in range(_FOLDS):
            train, test = fold != number, fold == number
            if test.any() and len(np.unique(targets[train])) > 1:
                predicted[test] = make().fit(features[train], targets[train]).predict(features[test])
    recalls = [float((predicted[targets == label] == label).mean()) for label in np.unique(targets)]
    return sum(recalls) / len(recalls)


def _shuffle(targets: np.ndarray, groups: np.ndarray, number: int) -> np.ndarray:
    """Deal the labels out again, along the groups in another order, so that images of a group tend to share one."""
    order = numpy_stream("audit", 0, f"shuffle {number}").permutation(int(groups.max()) + 1)
    shuffled = np.empty_like(targets)
    shuffled[np.argsort(order[groups], kind="stable")] = targets[np.argsort(groups, kind="stable")]
    return shuffled


def _sample(groups: np.ndarray) -> np.ndarray:
    """Return the rows of whole groups, in a random order, up to ``MAX_IMAGES``; all rows if they are fewer."""
    if len(groups) <= MAX_IMAGES:
        return np.arange(len(groups))
    order = numpy_stream("audit", 0, "sample").permutation(int(groups.max()) + 1)
    ranked = np.argsort(order[groups], kind="stable")[:MAX_IMAGES]
    return np.sort(ranked)
