"""Batches of images on the device, from wherever the images live.

Shape legend: N images, B batch, C channels, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from twinbud.data.image_store import ImageSubset


def prefetch(
    images_NCSS: torch.Tensor | ImageSubset, order: Sequence[torch.Tensor], device: torch.device
) -> Iterator[torch.Tensor]:
    """The batches of an epoch, one after another.

    Images that are not on ``device`` are fetched by a thread, one batch ahead of the one in use, and sent over while
    the device works.

    Args:
        images_NCSS: uint8 pixels, on the device or elsewhere.
        order: For each batch the int64 numbers (B,) of its images, on the device for images that are there.
        device: Where they are wanted.

    Yields:
        (B, C, S, S) uint8 on the device.
    """
    if isinstance(images_NCSS, torch.Tensor) and images_NCSS.device == torch.empty(0, device=device).device:
        for rows_B in order:
            yield images_NCSS[rows_B]
        return

    def fetch(rows_B: torch.Tensor) -> torch.Tensor:
        batch = images_NCSS[rows_B.cpu()]
        return batch.pin_memory() if device.type == "cuda" else batch

    with ThreadPoolExecutor(1, thread_name_prefix="supply") as pool:
        ahead = pool.submit(fetch, order[0]) if order else None
        for following in [*order[1:], None]:
            if ahead is None:
                return
            batch = ahead.result()
            ahead = None if following is None else pool.submit(fetch, following)
            yield batch.to(device, non_blocking=True)
