"""Whether compiling the networks, or recording the whole step, pays for itself in one run."""

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
"""From how many steps on a CPU's compilation (half a minute) is earned back; EXPERIMENTS.md has the measurement."""
STEPS_TO_RECORD = 100
"""A recording costs a few ordinary steps for each shape of batch."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """How the training step is made faster, and why so.

    Attributes:
        inductor: Forward and backward pass go through ``torch.compile``.
        graphs: The whole step is recorded once and replayed as a CUDA graph.
        reason: In words, for the user.
    """

    inductor: bool
    graphs: bool
    reason: str

    @property
    def name(self) -> str:
        """``none``, ``inductor``, ``graphs`` or ``inductor+graphs``."""
        parts = [name for name in ("inductor", "graphs") if getattr(self, name)]
        return "+".join(parts) or "none"


EAGER = Compilation(inductor=False, graphs=False, reason="as it is written")


def choose_compilation(requested: Compile, device: torch.device, num_steps: int) -> Compilation:
    """What ``--compile`` means for a run of ``num_steps`` optimiser steps.

    Raises:
        TwinbudError: Compilation was asked for where there is no compiler.
    """
    on_gpu = device.type == "cuda"
    if requested == "off":
        return Compilation(inductor=False, graphs=False, reason="asked for")
    if requested == "on":
        if not on_gpu and not _has_compiler():
            raise TwinbudError(
                "a C++ compiler", got="none", where="--compile on", fix="Install g++, or use --compile off"
            )
        return Compilation(inductor=True, graphs=on_gpu, reason="asked for")
    threshold = STEPS_TO_RECORD if on_gpu else STEPS_TO_COMPILE
    if num_steps < threshold:
        return Compilation(inductor=False, graphs=False, reason=f"{num_steps} steps; pays from about {threshold:,}")
    if not on_gpu and not _has_compiler():
        return Compilation(inductor=False, graphs=False, reason="no C++ compiler")
    return Compilation(inductor=not on_gpu, graphs=on_gpu, reason=f"{num_steps} steps")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` through ``torch.compile``, for one shape of its arguments; random draws are those of eager mode."""
    torch.compiler.reset()  # what earlier runs of this process compiled counts against a limit, and then nothing is
    made = torch.compile(function, dynamic=False, options={"fallback_random": True})
    return cast("Callable[P, R]", made)


def _has_compiler() -> bool:
    """Whether the C++ compiler that PyTorch would call is there."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
