"""Decide whether to compile the networks or to record the step as a CUDA graph."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar, cast

import torch

from twinbud.config.schema import Compile
from twinbud.core.errors import TwinbudError

P = ParamSpec("P")
R = TypeVar("R")

STEPS_TO_COMPILE = 1500
"""Number of steps from which compilation on a CPU (half a minute) saves time; measured in EXPERIMENTS.md."""
STEPS_TO_RECORD = 100
"""Number of steps from which a CUDA graph saves time; its capture takes a few steps for each batch shape."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """Acceleration of the training step.

    Attributes:
        inductor: Whether ``torch.compile`` compiles the forward and backward pass.
        graphs: Whether the whole step is captured in a CUDA graph and replayed.
        reason: Reason for the choice, for the user.
    """

    inductor: bool
    graphs: bool
    reason: str

    @property
    def name(self) -> str:
        """``none``, ``inductor``, ``graphs`` or ``inductor+graphs``."""
        parts = [name for name in ("inductor", "graphs") if getattr(self, name)]
        return "+".join(parts) or "none"

    def without_graphs(self, reason: str) -> Compilation:
        """Return the same without CUDA graphs, which compute what is computed without them."""
        return replace(self, graphs=False, reason=f"{self.reason}; no CUDA graph: {reason}") if self.graphs else self


EAGER = Compilation(inductor=False, graphs=False, reason="eager")


def choose_compilation(requested: Compile, device: torch.device, num_steps: int) -> Compilation:
    """Resolve ``--compile`` for a run of ``num_steps`` optimizer steps.

    Raises:
        TwinbudError: ``requested`` is ``on`` and there is no C++ compiler.
    """
    on_gpu = device.type == "cuda"
    if requested == "off":
        return Compilation(inductor=False, graphs=False, reason="requested")
    if requested == "on":
        if not on_gpu and not _has_compiler():
            raise TwinbudError(
                "there is no C++ compiler", where="--compile on", fix="Install g++, or use --compile off"
            )
        return Compilation(inductor=True, graphs=on_gpu, reason="requested")
    threshold = STEPS_TO_RECORD if on_gpu else STEPS_TO_COMPILE
    if num_steps < threshold:
        return Compilation(
            inductor=False, graphs=False, reason=f"{num_steps} steps; saves time from about {threshold:,}"
        )
    if not on_gpu and not _has_compiler():
        return Compilation(inductor=False, graphs=False, reason="no C++ compiler")
    return Compilation(inductor=not on_gpu, graphs=on_gpu, reason=f"{num_steps} steps")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` with static shapes, with the random numbers of eager mode."""
    torch.compiler.reset()  # functions that earlier runs of the process compiled count toward a limit
    result = torch.compile(function, dynamic=False, options={"fallback_random": True})
    return cast("Callable[P, R]", result)


def _has_compiler() -> bool:
    """Return whether the C++ compiler that PyTorch calls is installed."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
