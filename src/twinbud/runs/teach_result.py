"""The result of ``twinbud teach``: its numbers, and the object that ``teach`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbud.core.typed_json import to_json
from twinbud.teaching.quality import FeatureQuality
from twinbud.training.epoch_loop import History


@dataclass(frozen=True, kw_only=True)
class TeachMetrics:
    """All numbers of a teaching, as ``metrics.json`` stores them; values that are None are absent there."""

    before: FeatureQuality
    """Of the network at its random start."""
    after: FeatureQuality
    """Of the network after the last epoch."""
    source_neighbor_accuracy: float | None = None
    """The same accuracy of the source; None without labels."""
    largest_class_share: float | None = None
    """Accuracy of always naming the most frequent class; None without labels."""
    num_train: int
    """Images that were trained on, without labels."""
    num_held_out: int
    """Training images that only measured the explained variances."""
    num_labelled: int
    """Training images whose labels measured the neighbor accuracy, and nothing else."""
    num_parameters: int
    """Parameters of the network."""
    epochs: int
    num_steps: int
    """Optimizer steps."""
    num_passes: int
    """Images in these steps, each counted once per epoch."""
    train_seconds: float
    """Wall time of the epochs."""
    images_per_second: float
    """Throughput of the epochs, with the passes of the source."""
    peak_memory_mib: float
    """Peak memory in MiB: of the GPU, or of the process on a CPU."""

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of ``metrics.json``."""
        return to_json(self)


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    """The result of ``teach``, in memory and in ``folder``, which ``--teacher local-dir:FOLDER`` opens."""

    folder: Path
    metrics: TeachMetrics
    history: History
    notes: tuple[str, ...]
    """Which images were used, and what to keep in mind."""


def measurements(metrics: TeachMetrics) -> tuple[tuple[str, float | None, float | None, float | None], ...]:
    """Return the table of measurements: what, before, after, and of the source itself."""
    before, after = metrics.before, metrics.after
    return (
        ("explained variance of the source's map", before.explained_spatial, after.explained_spatial, 1.0),
        ("explained variance of the source's vector", before.explained_pooled, after.explained_pooled, 1.0),
        (
            "nearest-neighbor accuracy",
            before.neighbor_accuracy,
            after.neighbor_accuracy,
            metrics.source_neighbor_accuracy,
        ),
    )
