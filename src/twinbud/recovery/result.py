"""What recovery did and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twinbud.models.selection import PairRole
from twinbud.recovery.least_squares import LayerFit
from twinbud.training.epoch_loop import History

_CURVE = ("epoch", "step", "learning_rate", "loss", "seconds")


@dataclass(frozen=True, kw_only=True)
class StudentRecovery:
    """What recovery did for S or S′.

    Attributes:
        num_views: How many views least squares looked at, which is fewer than asked where memory is short.
        fits: Of each layer that least squares fitted; empty where that was left out.
        history: The epochs that followed, without test passes.
        seconds: Wall time of both.
        peak_memory_mib: Of the process or the GPU, so far as a run that was stopped could still tell.
    """

    num_views: int = 0
    fits: Sequence[LayerFit] = ()
    history: History
    seconds: float
    peak_memory_mib: float

    def to_json(self) -> dict[str, Any]:
        """As ``recovery.json`` holds it."""
        epochs = [{name: getattr(record, name) for name in _CURVE} for record in self.history.epochs]
        layers = [asdict(fit) for fit in self.fits]
        return {"views": self.num_views, "layers": layers, "epochs": epochs, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What recovery did in all.

    Attributes:
        students: For S ("student") and, where it has a start of its own, S′ ("auxiliary").
        num_images: How many different images it saw.
        num_views_asked: How many views of them least squares was to look at.
    """

    students: Mapping[PairRole, StudentRecovery]
    num_images: int
    num_views_asked: int = 0

    @property
    def num_views(self) -> int:
        """How many views least squares looked at, for S and S′ alike."""
        return self.students["student"].num_views

    @property
    def num_steps(self) -> int:
        """Optimiser steps; least squares takes none."""
        return sum(student.history.num_steps for student in self.students.values())

    @property
    def num_passes(self) -> int:
        """Images that S or S′ learned from in steps, each counted once an epoch."""
        return sum(student.history.num_images for student in self.students.values())

    @property
    def seconds(self) -> float:
        """Wall time of least squares and steps."""
        return sum(student.seconds for student in self.students.values())

    @property
    def peak_memory_mib(self) -> float:
        """The larger of those of S and S′."""
        return max(student.peak_memory_mib for student in self.students.values())

    def to_json(self) -> dict[str, Any]:
        """As ``recovery.json`` holds it."""
        return {pair_role: student.to_json() for pair_role, student in self.students.items()}


RECOVERY_COST = (
    "num_images", "num_views", "num_views_asked", "num_steps", "num_passes", "seconds", "peak_memory_mib",
)  # fmt: skip
"""What ``metrics.json`` says of a recovery, each behind ``recover_``."""
