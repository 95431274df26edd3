"""The result of a run: its metrics, and the object that ``train`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from twinbud.core.cache import reason_of
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_json
from twinbud.core.typed_json import from_json
from twinbud.evaluation.leak import LeakMetrics
from twinbud.evaluation.metrics import EvaluationMetrics
from twinbud.evaluation.predictions import Predictions
from twinbud.report.model import RunSummary
from twinbud.training.epoch_loop import History

_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Time, memory and steps of a run, and the size of its network.

    Values that are None are absent from the JSON: those of a stage that the run does not have, and those of the network
    in records of earlier versions.

    Raises:
        ValueError: A value is below 0.
    """

    num_parameters: int | None = None
    """Parameters of the delivered network."""
    num_multiplications: int | None = None
    """Multiplications of the delivered network for one image of the run's size, each with its addition."""
    latency_seconds: float | None = None
    """Median time of the delivered network for one image, in seconds, on one CPU thread in float32."""
    tune_num_steps: int | None = None
    """Optimizer steps of the fine-tuning of the teacher."""
    tune_num_passes: int | None = None
    """Images in these steps, each counted once per epoch."""
    tune_seconds: float | None = None
    """Wall time of the fine-tuning in seconds; runs of a study that share a tuned teacher all report it."""
    tune_peak_memory_mib: float | None = None
    """Peak memory of the fine-tuning in MiB."""
    recover_num_images: int | None = None
    """Different images that recovery reads."""
    recover_num_views: int | None = None
    """Views of them that least squares reads; fewer than requested if memory is short."""
    recover_num_views_asked: int | None = None
    """Views of them that least squares is requested to read."""
    recover_num_steps: int | None = None
    """Optimizer steps of recovery, for student and auxiliary together."""
    recover_num_passes: int | None = None
    """Images in these steps, each counted once per epoch."""
    recover_seconds: float | None = None
    """Wall time of recovery in seconds."""
    recover_peak_memory_mib: float | None = None
    """Peak memory of recovery in MiB."""
    num_train: int
    """Labelled training images."""
    num_steps: int
    """Optimizer steps of all stages."""
    num_passes: int
    """Images in these steps, each counted once per epoch."""
    epochs: int
    """Epochs of training."""
    train_seconds: float
    """Wall time of all stages in seconds, without test passes."""
    images_per_second: float
    """Throughput of the last stage, the training of the student; 0 without one."""
    peak_memory_mib: float
    """Peak memory of all stages in MiB: of the GPU, or of the process on a CPU."""
    memory_before_training_mib: float
    """The same memory in MiB when training starts."""

    def __post_init__(self) -> None:
        for name in COST_NAMES:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value:g}, below 0")


COST_NAMES = tuple(part.name for part in fields(RunCost))


@dataclass(frozen=True, kw_only=True)
class RunMetrics(RunCost, EvaluationMetrics):
    """All numbers of a run, as ``metrics.json`` stores them: of the test part after the last epoch, and the cost."""

    best_test_epoch: int | None
    """Epoch with the highest test accuracy, the first of equals; None without test passes during training."""
    best_test_accuracy: float | None
    """Accuracy at that epoch, in [0, 1]; never the reported result."""
    val: EvaluationMetrics | None = None
    """Of the validation part; None without one, and then absent from the JSON."""
    leak: LeakMetrics | None = None
    """What a split would claim that ignores copies; None without ``--measure-leak``, and then absent from the JSON."""

    @property
    def evaluation(self) -> EvaluationMetrics:
        """The metrics of the test part alone."""
        return _part(EvaluationMetrics, self)

    @property
    def cost(self) -> RunCost:
        """The cost alone."""
        return _part(RunCost, self)

    @classmethod
    def from_json(cls, content: Any) -> RunMetrics:
        """Convert back from plain JSON values.

        Raises:
            ValueError: A missing key or a value of another type.
        """
        return from_json(cls, content, "metrics")


def read_metrics(path: Path, fix: str = "Restore the file that 'twinbud train' wrote") -> RunMetrics:
    """Read the ``metrics.json`` of a finished run.

    Args:
        path: The file.
        fix: What to do where it cannot be read.

    Raises:
        TwinbudError: The file is missing or damaged.
    """
    try:
        return RunMetrics.from_json(read_json(path))
    except (OSError, ValueError) as error:
        problem = f"the metrics of the run cannot be read ({reason_of(error)})"
        raise TwinbudError(problem, where=str(path), fix=fix) from error


def _part(kind: type[_Part], whole: Any) -> _Part:
    return kind(**{part.name: getattr(whole, part.name) for part in fields(kind)})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of ``train``, in memory and in ``folder``."""

    folder: Path
    metrics: RunMetrics
    predictions: Predictions
    """Of the test part."""
    history: History = field(repr=False)
    summary: RunSummary = field(repr=False)
    unwritten: tuple[str, ...] = ()
    """A sentence for each file of the report that could not be written; empty if the folder is complete."""
