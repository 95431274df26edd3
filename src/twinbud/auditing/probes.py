"""How well something that should not matter tells the class: the border of an image, or how its file was made.

A simple classifier is cross-validated, and so are its copies on shuffled labels: what these reach is chance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from twinbud.auditing.facts import UNKNOWN, FileFacts
from twinbud.core.rng import numpy_stream

NUM_SHUFFLES = 19
"""Shuffles of the labels: with 19, the smallest p-value is 1 in 20."""
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
        chance_max: Largest over shuffled labels.
        p_value: Share of the labellings, the true one included, that reach ``balanced_accuracy``.
        reason: Why it cannot be measured.
    """

    name: str
    balanced_accuracy: float | None = None
    chance: float | None = None
    chance_max: float | None = None
    p_value: float | None = None
    reason: str | None = None

    @property
    def is_suspicious(self) -> bool:
        """Whether it beats chance: no shuffle reaches it, and it is 5 points above the best of them."""
        values = self.balanced_accuracy, self.chance_max
        return values[0] is not None and values[1] is not None and values[0] >= values[1] + 0.05

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self) | {"is_suspicious": self.is_suspicious}


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
    if len(by_class) < 2 or min(by_class) < _FOLDS:
        return Probe(name=name, reason=f"a class has fewer than {_FOLDS} patients or groups of images")
    reached = _cross_validated(features, targets, groups, make)
    shuffled = [
        _cross_validated(features, _shuffle(targets, groups, number), groups, make) for number in range(NUM_SHUFFLES)
    ]
    return Probe(
        name=name,
        balanced_accuracy=reached,
        chance=float(np.mean(shuffled)),
        chance_max=max(shuffled),
        p_value=(1 + sum(value >= reached for value in shuffled)) / (1 + NUM_SHUFFLES),
    )


def _cross_validated(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, make: Callable[[], Any]) -> float:
    predicted = np.empty_like(targets)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fold without a class, or a fit that did not converge: both only lower it
        for train, test in folds.split(features, targets, groups):
            predicted[test] = make().fit(features[train], targets[train]).predict(features[test])
        return float(balanced_accuracy_score(targets, predicted))


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
