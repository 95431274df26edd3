"""Which device, and whether bf16 autocast pays on it."""

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

_WORTHWHILE = 1.5
"""How much faster bf16 matrix products must be: below it, the casts around them eat the gain."""


@dataclass(frozen=True)
class PrecisionChoice:
    """What training computes in, and why."""

    bf16: bool
    reason: str

    @property
    def name(self) -> str:
        """``bf16`` or ``float32``."""
        return "bf16" if self.bf16 else "float32"


def choose_device(requested: Device) -> torch.device:
    """The device to train on.

    Raises:
        TwinbudError: A GPU was asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise TwinbudError("a CUDA device", got="none", where="--device cuda", fix="Use --device cpu")
    if requested == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # with its number, as tensors on it say it


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Compute with that many CPU threads for as long as this lasts; None: with as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_precision(requested: Precision, device: torch.device, so_far: str | None = None) -> PrecisionChoice:
    """float32 or bf16 autocast; ``auto`` takes bf16 where this machine multiplies matrices faster in it.

    Args:
        requested: The setting.
        device: Where training runs.
        so_far: What a run that goes on was computed in: ``auto`` keeps it, since a second measurement may disagree.
    """
    if requested != "auto":
        return PrecisionChoice(requested == "bf16", "asked for")
    if so_far in ("float32", "bf16"):
        return PrecisionChoice(so_far == "bf16", "as before the run was stopped")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return PrecisionChoice(native, f"the GPU {'has' if native else 'lacks'} bf16 units")
    ratio = _matrix_product_seconds(torch.float32) / _matrix_product_seconds(torch.bfloat16)
    return PrecisionChoice(ratio >= _WORTHWHILE, f"bf16 matrix products are {ratio:.1f} times as fast here")


@contextmanager
def suitable_attention(models: Iterable[nn.Module | None], device: torch.device, *, bf16: bool) -> Iterator[None]:
    """Write attention out while training in bf16 on a CPU, whose fused kernel has a backward pass five times as slow.

    The function is the same; only timm's choice of kernel is changed, and put back.
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


def _matrix_product_seconds(dtype: torch.dtype, repeats: int = 15) -> float:
    """Median seconds of a ViT-T's fc1 on a batch of 32 images at 112 px."""
    tokens, weight = torch.ones(2080, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(tokens, weight)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
