"""What recovery sees: the images, and which views of them least squares looks at.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from twinbud.config.schema import RecoveryConfig, TrainingConfig
from twinbud.core.rng import numpy_stream
from twinbud.data.augment import Normalization, apply_views, draw_views
from twinbud.data.image_store import ImageSubset
from twinbud.recovery.least_squares import RefitBatch

_BATCH, _FOLDS = 64, 5
_BYTES_A_NUMBER = 20
"""What least squares are counted to hold for each number of the teacher's first residual stream, for any precision."""
_BYTES_HELD = {True: 17, False: 24}
"""What they do hold, in bf16 or not."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """What recovery sees.

    Attributes:
        images_NCSS: uint8 pixels, one channel or three: on ``device`` or, where they do not fit there, elsewhere.
        mean: Normalisation of the teacher's input, one number a channel, for pixels in [0, 1].
        std: Normalisation of the teacher's input.
        device: Where S trains.
    """

    images_NCSS: torch.Tensor | ImageSubset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.images_NCSS)


class RefitBatchPlan(NamedTuple):
    """A batch that least squares is to look at.

    Attributes:
        view: 0 for the images as they are.
        rows: (B,) int64 sample numbers.
        is_held_out: See ``RefitBatch``.
    """

    view: int
    rows: torch.Tensor
    is_held_out: bool


def plan_refit_batches(
    config: RecoveryConfig, training_config: TrainingConfig, num_images: int, num_numbers: int
) -> Iterator[RefitBatchPlan]:
    """The images as they are, then as they are augmented, while there is room; every fifth batch is held out.

    All views of an image fall in the same batch, and so on the same side.

    Args:
        config: Says how many views there may be, and what they may take of the memory.
        training_config: Its seed.
        num_images: N.
        num_numbers: How many numbers the teacher's residual stream has where it begins, for one view.
    """
    order = torch.from_numpy(numpy_stream("recovery", training_config.seed).permutation(num_images))
    room = int(config.recover_memory * 2**30) // (_BYTES_A_NUMBER * num_numbers)
    size = max(1, min(_BATCH, -(-num_images // _FOLDS), room // _FOLDS))
    room = max(room, _FOLDS * size)
    for view in range(config.recover_views):
        for number, rows in enumerate(order.split(size)):
            room -= len(rows)
            if room < 0:
                return
            yield RefitBatchPlan(view, rows, is_held_out=number % _FOLDS == 0)


def bytes_held(plans: Sequence[RefitBatchPlan], num_numbers: int, *, bf16: bool) -> int:
    """What least squares hold of all these views."""
    return sum(len(plan.rows) for plan in plans) * num_numbers * _BYTES_HELD[bf16]


def refit_batches(
    plans: Sequence[RefitBatchPlan], images: UnlabelledImages, training_config: TrainingConfig
) -> Iterator[RefitBatch]:
    """The batches themselves, one at a time, on the device of the images."""
    normalize = Normalization.on(images.device, images.mean, images.std)
    views = [
        draw_views(
            training_config.seed, -view, len(images), crop_scale=training_config.crop_scale, flip=training_config.flip
        )
        for view in range(max((plan.view for plan in plans), default=0) + 1)
    ]
    for view, rows, is_held_out in plans:
        pixels = images.images_NCSS[rows].to(images.device)
        seen = apply_views(pixels, views[view][rows].to(images.device)) if view else pixels
        yield RefitBatch(normalize(seen), is_held_out)
