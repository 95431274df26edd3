"""Who stands beside whom: for every sample of an epoch, another one of its class (Yun et al., CVPR 2020).

Shape legend: N samples.
"""

from __future__ import annotations

import numpy as np
import torch

from twinbud.core.rng import numpy_stream


def draw_same_class_pairs(labels_N: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw, for each sample, one of the others of its class, each as likely; a sample alone in its class gets itself.

    Args:
        labels_N: int64 class indices, on the CPU.
        seed: Of the stream ``partner``.
        epoch: From 1.

    Returns:
        (N,) int64 sample numbers, on the CPU: a pure function of the labels and of (seed, epoch, sample).
    """
    labels = labels_N.numpy()
    by_class = np.argsort(labels, kind="stable")
    sorted_labels = labels[by_class]
    start = np.searchsorted(sorted_labels, labels, side="left")
    size = np.searchsorted(sorted_labels, labels, side="right") - start
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(labels))
    # a walk of 1 to size − 1 places around one's own class never ends where it began
    walk = 1 + np.floor(numpy_stream("partner", seed, epoch).random(len(labels)) * (size - 1)).astype(np.int64)
    return torch.from_numpy(by_class[start + (place - start + walk) % size])
