"""How a training is executed: what decides neither which images it sees nor what it minimizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twinbud.core.progress import Progress, SilentProgress
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import EAGER, Compilation
from twinbud.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Precision, compilation, checkpoints and reports of a training.

    Attributes:
        bf16: Whether the networks compute in bf16 autocast.
        compilation: Whether the networks are compiled, and the step is recorded as a CUDA graph.
        checkpoints: Holds the checkpoint to continue from and saves others; by default nothing is saved.
        progress: Shows the progress bar and the estimated time; silent by default.
        label: Name of the progress bar.
        rate_option: The option that sets the learning rate, for the error of a loss that is not finite.
        on_epoch: Called with the record of each epoch, after its test pass.
        test_accuracy: Returns the student's test accuracy, in [0, 1]; called every ``TrainingConfig.evaluate_every``
            epochs, outside the measured time.
        processes: Those that share each batch, of which this is one; None: this one computes it all. The first one
            alone has checkpoints, records and test passes.
    """

    bf16: bool = False
    compilation: Compilation = EAGER
    checkpoints: CheckpointManager = field(default_factory=CheckpointManager)
    progress: Progress = field(default_factory=SilentProgress)
    label: str = "training"
    rate_option: str = "--learning-rate"
    on_epoch: Callable[[EpochRecord], None] | None = None
    test_accuracy: Callable[[], float] | None = None
    processes: Processes | None = None
