"""The result of recovery and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from twinbud.models.selection import PairRole
from twinbud.recovery.refit import Refit
from twinbud.training.epoch_loop import History

_CURVE = ("epoch", "step", "learning_rate", "loss", "seconds")


@dataclass(frozen=True, kw_only=True)
class StudentRecovery:
    """Recovery of the student or the auxiliary.

    Attributes:
        refit: The result of least squares.
        history: The epochs of feature matching, without test passes.
        seconds: Wall time of both.
        peak_memory_mib: Peak memory of the process or the GPU, in MiB, since the last resume.
    """

    refit: Refit
    history: History
    seconds: float
    peak_memory_mib: float

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``recovery.json`` for this student."""
        epochs = [{name: getattr(record, name) for name in _CURVE} for record in self.history.epochs]
        layers = [asdict(fit) for fit in self.refit.fits]
        content = {"views": self.refit.num_views, "layers": layers, "epochs": epochs, "seconds": self.seconds}
        if self.refit.classifier is not None:
            content["classifier"] = asdict(self.refit.classifier)
        if self.refit.start.explained is not None:
            content["subspace_explained"] = self.refit.start.explained
        if self.refit.start.kept:
            content["kept"] = dict(self.refit.start.kept)
        return content


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Recovery of the whole pair.

    Attributes:
        students: For the student and, if it does not start as a copy of the student, the auxiliary.
        num_images: Different images that were used.
        num_views_asked: Views that the settings request for least squares.
    """

    students: Mapping[PairRole, StudentRecovery]
    num_images: int
    num_views_asked: int = 0

    @property
    def num_views(self) -> int:
        """Views that least squares used, the same number for student and auxiliary."""
        return self.students["student"].refit.num_views

    @property
    def num_steps(self) -> int:
        """Optimizer steps; least squares takes none."""
        return sum(student.history.num_steps for student in self.students.values())

    @property
    def num_passes(self) -> int:
        """Images processed in optimizer steps, counted once per epoch and network."""
        return sum(student.history.num_images for student in self.students.values())

    @property
    def seconds(self) -> float:
        """Wall time of least squares and feature matching."""
        return sum(student.seconds for student in self.students.values())

    @property
    def peak_memory_mib(self) -> float:
        """The larger peak of student and auxiliary, in MiB."""
        return max(student.peak_memory_mib for student in self.students.values())

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``recovery.json``."""
        return {pair_role: student.to_json() for pair_role, student in self.students.items()}
