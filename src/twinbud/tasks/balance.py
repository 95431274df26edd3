"""What ``--balance`` does about classes of different size: weights, a weighted sampler, or logit adjustment.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import numpy as np
import torch

from twinbud.config.task import Balance
from twinbud.core.rng import numpy_stream
from twinbud.tasks.base import UNBALANCED, Balancing, Task


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


def balance_loss(balance: Balance, task: Task, labels_N: torch.Tensor) -> Balancing:
    """Return what ``balance`` changes in the loss of the training images with ``labels_N``, on their device.

    A class without a training image has no prior: for logit adjustment it counts as one image.
    """
    labels_N, device = labels_N.cpu(), labels_N.device
    if balance == "weights":
        return Balancing(weights=class_weights(labels_N, len(task.classes))).to(device)
    if balance == "logit-adjusted":
        counts_C = torch.bincount(labels_N, minlength=len(task.classes)).clamp(min=1).double()
        return Balancing(shift=task.prior_logits(counts_C).float()).to(device)
    return UNBALANCED


def draw_balanced_samples(labels_N: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw N samples with replacement, so that in the mean each class occurs equally often.

    Args:
        labels_N: int64 class indices, on any device.
        seed: Seed of the stream ``sampler``.
        epoch: From 1.

    Returns:
        (N,) int64 sample numbers on the device of the labels; a pure function of labels, seed and epoch.
    """
    labels = labels_N.cpu().numpy()
    shares = 1.0 / np.bincount(labels)[labels]
    drawn = numpy_stream("sampler", seed, epoch).choice(len(labels), size=len(labels), p=shares / shares.sum())
    return torch.from_numpy(drawn.astype(np.int64)).to(labels_N.device)
