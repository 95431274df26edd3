"""Several processes that train one network: each computes its share of every batch.

The processes exchange the logits of their shares, so that each computes the loss of the whole batch, whatever it is
normalized by; then they add their gradients. All processes thus make the same update, and their networks stay equal.

Small values travel over the CPU (gloo), tensors of a GPU over NCCL. No objects are exchanged, only numbers and JSON.

Shape legend: B images of the batch, K outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.weights_file import without_aliases


class ConnectionLostError(TwinbudError):
    """Another process has ended."""


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one process computes.

    Attributes:
        start: First row.
        stop: End of the rows; ``start`` where the batch has fewer images than there are processes.
        total: B.
    """

    start: int
    stop: int
    total: int

    def of(self, batch_B: torch.Tensor, *, with_previous: bool = False) -> torch.Tensor:
        """Return the rows of this share; an empty one gets a row of the batch, which ``Processes.gather`` leaves out.

        Args:
            batch_B: Anything with a row for each image of the batch.
            with_previous: Put the row before the share in front, as the batch is a circle for ``mix``.
        """
        first = min(self.start, self.total - 1)
        own = batch_B[first : max(self.stop, first + 1)]
        return torch.cat([batch_B[first - 1 :][:1], own]) if with_previous else own


@dataclass(frozen=True)
class Processes:
    """The group of processes, of which this is one. All of them call each method, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
    """

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads checkpoints, writes files and reports."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Return this process's share of ``total`` images; shares differ by one image at most."""
        return Share(total * self.rank // self.count, total * (self.rank + 1) // self.count, total)

    def gather(self, own: torch.Tensor, share: Share) -> torch.Tensor:
        """Return the rows of all processes; gradients flow to the own ones.

        Args:
            own: A row for each image of ``share.of``.
            share: This process's share.

        Returns:
            (B, …), the same numbers in all processes.
        """
        own = own[: share.stop - share.start]
        whole = own.new_zeros(share.total, *own.shape[1:])
        whole[share.start : share.stop] = own.detach()
        _sum(whole)
        return torch.cat([whole[: share.start], own, whole[share.stop :]])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _sum(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        found = torch.tensor(int(flag))
        with _explained():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def share_json(self, content: Any = None) -> Any:
        """Return the plain JSON values that the first process gives; the others give nothing."""
        return json.loads(self._share_bytes(json.dumps(content).encode()))

    def share_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the first process's tensors by name, on the CPU; those of the others do not count."""
        return load(self._share_bytes(save(without_aliases(tensors)) if self.is_first else b""))

    def _share_bytes(self, data: bytes) -> bytes:
        with _explained():
            size = torch.tensor(len(data))
            dist.broadcast(size, 0)
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.is_first:
                content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(content, 0)
        return content.numpy().tobytes()


@torch.compiler.disable()
def _sum(tensor: torch.Tensor) -> None:
    """Replace a tensor by its sum over the processes."""
    with _explained():
        dist.all_reduce(tensor)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the error of a connection into one line."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionLostError(
            "the connection to another process was lost",
            where="a run of several processes",
            fix="See what torchrun reports of that process; the same command with --resume continues",
        ) from error
