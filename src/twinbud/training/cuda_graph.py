"""Capture of a function in a CUDA graph, which launches hundreds of kernels with one call of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import torch

R = TypeVar("R")
_NUM_WARMUP_CALLS = 3
"""Eager calls per shape before capture: libraries select kernels and the optimizer allocates its moments."""


class RecordedFunction(Generic[R]):
    """Function of CUDA tensors that is captured in a CUDA graph once per combination of argument shapes.

    The first calls with new shapes are eager; later calls replay the graph. Every call executes the function exactly
    once. The next call overwrites the returned tensors.

    Args:
        function: May read and modify tensors at fixed device addresses; must not synchronize with the device.
    """

    def __init__(self, function: Callable[..., R]) -> None:
        self.function = function
        self.calls: dict[tuple[torch.Size, ...], int] = {}
        self.recorded: dict[tuple[torch.Size, ...], _Recorded[R]] = {}
        self.stream = _capture_stream(torch.cuda.current_device())

    def __call__(self, *tensors: torch.Tensor) -> R:
        """Return the result of ``function(*tensors)``."""
        shapes = tuple(tensor.shape for tensor in tensors)
        calls = self.calls[shapes] = self.calls.get(shapes, 0) + 1
        if calls <= _NUM_WARMUP_CALLS:
            return self._call_eagerly(tensors)
        if shapes not in self.recorded:
            self.recorded[shapes] = self._record(tensors)
        recorded = self.recorded[shapes]
        for static, tensor in zip(recorded.arguments, tensors, strict=True):
            static.copy_(tensor)
        recorded.graph.replay()
        return recorded.result

    def _call_eagerly(self, tensors: tuple[torch.Tensor, ...]) -> R:
        """Call the function on the capture stream, as PyTorch requires before a capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self, tensors: tuple[torch.Tensor, ...]) -> _Recorded[R]:
        arguments = tuple(tensor.clone() for tensor in tensors)
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self.recorded.values()), None)
        # another thread may prefetch the next batch at the same time, which the graph must not contain
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self.function(*arguments)
        return _Recorded(graph, arguments, result)


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """Return the capture stream of the process: every new stream keeps 65 MiB, probably cuBLAS workspaces."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True, eq=False)
class _Recorded(Generic[R]):
    graph: torch.cuda.CUDAGraph
    arguments: tuple[torch.Tensor, ...]
    result: R
