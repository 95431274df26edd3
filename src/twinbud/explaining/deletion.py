"""Deletion curves: does a prediction fall faster if pixels go in the order of its map than in an arbitrary order?

Pixels are removed in the order of the map (Petsiuk et al., RISE, BMVC 2018). Arbitrary orders come from the same map,
turned, mirrored and moved around the edges to another place: their spots are as large and as many, so that what is
compared is only where they are. Single pixels in random order are no such comparison: they are noise, which ruins a
prediction sooner than a hole.

Shape legend: C channels, S image side, h × w places of a map, M maps, F shares of removed pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

NUM_DRAWS = 19
"""Arbitrary orders an image. A map without meaning is ahead of all of them in 1 of 20 images."""
NUM_STEPS = 8
"""Points of a curve after the first, at equal shares of removed pixels, up to all of them."""
_BATCH = 64

Probability = Callable[[torch.Tensor], np.ndarray]
"""From normalized images (B, C, S, S) to the probability (B,) of the label that is explained."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Deletion:
    """How the probability of a label falls as pixels are removed.

    Attributes:
        curve: (F,) probabilities in the order of the map, from no pixel to all of them.
        random_curves: (M, F) probabilities in arbitrary orders.
    """

    curve: np.ndarray
    random_curves: np.ndarray

    @property
    def score(self) -> float:
        """The area between the mean of the arbitrary curves and that of the map, in [-1, 1]; positive is good.

        0 for a constant map, which has no other order to compare with.
        """
        return float(_area(self.random_curves).mean() - _area(self.curve)) if len(self.random_curves) else 0.0

    @property
    def share_beaten(self) -> float:
        """Share of the arbitrary orders whose area is larger than the map's, in [0, 1]; 0 where there is none."""
        return float((_area(self.random_curves) > _area(self.curve)).mean()) if len(self.random_curves) else 0.0

    @property
    def beats_random(self) -> bool:
        """Whether the map's area is smaller than that of every arbitrary order, of which there are enough."""
        return len(self.random_curves) == NUM_DRAWS and self.share_beaten == 1.0


def deletion(
    image_CSS: torch.Tensor, map_hw: torch.Tensor, probability: Probability, generator: np.random.Generator
) -> Deletion:
    """Compute the deletion curves of one image.

    Args:
        image_CSS: The normalized image; a removed pixel becomes 0, which is the mean of the training images' colors.
        map_hw: Its map.
        probability: Of the label that is explained.
        generator: Draws the arbitrary orders, and the order of places of equal value.
    """
    maps_Mhw = torch.stack([map_hw, *arbitrary_maps(map_hw, generator)])
    ranks_MSS = removal_order(maps_Mhw, image_CSS.shape[-1], generator)
    between_F = torch.linspace(0, 1, NUM_STEPS + 1)[1:-1]
    kept = (ranks_MSS[:, None] >= between_F[:, None, None]).flatten(0, 1)
    parts = [probability(image_CSS * part[:, None]) for part in kept.split(_BATCH)]
    ends = probability(torch.stack([image_CSS, torch.zeros_like(image_CSS)]))  # those of all orders
    between_MF = np.concatenate(parts).reshape(len(maps_Mhw), -1)
    curves_MF = np.insert(between_MF, [0, between_MF.shape[1]], ends, axis=1)
    return Deletion(curve=curves_MF[0], random_curves=curves_MF[1:])


def arbitrary_maps(map_hw: torch.Tensor, generator: np.random.Generator, limit: int = NUM_DRAWS) -> list[torch.Tensor]:
    """Draw different arrangements of a map: turned or mirrored, and moved around the edges.

    Args:
        map_hw: The map, square.
        generator: Draws them.
        limit: Largest number; a map of few places, or of few values, has fewer arrangements.
    """
    side = map_hw.shape[-1]
    found = {_key(map_hw): map_hw}
    for number in generator.permutation(8 * side * side):
        turns, mirrored, down, right = np.unravel_index(number, (4, 2, side, side))
        other = torch.rot90(map_hw.flip(0) if mirrored else map_hw, int(turns), (0, 1))
        other = other.roll((int(down), int(right)), (0, 1))
        found.setdefault(_key(other), other)
        if len(found) > limit:
            break
    return list(found.values())[1:]


def removal_order(maps_Mhw: torch.Tensor, image_size: int, generator: np.random.Generator) -> torch.Tensor:
    """Return the place of each pixel in the order of removal, (M, S, S) in [0, 1); the highest value of a map is first.

    Places of equal value, such as all where Grad-CAM is 0, are in random order.
    """
    noise_Mhw = torch.from_numpy(generator.random(maps_Mhw.shape))
    values, ties = (upsampled(part.double(), image_size).flatten(1).numpy() for part in (maps_Mhw, noise_Mhw))
    ranks = np.empty(values.shape)
    for row, (value, tie) in enumerate(zip(values, ties, strict=True)):
        ranks[row, np.lexsort((tie, -value))] = np.arange(value.size) / value.size
    return torch.from_numpy(ranks).unflatten(1, (image_size, image_size))


def upsampled(maps_Mhw: torch.Tensor, height: int, width: int | None = None) -> torch.Tensor:
    """Resize maps, bilinear, as (M, height, width); square without ``width``."""
    size = (height, height if width is None else width)
    return F.interpolate(maps_Mhw[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _key(map_hw: torch.Tensor) -> bytes:
    return map_hw.contiguous().numpy().tobytes()


def _area(curves: np.ndarray) -> np.ndarray:
    """Return the area below curves (…, F) over the shares from 0 to 1, by trapezoids."""
    return np.asarray(np.trapezoid(curves, dx=1 / (curves.shape[-1] - 1), axis=-1))
