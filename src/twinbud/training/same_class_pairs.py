"""Same-class pairs: for each sample of an epoch, another sample of its class (Yun et al., CVPR 2020).

Shape legend: N samples.
"""

from __future__ import annotations

import numpy as np
import torch

from twinbud.core.rng import numpy_stream


def draw_same_class_pairs(labels_N: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw for each sample another sample of its class, uniformly; the only sample of a class is paired with itself.

    Args:
        labels_N: int64 class indices, on the CPU.
        seed: Seed of the stream ``partner``.
        epoch: Epoch, from 1.

    Returns:
        (N,) int64 sample numbers on the CPU; they depend only on the labels, the seed and the epoch.
    """
    labels = labels_N.numpy()
    by_class = np.argsort(labels, kind="stable")
    sorted_labels = labels[by_class]
    start = np.searchsorted(sorted_labels, labels, side="left")
    size = np.searchsorted(sorted_labels, labels, side="right") - start
    position = np.empty_like(by_class)
    position[by_class] = np.arange(len(labels))
    # a cyclic shift by 1 to size − 1 positions within the class never returns the sample itself
    shift = 1 + np.floor(numpy_stream("partner", seed, epoch).random(len(labels)) * (size - 1)).astype(np.int64)
    return torch.from_numpy(by_class[start + (position - start + shift) % size])
