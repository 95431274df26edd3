"""Decide whether to compile the networks or to record the step as a CUDA graph."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import torch

from twinbud.config.schema import Compile
from twinbud.core.errors import TwinbudError

P = ParamSpec("P")
R = TypeVar("R")

STEPS_TO_COMPILE = 1500
"""Number of steps from which compilation on a CPU (half a minute) saves time; measured in EXPERIMENTS.md."""
STEPS_TO_RECORD = 100
"""Number of steps from which recording pays; it costs a few steps for each batch shape."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """How the training step is accelerated, and why.

    Attributes:
        inductor: Forward and backward pass go through ``torch.compile``.
        graphs: The whole step is recorded once and replayed as a CUDA graph.
        reason: Shown to the user.
    """

    inductor: bool
    graphs: bool
    reason: str

    @property
    def name(self) -> str:
        """``none``, ``inductor``, ``graphs`` or ``inductor+graphs``."""
        parts = [name for name in ("inductor", "graphs") if getattr(self, name)]
        return "+".join(parts) or "none"


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
        return Compilation(inductor=False, graphs=False, reason=f"{num_steps} steps; pays from about {threshold:,}")
    if not on_gpu and not _has_compiler():
        return Compilation(inductor=False, graphs=False, reason="no C++ compiler")
    return Compilation(inductor=not on_gpu, graphs=on_gpu, reason=f"{num_steps} steps")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` for one shape of its arguments; random numbers are those of eager mode."""
    torch.compiler.reset()  # functions compiled by earlier runs of this process count towards a limit
    made = torch.compile(function, dynamic=False, options={"fallback_random": True})
    return cast("Callable[P, R]", made)


def _has_compiler() -> bool:
    """Return whether the C++ compiler that PyTorch calls is installed."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
