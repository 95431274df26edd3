"""Training in two phases: a copy of S learns from labels, then it teaches S (``tf-kd-self``)."""

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
    """Train a copy of S with L_ce as CM1 does, and then S, from the start that both share, with the copy as frozen S′.

    Tf-KD_self of Yuan et al., CVPR 2020.

    Args:
        student_pair: S, on the device to train on; an S′ would not be used.
        data: The labelled images.
        config: Resolved settings of both phases, ``distillation`` being ``tf-kd-self``.
        bf16: See ``fit``, as the arguments below.
        compilation: For each phase.
        on_epoch: Called with each epoch's record in the second phase.
        test_accuracy: Tests S, in the second phase.
        checkpoints: Keeps the second phase, and the first as its phase ``FIRST_PHASE``.
        progress: Where to show a bar for each phase.
        label: What to call the second bar.

    Returns:
        The epochs of the second phase; steps, images and seconds are those of both.

    Raises:
        TwinbudError, Stopped: See ``fit``.
    """
    checkpoints = checkpoints or CheckpointManager()
    trained = copy.deepcopy(student_pair.student)
    beforehand = fit(
        StudentPair(student=trained, auxiliary=None),
        data,
        replace(config, distillation="skd"),  # which without S′ is L_ce
        bf16=bf16,
        compilation=compilation,
        checkpoints=checkpoints.phase(FIRST_PHASE),
        progress=progress,
        label="training S′ beforehand",
    )
    gc.collect()  # the moments of the first phase
    history = fit(
        StudentPair(student=student_pair.student, auxiliary=trained.requires_grad_(False), frozen=True),
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
        num_steps=beforehand.num_steps + history.num_steps,
        num_images=beforehand.num_images + history.num_images,
        train_seconds=beforehand.train_seconds + history.train_seconds,
    )
