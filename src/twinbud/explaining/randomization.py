"""Do maps depend on what the network has learned? Those of a network with random weights tell (Adebayo et al., 2018).

"Sanity Checks for Saliency Maps", NeurIPS 2018: a map that is the same for random weights shows the image, such as its
edges, and not the network. The random network has the same weights in another order within each tensor, so that their
size and spread stay.

Shape legend: N images, S image side, h × w places of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import TimmModel

MIN_MARGIN = 0.2
"""How far the likeness to maps of random weights has to stay below the stability; see docs/explaining.md."""
MAX_IMAGES = 8
"""Images that are looked at, the first ones."""
NUM_NETWORKS = 3
"""Random networks."""
NOISE_LEVELS = 2
"""Standard deviation of the noise that stability is measured with, in gray levels of 256: nobody sees it."""
_STABLE = 0.5
"""Stability from which a failure is not that of the noise."""

ModelProblem = Literal["does not depend on the weights", "changes with invisible noise"]
MapsOf = Callable[[TimmModel, torch.Tensor], torch.Tensor]
"""From a network and normalized images (N, 3, S, S) to their maps (N, h, w)."""


@dataclass(frozen=True, kw_only=True)
class WeightCheck:
    """Rank correlations between maps, means over the images, each in [-1, 1].

    Attributes:
        stability: Of the map of an image with that of the same image with a little noise.
        likeness: Of the map of the network with that of networks with random weights, without its sign.
        num_images: Images looked at.
    """

    stability: float
    likeness: float
    num_images: int

    @property
    def problem(self) -> ModelProblem | None:
        """Why no map of the network means anything; None if the maps passed."""
        if self.stability - self.likeness >= MIN_MARGIN:
            return None
        return "does not depend on the weights" if self.stability >= _STABLE else "changes with invisible noise"

    @property
    def passed(self) -> bool:
        """Whether the maps depend on the weights, and more than on noise."""
        return self.problem is None

    @property
    def sentence(self) -> str:
        """Say what was found."""
        of = f"rank correlation with maps of random weights {self.likeness:.2f}, with noise {self.stability:.2f}"
        verdict = "depends on the weights" if self.problem is None else self.problem
        return f"a map {verdict} ({of}, {self.num_images} {'image' if self.num_images == 1 else 'images'})"


def check_weights(
    model: TimmModel, images_NCSS: torch.Tensor, maps_of: MapsOf, noise_deviation: torch.Tensor | float = 0.03
) -> WeightCheck:
    """Compare the maps of a network with those of networks with random weights, on the first few images.

    Args:
        model: Classifier in evaluation mode; it is not changed.
        images_NCSS: Normalized images.
        maps_of: The kind of map.
        noise_deviation: Standard deviation of the noise, in units of the normalized images; of all, or (3, 1, 1).
    """
    images = images_NCSS[:MAX_IMAGES]
    maps = maps_of(model, images)
    noise = torch.from_numpy(numpy_stream("explanation", 0, "noise").standard_normal(images.shape)).to(images)
    stability = _rank_correlations(maps, maps_of(model, images + noise_deviation * noise))
    likenesses = [
        np.abs(_rank_correlations(maps, maps_of(with_random_weights(model, images, number), images)))
        for number in range(NUM_NETWORKS)
    ]
    return WeightCheck(stability=float(stability.mean()), likeness=float(np.mean(likenesses)), num_images=len(images))


def with_random_weights(model: TimmModel, images_NCSS: torch.Tensor, number: int) -> TimmModel:
    """Copy a network with the values of each weight in random order.

    Args:
        model: The network.
        images_NCSS: Normalized images; batch norms get their statistics, without which the signal would vanish.
        number: Which random network.
    """
    generator = numpy_stream("explanation", 0, "weights", number)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weights in other.parameters():
            order = torch.from_numpy(generator.permutation(weights.numel()))
            weights.copy_(weights.flatten()[order].view_as(weights))
        norms = [module for module in other.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        if norms:
            other(torch.cat([images_NCSS, images_NCSS.flip(3)]))  # two images at least
        for norm in norms:
            norm.eval()
    return other


def _rank_correlations(maps_Nhw: torch.Tensor, others_Nhw: torch.Tensor) -> np.ndarray:
    """Return Spearman's correlation of each two maps, (N,); 0 where one of them is constant or not finite."""
    found = np.zeros(len(maps_Nhw))
    for row, (one, other) in enumerate(zip(maps_Nhw.flatten(1).numpy(), others_Nhw.flatten(1).numpy(), strict=True)):
        if np.isfinite(other).all() and np.ptp(one) > 0 and np.ptp(other) > 0:
            found[row] = np.corrcoef(rankdata(one), rankdata(other))[0, 1]
    return found
