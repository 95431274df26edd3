"""Training in two phases: a copy of the student is trained first, then serves as its auxiliary (``tf-kd-self``)."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

from twinbud.config.schema import TrainingConfig
from twinbud.models.student_pair import StudentPair
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.phases import FIRST_PHASE


def fit_in_two_phases(
    student_pair: StudentPair,
    data: LabelledImages,
    config: TrainingConfig,
    execution: Execution | None = None,
) -> History:
    """Train a copy of the student with L_ce (as CM1), then the student with the frozen copy as its auxiliary.

    Both phases start from the same weights. This is Tf-KD_self of Yuan et al., CVPR 2020.

    Args:
        student_pair: The student, on the training device; its auxiliary is not used.
        data: The labelled images.
        config: Resolved settings of both phases; ``distillation`` is ``tf-kd-self``.
        execution: That of the second phase; the first one has the same precision and compilation, the checkpoints of
            its phase ``FIRST_PHASE``, a bar of its own, and neither records nor test passes.

    Returns:
        The epochs of the second phase; steps, images and seconds are the sums over both phases.

    Raises:
        TwinbudError, Stopped: See ``fit``.
    """
    execution = execution or Execution()
    auxiliary = copy.deepcopy(student_pair.student)
    first_history = fit(
        StudentPair(student=auxiliary, auxiliary=None),
        data,
        replace(config, distillation="skd"),  # L_ce alone, without an auxiliary
        replace(
            execution,
            checkpoints=execution.checkpoints.phase(FIRST_PHASE),
            label="training the auxiliary",
            on_epoch=None,
            test_accuracy=None,
        ),
    )
    gc.collect()  # frees the optimizer's moments of the first phase
    history = fit(
        StudentPair(student=student_pair.student, auxiliary=auxiliary.requires_grad_(False), frozen=True),
        data,
        config,
        execution,
    )
    return history.after(first_history)
