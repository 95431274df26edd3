"""What is known of an image's map: what it explains, its values, and whether it passed the checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from twinbud.data.index import IgnoredFile
from twinbud.explaining.deletion import Deletion
from twinbud.explaining.randomization import ModelProblem, WeightCheck

MapKind = Literal["grad-cam", "rollout"]
Verdict = Literal[
    "explains",
    "no better than arbitrary places",
    "empty",
    "too coarse to judge",
    "does not depend on the weights",
    "changes with invisible noise",
]
KIND_NAMES: dict[MapKind, str] = {"grad-cam": "Grad-CAM", "rollout": "Attention rollout"}
FAILED = "this map does not explain the prediction"
"""The first words of what stands beside a map that did not pass."""
MIN_PLACES = 3
"""Smallest side of a map of which places can be compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The map of one image.

    Attributes:
        path: The image, as it was given or as the run's ``split.csv`` names it.
        prediction: What the model predicts; of several labels their text.
        label: The label that is explained.
        probability: Its probability, in [0, 1].
        map: (h, w) float32 in [0, 1], at the resolution of the network's layer.
        deletion: What the removal of pixels does to the probability.
        model_problem: Why no map of the network means anything; None if its maps passed the check with random weights.
        true_label: The image's own label, if it is known.
    """

    path: str
    prediction: str
    label: str
    probability: float
    map: np.ndarray
    deletion: Deletion
    model_problem: ModelProblem | None
    true_label: str | None = None

    @property
    def verdict(self) -> Verdict:
        """What the checks say of the map."""
        if self.model_problem is not None:
            return self.model_problem
        if not self.map.any():
            return "empty"
        if min(self.map.shape) < MIN_PLACES:
            return "too coarse to judge"
        return "explains" if self.deletion.beats_random else "no better than arbitrary places"

    @property
    def holds(self) -> bool:
        """Whether the map passed all checks."""
        return self.verdict == "explains"

    @property
    def warning(self) -> str | None:
        """What has to stand beside the map if it did not pass; None if it did."""
        return None if self.holds else f"{FAILED} ({self.verdict})"


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """The result of ``twinbud.explain``.

    Attributes:
        explanations: One an image, in the order of the images.
        kind: How the maps are made.
        weight_check: Whether they depend on what the network has learned.
        ignored: Images that were left out, each with the reason.
        folder: What was written, if anything was.
    """

    explanations: tuple[Explanation, ...]
    kind: MapKind
    weight_check: WeightCheck
    ignored: tuple[IgnoredFile, ...] = ()
    folder: Path | None = None

    @property
    def num_holding(self) -> int:
        """Number of maps that passed all checks."""
        return sum(each.holds for each in self.explanations)

    @property
    def summary(self) -> str:
        """Say in a sentence how many maps passed."""
        return f"{self.num_holding} of {len(self.explanations)} maps explain the prediction"
