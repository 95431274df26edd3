"""Soft targets of the student: logits of the auxiliary (eq. 2), the alternatives of Table 6, or the teacher's logits.

The variants differ only in their targets; all of them use the weights of eq. 5. Section 4.5 of the paper describes
CS-KD and TF-KD differently from the works that it cites. Both versions are implemented under separate names: ``cs-kd``
and ``tf-kd`` follow the paper, the others the cited works (docs/method.md).

Shape legend: N samples, B batch, C channels, S image height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.config.schema import Distillation
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.base import Task
from twinbud.tasks.formulas import at_least_float32
from twinbud.tasks.single import SINGLE_LABEL
from twinbud.training.target_formulas import update_similarity, virtual_teacher


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of the soft targets for one step.

    Attributes:
        images_BCSS: Normalized float32 images, with the same augmentation as the student's input.
        rows_B: int64 sample numbers without repetition; None unless the variant needs them.
        same_class_BCSS: For each image, another image of its class (see ``draw_same_class_pairs``), normalized
            float32; None unless the variant needs them.
        is_first_epoch: Whether this is the first epoch, in which no earlier logits of these samples exist.
    """

    images_BCSS: torch.Tensor
    rows_B: torch.Tensor | None
    same_class_BCSS: torch.Tensor | None
    is_first_epoch: bool


