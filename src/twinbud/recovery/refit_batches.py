"""The views of the images that the least-squares refit uses.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import TrainingConfig
from twinbud.core.rng import numpy_stream
from twinbud.data.augment import apply_views
from twinbud.data.mixing import mix_images
from twinbud.recovery.least_squares import RefitBatch
from twinbud.training.epoch_plan import draw_training_mixing, draw_training_views
from twinbud.training.unlabelled import UnlabelledImages

_BATCH, _FOLDS = 64, 5
_BYTES_PER_ELEMENT = 20
"""Memory that is reserved per element of the teacher's first residual stream, in any precision."""
_BYTES_HELD = {True: 12, False: 16}
"""Memory that least squares really needs per element, in bf16 or not."""


class RefitBatchPlan(NamedTuple):
    """A batch that least squares will use.

    Attributes:
        view: 0 for the images without augmentation.
        rows: (B,) int64 sample numbers.
        is_held_out: See ``RefitBatch``.
    """

    view: int
    rows: torch.Tensor
    is_held_out: bool


def plan_refit_batches(
    config: RecoveryConfig, training_config: TrainingConfig, num_images: int, num_elements: int
) -> Iterator[RefitBatchPlan]:
    """Plan batches within the memory limit: the images without augmentation first, then augmented views.

    Every fifth batch is held out. All views of an image are in batches of the same number, so that no image is both
    fitted to and held out.

    Args:
        config: Gives the largest number of views per image and the memory limit in GiB.
        training_config: Gives the seed.
        num_images: N.
        num_elements: Elements of the teacher's first residual stream for one view.
    """
    order = torch.from_numpy(numpy_stream("recovery", training_config.seed).permutation(num_images))
    room = int(config.recover_memory * 2**30) // (_BYTES_PER_ELEMENT * num_elements)
    size = max(1, min(_BATCH, -(-num_images // _FOLDS), room // _FOLDS))
    room = max(room, _FOLDS * size)
    for view in range(config.recover_views):
        for number, rows in enumerate(order.split(size)):
            room -= len(rows)
            if room < 0:
                return
            yield RefitBatchPlan(view, rows, is_held_out=number % _FOLDS == 0)


def bytes_needed(plans: Sequence[RefitBatchPlan], num_elements: int, *, bf16: bool) -> int:
    """Return the memory in bytes that least squares needs for all these views."""
    return sum(len(plan.rows) for plan in plans) * num_elements * _BYTES_HELD[bf16]


def refit_batches(
    plans: Sequence[RefitBatchPlan], images: UnlabelledImages, training_config: TrainingConfig
) -> Iterator[RefitBatch]:
    """Yield the planned batches one at a time, on the device of the images.

    All views but the first are augmented, and mixed within their batch, as the settings describe it for training.
    """
    num_images, device = len(images), images.device
    normalize = images.preprocessing.normalization(device)
    drawn = [
        (
            draw_training_views(training_config, -view, num_images),
            draw_training_mixing(training_config, -view, num_images, device),
        )
        for view in range(max((plan.view for plan in plans), default=0) + 1)
    ]
    for view, rows, is_held_out in plans:
        images_BCSS = images.images_NCSS[rows].to(device)
        if not view:
            yield RefitBatch(normalize(images_BCSS), is_held_out)
            continue
        views, mixing = drawn[view]
        images_BCSS = normalize(apply_views(images_BCSS, views[rows].to(device)))
        if mixing is not None:
            images_BCSS = mix_images(images_BCSS, mixing[rows])
        yield RefitBatch(images_BCSS, is_held_out)
