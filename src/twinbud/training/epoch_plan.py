"""What training does with the images of one epoch: order, augmentation and mixing, as pure functions of the seed.

Shape legend: N samples, B batch.
"""

from __future__ import annotations

import torch

from twinbud.config.schema import TrainingConfig
from twinbud.core.rng import numpy_stream
from twinbud.data.augment import Views, draw_views
from twinbud.data.mixing import Mixing, draw_mixing


def draw_training_views(config: TrainingConfig, epoch: int, num_samples: int) -> Views:
    """Draw the augmentation (one row for each of N samples, on the CPU) of an epoch, from 1; see ``draw_views``."""
    return draw_views(
        config.seed,
        epoch,
        num_samples,
        crop_scale=config.crop_scale,
        flip=config.flip,
        rotate=config.rotate,
        brightness=config.brightness,
        contrast=config.contrast,
        cutout=config.cutout,
    )


def draw_training_mixing(config: TrainingConfig, epoch: int, num_samples: int, device: torch.device) -> Mixing | None:
    """Draw mixup and CutMix of an epoch as the settings describe them; None without both. See ``draw_mixing``."""
    if not config.mixup and not config.cutmix:
        return None
    return draw_mixing(config.seed, epoch, num_samples, mixup=config.mixup, cutmix=config.cutmix).to(device)


def batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, device: torch.device | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the sample numbers of each batch of an epoch: a pure function of (seed, epoch).

    Args:
        num_samples: N.
        batch_size: B; the last batch may be smaller.
        seed: The run's seed.
        epoch: From 1.
        device: Device of the result; None for the CPU.

    Returns:
        (B,) int64 each, on ``device``; together a permutation of 0 to N - 1.
    """
    order = torch.from_numpy(numpy_stream("order", seed, epoch).permutation(num_samples))
    return order.to(device).split(batch_size)
