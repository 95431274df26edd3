"""Batches of images on the device, fetched one batch ahead.

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
    """Yield the batches of an epoch.

    If the images are not on ``device``, a thread fetches each batch while the device works on the one before it.

    Args:
        images_NCSS: uint8 pixels, on the device or elsewhere.
        order: For each batch the int64 indices (B,) of its images, on the device if the images are.
        device: Device of the batches.

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

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead = pool.submit(fetch, order[0]) if order else None
        for following in [*order[1:], None]:
            if ahead is None:
                return
            batch = ahead.result()
            ahead = None if following is None else pool.submit(fetch, following)
            yield batch.to(device, non_blocking=True)