class SoftTargets:
    """Base class of the soft targets; the methods that a variant does not override do nothing.

    A training step calls ``inputs``, ``logits``, ``targets`` and ``update``, in this order. ``logits`` is called before
    the student's forward pass, so that the auxiliary's activations are freed before the student's are allocated.
    ``logits`` and ``targets`` can be compiled; with ``update`` they can be captured in a CUDA graph. Therefore these
    three methods read values that change between steps only from tensors, and never synchronize with the device.

    Attributes:
        temperature: τ of eqs. 1-3 and 5.
        targets_are_probabilities: Whether ``targets`` returns probabilities instead of logits to be softened at τ.
        are_soft: Whether the variant has soft targets at all.
        needs_same_class_pairs: Whether batches need ``same_class_BCSS``.
        updates_from_inputs: Whether ``update`` reads ``inputs``: it gets those of the whole batch, as of all else.
        state: Tensors that later steps depend on, by name; updated in place, at fixed device addresses.
    """

    targets_are_probabilities: bool = False
    are_soft: bool = True
    needs_same_class_pairs: bool = False
    updates_from_inputs: bool = False

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.state: dict[str, torch.Tensor] = {}

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return further input tensors of the step besides images and labels, without gradients."""
        del batch
        return ()

    def logits(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the logits (B, K) from which ``targets`` computes, usually the auxiliary's; None if it needs none."""
        del images_BCSS, inputs
        return None

    def targets(self, logits_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """Return the soft targets (B, K) of the batch, see ``Task.divergence``; None if there are none."""
        del labels_B
        return logits_BK

    def update(
        self,
        student_BK: torch.Tensor,
        logits_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Update ``state`` after the optimizer step.

        Args:
            student_BK: Logits of the student before the optimizer step.
            logits_BK: Return value of ``logits``.
            labels_B: int64 class indices.
            inputs: Return value of ``inputs``.
            condition: bool scalar on the device; if false, ``state`` does not change. None: always update.
        """


class NoSoftTargets(SoftTargets):
    """No soft targets: the loss is L_ce, without the factor α (CM1-CM4, ``--auxiliary none``)."""

    are_soft = False


class AuxiliaryTargets(SoftTargets):
    """``skd``: the auxiliary's logits for the student's augmented images (eq. 2).

    Also ``tf-kd-self``, where the auxiliary is a trained and frozen copy of the student, and ``teacher``, where the
    frozen teacher takes its place: function matching (Beyer et al., CVPR 2022).
    """

    def __init__(self, temperature: float, auxiliary: nn.Module) -> None:
        super().__init__(temperature)
        self.auxiliary = auxiliary

    def logits(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the auxiliary's logits (B, K) for ``images_BCSS``."""
        del inputs
        return self.auxiliary(images_BCSS)


class AuxiliaryAndTeacherTargets(AuxiliaryTargets):
    """``skd+teacher``: the mean of the softened probabilities of auxiliary and teacher for the same images.

    Like every teacher, this one is frozen and belongs to neither the pair nor the checkpoints.
    """

    def __init__(self, temperature: float, auxiliary: nn.Module, teacher: nn.Module, task: Task) -> None:
        super().__init__(temperature, auxiliary)
        self.teacher, self.task = teacher, task

    def logits(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Return logits (B, K) of that mean."""
        del inputs
        return self.task.mean_logits(self.auxiliary(images_BCSS), self.teacher(images_BCSS), self.temperature)


class SameClassTargets(AuxiliaryTargets):
    """``cs-kd-pair``: the auxiliary's logits for another sample of the same class (Yun et al., CVPR 2020).

    The other sample has an augmentation of its own. Cross-entropy uses the sample itself. The only labelled image of a
    class is paired with itself.
    """

    needs_same_class_pairs = True

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the images of the same classes."""
        assert batch.same_class_BCSS is not None, "cs-kd-pair needs same_class_BCSS"
        return (batch.same_class_BCSS,)

    def logits(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the auxiliary's logits (B, K) for the images of the same classes."""
        del images_BCSS
        return self.auxiliary(*inputs)


class ClassSimilarityTargets(AuxiliaryTargets):
    """``cs-kd``: the row of the label in a class-similarity matrix (paper section 4.5).

    The matrix (K, K) is the running mean, per class, of the auxiliary's probabilities at temperature τ. It starts as
    the identity and is updated after each step.
    """

    targets_are_probabilities = True

    def __init__(self, temperature: float, auxiliary: nn.Module, like: torch.Tensor, num_classes: int) -> None:
        super().__init__(temperature, auxiliary)
        self.similarity_KK = torch.eye(num_classes, dtype=like.dtype, device=like.device)
        self.state["similarity"] = self.similarity_KK

    def targets(self, logits_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """Return the rows (B, K) of the matrix, with NaN where the auxiliary's logits are not finite."""
        assert logits_BK is not None
        # the logits affect only later targets; NaN makes this step's loss report those that are not finite
        is_finite_B1 = torch.isfinite(logits_BK).all(dim=1, keepdim=True)
        return self.similarity_KK[labels_B].masked_fill(~is_finite_B1, torch.nan)

    def update(
        self,
        student_BK: torch.Tensor,
        logits_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Move the matrix toward the class means of the batch."""
        del student_BK, inputs
        assert logits_BK is not None
        p_BK = F.softmax(at_least_float32(logits_BK) / self.temperature, dim=1).to(self.similarity_KK.dtype)
        updated_KK = update_similarity(self.similarity_KK, p_BK, labels_B)
        if condition is not None:
            updated_KK = torch.where(condition, updated_KK, self.similarity_KK)
        self.similarity_KK.copy_(updated_KK)


class PreviousEpochTargets(AuxiliaryTargets):
    """``tf-kd``: the student's logits of the sample in the previous epoch (paper section 4.5).

    In the first epoch, the targets are the auxiliary's current logits. The auxiliary runs outside of the compiled and
    captured part of the step, and its logits are an input of that part: the part is then the same in every epoch, and
    the auxiliary does not run after the first one.
    """

    updates_from_inputs = True

    def __init__(
        self, temperature: float, auxiliary: nn.Module, like: torch.Tensor, num_classes: int, num_samples: int
    ) -> None:
        super().__init__(temperature, auxiliary)
        self.memory_NK = torch.zeros(num_samples, num_classes, dtype=like.dtype, device=like.device)
        self.state["memory"] = self.memory_NK

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the sample numbers (B,) and their target logits (B, K)."""
        assert batch.rows_B is not None, "tf-kd needs rows_B"
        if batch.is_first_epoch:
            return batch.rows_B, self.auxiliary(batch.images_BCSS).to(self.memory_NK.dtype)
        return batch.rows_B, self.memory_NK[batch.rows_B]

    def logits(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the target logits (B, K) from ``inputs``."""
        del images_BCSS
        _, logits_BK = inputs
        return logits_BK

    def update(
        self,
        student_BK: torch.Tensor,
        logits_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Store the student's logits for the next epoch."""
        del logits_BK, labels_B
        rows_B, _ = inputs
        new_BK = student_BK.to(self.memory_NK.dtype)
        if condition is not None:
            new_BK = torch.where(condition, new_BK, self.memory_NK[rows_B])
        self.memory_NK.index_copy_(0, rows_B, new_BK)


class VirtualTeacherTargets(SoftTargets):
    """``tf-kd-reg``: fixed targets u = softmax(d / 20) of a virtual teacher (Yuan et al., CVPR 2020).

    d is 0.99 for the label; the other classes share the rest equally. The student's logits are not softened and the
    weight is 1 − α, without τ²: eq. 5 with τ = 1.
    """

    targets_are_probabilities = True

    def __init__(self, like: torch.Tensor, num_classes: int) -> None:
        super().__init__(temperature=1.0)
        self.teacher_KK = virtual_teacher(num_classes).to(like)

    def targets(self, logits_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """Return the virtual teacher's probabilities (B, K)."""
        del logits_BK
        return self.teacher_KK[labels_B]


def open_soft_targets(
    distillation: Distillation,
    student_pair: StudentPair,
    *,
    temperature: float,
    num_samples: int | None = None,
    teacher: nn.Module | None = None,
    task: Task = SINGLE_LABEL,
) -> SoftTargets:
    """Build the soft targets of a variant, with their initial state.

    Args:
        distillation: The variant.
        student_pair: The student and, if the variant needs it, the auxiliary, on the training device.
        temperature: τ > 0; ``tf-kd-reg`` ignores it.
        num_samples: N; required by ``tf-kd``.
        teacher: Frozen network from images to logits, on the training device; required by ``teacher`` and
            ``skd+teacher``.
        task: What is asked of the images; it must support the variant.

    Raises:
        TwinbudError: The variant needs an auxiliary, but the pair has none (or, for ``tf-kd-self``, none that is
            frozen); or it needs a teacher, and none is given.
    """
    student, auxiliary = student_pair.student, student_pair.auxiliary
    like: torch.Tensor = next(student.parameters())
    if distillation == "tf-kd-reg":
        return VirtualTeacherTargets(like, student.num_classes)
    if distillation == "teacher":
        return AuxiliaryTargets(temperature, _required(teacher, distillation))
    if auxiliary is None and distillation == "skd":
        return NoSoftTargets(temperature)
    if auxiliary is None or (distillation == "tf-kd-self" and not student_pair.frozen):
        raise _no_auxiliary(distillation)
    match distillation:
        case "skd" | "tf-kd-self":
            return AuxiliaryTargets(temperature, auxiliary)
        case "skd+teacher":
            return AuxiliaryAndTeacherTargets(temperature, auxiliary, _required(teacher, distillation), task)
        case "cs-kd-pair":
            return SameClassTargets(temperature, auxiliary)
        case "cs-kd":
            return ClassSimilarityTargets(temperature, auxiliary, like, student.num_classes)
        case "tf-kd":
            assert num_samples is not None, "tf-kd needs num_samples"
            return PreviousEpochTargets(temperature, auxiliary, like, student.num_classes, num_samples)


def _required(teacher: nn.Module | None, distillation: Distillation) -> nn.Module:
    if teacher is None:
        fix = "Give 'teacher', a frozen network with the student's classes"
        raise TwinbudError("there is no teacher", where=f"--distillation {distillation}", fix=fix)
    return teacher


def _no_auxiliary(distillation: Distillation) -> TwinbudError:
    trained = distillation == "tf-kd-self"
    return TwinbudError(
        f"the student pair has no auxiliary{' that was trained before and is frozen' if trained else ''}",
        where=f"--distillation {distillation}",
        fix="Train with twinbud.training.two_phase.fit_in_two_phases" if trained else "Build the student pair with one",
    )
