"""Choose the device and the precision of training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from twinbud.config.schema import Device, Precision
from twinbud.core.errors import TwinbudError

_MIN_SPEEDUP = 1.5
"""Minimum speed-up of bf16 matrix products at which bf16 is chosen; below it, casts cost more than it saves."""

SLOWER_IN_BF16 = "depthwise convolutions are slower in bf16 on a CPU"


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of training, and the reason for it."""

    bf16: bool
    reason: str

    @property
    def name(self) -> str:
        """``bf16`` or ``float32``."""
        return "bf16" if self.bf16 else "float32"


def choose_device(requested: Device) -> torch.device:
    """Return the device to train on.

    Raises:
        TwinbudError: ``requested`` is ``cuda`` and there is no CUDA device.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise TwinbudError("PyTorch finds no CUDA device", where="--device cuda", fix="Use --device cpu")
    if requested == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # with the index, as in ``Tensor.device``


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads within the context; None leaves it unchanged."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_precision(requested: Precision, device: torch.device, previous: str | None = None) -> PrecisionChoice:
    """Return float32 or bf16 autocast; ``auto`` selects bf16 if it is faster on this machine.

    Args:
        requested: The setting ``--precision``.
        device: The training device.
        previous: Precision of the run to resume; ``auto`` keeps it, since a new measurement may differ.
    """
    if requested != "auto":
        return PrecisionChoice(requested == "bf16", "requested")
    if previous in ("float32", "bf16"):
        return PrecisionChoice(previous == "bf16", "as before the run was stopped")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return PrecisionChoice(native, f"the GPU {'has' if native else 'lacks'} bf16 units")
    ratio = _matrix_product_seconds(torch.float32) / _matrix_product_seconds(torch.bfloat16)
    return PrecisionChoice(ratio >= _MIN_SPEEDUP, f"bf16 matrix products are {ratio:.2g} times as fast here")


@contextmanager
def unfused_attention_in_bf16(
    models: Iterable[nn.Module | None], device: torch.device, *, bf16: bool
) -> Iterator[None]:
    """Turn off fused attention in bf16 on a CPU, where the backward pass of the fused kernel is five times slower.

    The computed function is the same. timm's setting is restored when the context ends.
    """
    if not bf16 or device.type != "cpu":
        yield
        return
    blocks: list[Any] = [
        module for model in models if model for module in model.modules() if getattr(module, "fused_attn", False)
    ]
    for block in blocks:
        block.fused_attn = False
    try:
        yield
    finally:
        for block in blocks:
            block.fused_attn = True


def _matrix_product_seconds(dtype: torch.dtype) -> float:
    """Return the median seconds of the matrix product of a ViT-T's fc1 on a batch of 32 images at 112 px.

    The median of at most 15 products, of at least two. It ends after a tenth of a second: on a CPU without instructions
    for bf16, where one product takes thirty times as long as in float32, two tell enough.
    """
    tokens, weight = torch.ones(2080, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 15 and sum(seconds) < 0.1):
        start = time.perf_counter()
        torch.mm(tokens, weight)
        seconds.append(time.perf_counter() - start)
    return statistics.median_low(seconds)
