"""Training in two phases: a copy of the student is trained first, then serves as its auxiliary (``tf-kd-self``)."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace

from twinbud.config.schema import TrainingConfig
from twinbud.core.progress import Progress
from twinbud.models.student_pair import StudentPair
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import EAGER, Compilation
from twinbud.training.epoch_loop import History
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.phases import FIRST_PHASE


def fit_in_two_phases(
    student_pair: StudentPair,
    data: LabelledImages,
    config: TrainingConfig,
    *,
    bf16: bool = False,
    compilation: Compilation = EAGER,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    test_accuracy: Callable[[], float] | None = None,
    checkpoints: CheckpointManager | None = None,
    progress: Progress | None = None,
    label: str = "training",
) -> History:
    """Train a copy of the student with L_ce (as CM1), then the student with the frozen copy as its auxiliary.

    Both phases start from the same weights. This is Tf-KD_self of Yuan et al., CVPR 2020.

    Args:
        student_pair: The student, on the training device; its auxiliary is not used.
        data: The labelled images.
        config: Resolved settings of both phases; ``distillation`` is ``tf-kd-self``.
        bf16: See ``fit``, as for the arguments below.
        compilation: Of each phase.
        on_epoch: Called with the record of each epoch of the second phase.
        test_accuracy: Returns the student's test accuracy, in the second phase.
        checkpoints: Checkpoints of the second phase; those of the first are its phase ``FIRST_PHASE``.
        progress: Shows a bar for each phase.
        label: Label of the second bar.

    Returns:
        The epochs of the second phase; steps, images and seconds are the sums over both phases.

    Raises:
        TwinbudError, Stopped: See ``fit``.
    """
    checkpoints = checkpoints or CheckpointManager()
    auxiliary = copy.deepcopy(student_pair.student)
    first_history = fit(
        StudentPair(student=auxiliary, auxiliary=None),
        data,
        replace(config, distillation="skd"),  # L_ce alone, without an auxiliary
        bf16=bf16,
        compilation=compilation,
        checkpoints=checkpoints.phase(FIRST_PHASE),
        progress=progress,
        label="training the auxiliary",
    )
    gc.collect()  # frees the optimizer's moments of the first phase
    history = fit(
        StudentPair(student=student_pair.student, auxiliary=auxiliary.requires_grad_(False), frozen=True),
        data,
        config,
        bf16=bf16,
        compilation=compilation,
        on_epoch=on_epoch,
        test_accuracy=test_accuracy,
        checkpoints=checkpoints,
        progress=progress,
        label=label,
    )
    return replace(
        history,
        num_steps=first_history.num_steps + history.num_steps,
        num_images=first_history.num_images + history.num_images,
        train_seconds=first_history.train_seconds + history.train_seconds,
    )
