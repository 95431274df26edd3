"""Where S's soft targets come from: from S′ (eq. 2), or from what the variants of Table 6 put in its place.

Only the targets differ: eq. 5 weighs each variant's divergence alike. The paper's section 4.5 describes CS-KD and TF-KD
otherwise than the works that it cites, so that either reading stands here under a name of its own (docs/method.md).

Shape legend: N samples, B batch, C channels, S image side, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.config.schema import Distillation
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.losses import at_least_float32

SIMILARITY_MOMENTUM = 0.9
"""How much of the class-similarity matrix stays at each step (cs-kd)."""
VIRTUAL_CONFIDENCE, VIRTUAL_TEMPERATURE = 0.99, 20.0
"""Of the virtual teacher of tf-kd-reg: its probability of the right class, and what softens it."""


@dataclass(frozen=True)
class Batch:
    """What the targets of one step may be made of.

    Attributes:
        images_BCSS: As S sees them.
        rows_B: int64 sample numbers, each once; None where nobody asked for them.
        same_class_BCSS: For each image another one of its class, see ``draw_same_class_pairs``; None unless the
            variant needs them.
        is_first_epoch: Whether S has not seen these samples before.
    """

    images_BCSS: torch.Tensor
    rows_B: torch.Tensor | None
    same_class_BCSS: torch.Tensor | None
    is_first_epoch: bool


class Targets:
    """The soft targets of one variant; what a variant does not need does nothing.

    A step asks for ``inputs`` first. ``outputs``, asked before S's forward so that S′ leaves nothing but logits beside
    S's activations, and ``targets`` may be compiled; together with ``remember`` they may be recorded as a CUDA graph.
    These three read what changes between steps from tensors alone, and never wait for the device.

    Attributes:
        temperature: τ of eqs. 1-3 and 5.
        softened: Whether the targets are distributions instead of logits to be softened at τ.
        are_soft: Whether there are soft targets at all.
        needs_same_class_pairs: Whether a batch comes with ``same_class_BCSS``.
        state: What later steps depend on, by name; it stays where it is on the device and is changed in place.
    """

    softened: bool = False
    are_soft: bool = True
    needs_same_class_pairs: bool = False

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.state: dict[str, torch.Tensor] = {}

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Tensors that the step takes besides images and labels, none of them with a gradient."""
        del batch
        return ()

    def outputs(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Logits (B, K) that the targets are made of, S′'s as a rule; None where a formula makes them."""
        del images_BCSS, inputs
        return None

    def targets(self, outputs_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """Soft targets (B, K) of the batch, see ``self_distillation_loss``."""
        del labels_B
        return outputs_BK

    def remember(
        self,
        student_BK: torch.Tensor,
        outputs_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Take in what the batch showed, after the update of S.

        Args:
            student_BK: Logits of S before the update.
            outputs_BK: What ``outputs`` gave.
            labels_B: int64 class indices.
            inputs: What ``inputs`` gave.
            condition: A bool scalar on the device: where it is false, ``state`` stays as it is. None: always.
        """


class NoSoftTargets(Targets):
    """L = L_ce, and not α L_ce (CM1-CM4, ``--auxiliary none``)."""

    are_soft = False


class Auxiliary(Targets):
    """``skd``: what S′ says of the view that S sees (eq. 2); ``tf-kd-self``, where S′ is a trained and frozen S."""

    def __init__(self, temperature: float, auxiliary: nn.Module) -> None:
        super().__init__(temperature)
        self.auxiliary = auxiliary

    def outputs(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """S′ of the view."""
        del inputs
        return self.auxiliary(images_BCSS)


class Partners(Auxiliary):
    """``cs-kd-pair``: what S′ says of another sample of the class, seen in its own way (Yun et al., CVPR 2020).

    Cross-entropy is of the sample itself. A class with a single labelled image pairs that image with itself.
    """

    needs_same_class_pairs = True

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The partners."""
        assert batch.same_class_BCSS is not None, "cs-kd-pair takes the partners of a batch"
        return (batch.same_class_BCSS,)

    def outputs(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """S′ of the partners."""
        del images_BCSS
        return self.auxiliary(*inputs)


class ClassSimilarityTargets(Auxiliary):
    """``cs-kd``: the label's row of a class-similarity matrix (paper section 4.5).

    The matrix (K, K) is the running class-wise mean of what S′ says, softened at τ: the identity at the start, and
    updated after it was used.
    """

    softened = True

    def __init__(self, temperature: float, auxiliary: nn.Module, like: torch.Tensor, num_classes: int) -> None:
        super().__init__(temperature, auxiliary)
        self.similarity_KK = torch.eye(num_classes, dtype=like.dtype, device=like.device)
        self.state["similarity"] = self.similarity_KK

    def targets(self, outputs_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """Rows of the matrix."""
        assert outputs_BK is not None
        # outputs become targets in later steps alone: were they not finite, this step's loss must tell
        sound_B1 = torch.isfinite(outputs_BK).all(dim=1, keepdim=True)
        return self.similarity_KK[labels_B].masked_fill(~sound_B1, torch.nan)

    def remember(
        self,
        student_BK: torch.Tensor,
        outputs_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Move the matrix towards the batch's means."""
        del student_BK, inputs
        assert outputs_BK is not None
        p_BK = F.softmax(at_least_float32(outputs_BK) / self.temperature, dim=1).to(self.similarity_KK.dtype)
        after = similarity_after(self.similarity_KK, p_BK, labels_B)
        self.similarity_KK.copy_(after if condition is None else torch.where(condition, after, self.similarity_KK))


class PreviousEpochTargets(Auxiliary):
    """``tf-kd``: what S said of the sample in the epoch before (paper section 4.5); in the first, what S′ says now.

    After the first epoch S′ is not asked any more. Its answers come in as an input of the step, from outside of what
    is compiled and recorded: what a step does is then the same in every epoch, and no device computes S′ in vain.
    """

    def __init__(
        self, temperature: float, auxiliary: nn.Module, like: torch.Tensor, num_classes: int, num_samples: int
    ) -> None:
        super().__init__(temperature, auxiliary)
        self.memory_NK = torch.zeros(num_samples, num_classes, dtype=like.dtype, device=like.device)
        self.state["memory"] = self.memory_NK

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Sample numbers, and the logits that are their targets."""
        assert batch.rows_B is not None, "tf-kd takes the sample numbers of a batch"
        if batch.is_first_epoch:
            return batch.rows_B, self.auxiliary(batch.images_BCSS).to(self.memory_NK.dtype)
        return batch.rows_B, self.memory_NK[batch.rows_B]

    def outputs(self, images_BCSS: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor | None:
        """The logits that came in."""
        del images_BCSS
        _, before_BK = inputs
        return before_BK

    def remember(
        self,
        student_BK: torch.Tensor,
        outputs_BK: torch.Tensor | None,
        labels_B: torch.Tensor,
        inputs: tuple[torch.Tensor, ...],
        condition: torch.Tensor | None,
    ) -> None:
        """Keep what S said, for the next epoch."""
        del outputs_BK, labels_B
        rows_B, _ = inputs
        said_BK = student_BK.to(self.memory_NK.dtype)
        if condition is not None:
            said_BK = torch.where(condition, said_BK, self.memory_NK[rows_B])
        self.memory_NK.index_copy_(0, rows_B, said_BK)


class VirtualTeacherTargets(Targets):
    """``tf-kd-reg``: u = softmax(d / 20), d = 0.99 on the label and the rest shared (Yuan et al., CVPR 2020).

    The student's side is not softened and the weight is 1 − α, without τ²: eq. 5 at τ = 1.
    """

    softened = True

    def __init__(self, like: torch.Tensor, num_classes: int) -> None:
        super().__init__(temperature=1.0)
        self.teacher_KK = virtual_teacher(num_classes).to(like)

    def targets(self, outputs_BK: torch.Tensor | None, labels_B: torch.Tensor) -> torch.Tensor | None:
        """The virtual teacher's distributions."""
        del outputs_BK
        return self.teacher_KK[labels_B]


def open_soft_targets(
    distillation: Distillation, student_pair: StudentPair, *, temperature: float, num_samples: int | None = None
) -> Targets:
    """The targets of a variant, with their state as it is before the first step.

    Args:
        distillation: Which variant.
        student_pair: S and, where the variant asks it, S′, on the device that they train on.
        temperature: τ.
        num_samples: N, for ``tf-kd``.

    Raises:
        TwinbudError: The variant needs an S′ that is not there.
    """
    student, auxiliary = student_pair.student, student_pair.auxiliary
    like: torch.Tensor = next(student.parameters())
    if distillation == "tf-kd-reg":
        return VirtualTeacherTargets(like, student.num_classes)
    if auxiliary is None and distillation == "skd":
        return NoSoftTargets(temperature)
    if auxiliary is None or (distillation == "tf-kd-self" and not student_pair.frozen):
        raise _no_auxiliary(distillation)
    match distillation:
        case "skd" | "tf-kd-self":
            return Auxiliary(temperature, auxiliary)
        case "cs-kd-pair":
            return Partners(temperature, auxiliary)
        case "cs-kd":
            return ClassSimilarityTargets(temperature, auxiliary, like, student.num_classes)
        case "tf-kd":
            assert num_samples is not None, "tf-kd remembers every sample"
            return PreviousEpochTargets(temperature, auxiliary, like, student.num_classes, num_samples)


def _no_auxiliary(distillation: Distillation) -> TwinbudError:
    trained = distillation == "tf-kd-self"
    return TwinbudError(
        f"the student pair has no auxiliary{' that was trained before and is frozen' if trained else ''}",
        where=f"--distillation {distillation}",
        fix="Train with twinbud.fit_in_two_phases" if trained else "Build the student pair with one",
    )


def similarity_after(similarity_KK: torch.Tensor, p_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The class-similarity matrix after a batch: m S_k + (1 − m) · mean of the batch's p of class k, m = 0.9.

    Args:
        similarity_KK: Before; rows are distributions.
        p_BK: Softened outputs of S′, of the same dtype.
        labels_B: int64 class indices; a class that is not among them keeps its row.
    """
    classes_K1 = torch.arange(len(similarity_KK), device=labels_B.device)[:, None]
    members_KB = (classes_K1 == labels_B).to(p_BK.dtype)
    counts_K1 = members_KB.sum(dim=1, keepdim=True)
    # a product, whose order of additions is fixed, and no scattered sum: a run repeats itself bit for bit on a GPU too
    means_KK = members_KB @ p_BK / counts_K1.clamp(min=1)
    after_KK = SIMILARITY_MOMENTUM * similarity_KK + (1 - SIMILARITY_MOMENTUM) * means_KK
    return torch.where(counts_K1 > 0, after_KK, similarity_KK)


def virtual_teacher(num_classes: int) -> torch.Tensor:
    """(K, K) float64, K ≥ 2: for each label the distribution of a teacher that is 99 % right, softened at 20."""
    rest = (1 - VIRTUAL_CONFIDENCE) / (num_classes - 1)
    hand_made = torch.full((num_classes, num_classes), rest, dtype=torch.float64).fill_diagonal_(VIRTUAL_CONFIDENCE)
    return F.softmax(hand_made / VIRTUAL_TEMPERATURE, dim=1)
