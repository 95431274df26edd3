"""A step recorded as a CUDA graph: hundreds of kernels are started by one call of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import torch

R = TypeVar("R")
_ORDINARY_CALLS = 3
"""Before a shape is recorded: libraries choose their kernels and the optimiser makes its moments."""


class Recording(Generic[R]):
    """``function`` of CUDA tensors, recorded once for each shape of its arguments and replayed from then on.

    What it returns is overwritten by the next call. It may read and change tensors that stay where they are, and must
    not wait for the device. Each call does its work once, the ordinary and the recorded ones alike.
    """

    def __init__(self, function: Callable[..., R]) -> None:
        self.function = function
        self.calls: dict[tuple[torch.Size, ...], int] = {}
        self.recorded: dict[tuple[torch.Size, ...], _Recorded[R]] = {}
        self.stream = _stream_aside(torch.cuda.current_device())

    def __call__(self, *tensors: torch.Tensor) -> R:
        """Do the work of ``function(*tensors)``."""
        shapes = tuple(tensor.shape for tensor in tensors)
        calls = self.calls[shapes] = self.calls.get(shapes, 0) + 1
        if calls <= _ORDINARY_CALLS:
            return self._aside(tensors)
        if shapes not in self.recorded:
            self.recorded[shapes] = self._record(tensors)
        recorded = self.recorded[shapes]
        for held, given in zip(recorded.arguments, tensors, strict=True):
            held.copy_(given)
        recorded.graph.replay()
        return recorded.result

    def _aside(self, tensors: tuple[torch.Tensor, ...]) -> R:
        """An ordinary call, on a stream of its own as recording needs it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _record(self, tensors: tuple[torch.Tensor, ...]) -> _Recorded[R]:
        arguments = tuple(tensor.clone() for tensor in tensors)
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self.recorded.values()), None)
        # a thread may be fetching the next batch meanwhile, which is no part of the recording
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self.function(*arguments)
        return _Recorded(graph, arguments, result)


@cache
def _stream_aside(device: int) -> torch.cuda.Stream:
    """One for all recordings of a process: each new stream costs 65 MiB that stay, it seems cuBLAS's workspaces."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class _Recorded(Generic[R]):
    graph: torch.cuda.CUDAGraph
    arguments: tuple[torch.Tensor, ...]
    result: R
