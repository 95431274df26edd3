"""The settings of recovery, between selection and training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from twinbud.config.fields import Checked, setting
from twinbud.core.errors import TwinbudError

Recover = Literal["none", "labelled", "unlabelled"]
RecoverStream = Literal["channels", "subspace", "auto"]
RecoverMetric = Literal["variance", "logits"]
RecoverMethod = Literal["refit", "grail", "corp"]
RecoverTarget = Literal["own", "all"]
Switch = Literal["on", "off"]


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(Checked):
    """How student and auxiliary are refitted to the teacher before training, without labels."""

    recover: Recover = setting(
        "none", "Images for recovery: none (no recovery), the labelled ones, or the whole training part."
    )
    recover_method: RecoverMethod = setting(
        "refit",
        "refit: fit each layer to the teacher's outputs, in order; grail, corp: published alternatives (ViT only).",
    )
    recover_stream: RecoverStream = setting(
        "channels",
        "The student's residual stream: channels of the teacher's, or its principal subspace (ViT, EfficientNet); auto:"
        " the subspace where it is possible.",
    )
    recover_metric: RecoverMetric = setting(
        "variance",
        "What the subspace and least squares keep best: the directions in which features vary most (variance), or those"
        " that change the tuned teacher's logits most (logits; subspace of a ViT only).",
    )
    recover_refit: Switch = setting("on", "Fit each layer to the teacher by least squares.")
    recover_classifier: Switch = setting(
        "off", "Fit the classifier to the logits of a teacher with the classes of the run (--tune-teacher)."
    )
    recover_views: int = setting(1, "Views of each image for least squares, as far as --recover-memory allows.", ge=1)
    recover_memory: float = setting(
        0.625, "Memory limit of least squares in GiB, approximately; five images are always used.", gt=0, le=4096
    )
    recover_epochs: int = setting(0, "Epochs of feature matching with the teacher's final tokens; 0: none.", ge=0)
    recover_batch_size: int = setting(64, "Images per step of feature matching.", ge=1)
    recover_learning_rate: float = setting(5e-4, "Peak at batch size 32; scaled linearly with the batch size.", ge=0)
    recover_target: RecoverTarget = setting(
        "all", "Match the student's channels, or all of the teacher's by a linear map."
    )
    recover_blocks: bool = setting(False, "Also match the residual stream after each block.")

    @property
    def num_epochs(self) -> int:
        """Epochs of feature matching; 0 without recovery."""
        return 0 if self.recover == "none" else self.recover_epochs

    @property
    def recovers_classifier(self) -> bool:
        """Whether the student's classifier is fitted to the teacher's logits."""
        return self.recover != "none" and self.recover_classifier == "on"

    @property
    def recovers_by_logits(self) -> bool:
        """Whether errors of the subspace and of least squares count by what they change in the teacher's logits."""
        is_least_squares = self.recover != "none" and self.recover_refit == "on" and self.recover_method == "refit"
        return is_least_squares and self.recover_stream != "channels" and self.recover_metric == "logits"

    @property
    def reads_logits(self) -> bool:
        """Whether recovery needs the teacher's logits for the classes of the run."""
        return self.recovers_classifier or self.recovers_by_logits

    @property
    def uses_subspace(self) -> bool:
        """Whether least squares must start from the teacher's principal subspace."""
        return self.recover != "none" and self.recover_refit == "on" and self.recover_stream == "subspace"

    @property
    def chooses_by_importance(self) -> tuple[str, str] | None:
        """The setting, with its value, that chooses heads or channels by importance; or None."""
        if self.uses_subspace:
            return "recover_stream", "subspace"
        is_rival = self.recover != "none" and self.recover_refit == "on" and self.recover_method != "refit"
        return ("recover_method", self.recover_method) if is_rival else None

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        has_step = self.recover_refit == "on" or self.recover_classifier == "on" or self.recover_epochs > 0
        if self.recover != "none" and not has_step:
            problem = "'0' with --recover-refit off and --recover-classifier off leaves no recovery step"
            fix = "Turn one of them on, give at least 1 epoch, or --recover none"
            raise TwinbudError(problem, where="--recover-epochs", fix=fix)
        if self.uses_subspace and self.recover_method != "refit":
            problem = f"'subspace' contradicts --recover-method {self.recover_method}, which prunes channels"
            raise TwinbudError(problem, where="--recover-stream", fix="Give --recover-stream channels")
        return self
