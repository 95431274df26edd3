"""A task: what is asked of an image, and all that follows from it for training and evaluation.

Shape legend: N samples, B batch, C classes, K outputs (logits) of the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from twinbud.config.schema import Distillation
from twinbud.config.task import Aggregate, TaskName
from twinbud.tasks.formulas import class_weights


@dataclass(frozen=True, eq=False)
class Balancing:
    """How the loss allows for classes of different size; None for what is not used.

    Attributes:
        weights: Of each class, (C,) float32, with mean 1 over the training images.
        shift: Added to the logits of each image in training, (K,) float32: the log-odds of the training images.
    """

    weights: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def to(self, device: torch.device) -> Balancing:
        """Copy to another device."""
        return Balancing(*(None if part is None else part.to(device) for part in (self.weights, self.shift)))


UNBALANCED = Balancing()
"""Every image counts the same."""


@dataclass(frozen=True)
class Task(ABC):
    """What is asked of an image; every rule that depends on it is a method.

    Targets are the labels as training and evaluation need them: int64 class indices (N,), or, of mixed images,
    probabilities of the classes (N, C).

    Attributes:
        classes: Class names, in the order of the probabilities.
    """

    name: ClassVar[TaskName]
    has_order: ClassVar[bool] = False
    """Whether the classes are grades, so that the distance of a prediction from its label counts."""
    is_exclusive: ClassVar[bool] = True
    """Whether each image has exactly one class, so that probabilities sum to 1 and targets are class indices."""
    usage: ClassVar[tuple[str, ...]] = ("probabilities = model(image[None]).softmax(dim=-1)[0]",)
    """Lines of Python that compute the probabilities of one image with timm alone, for the model card."""
    unsupported: ClassVar[Mapping[Distillation, str]] = {}
    """For each source of soft targets that does not fit, why, as a clause that follows ``--task NAME,``."""

    classes: tuple[str, ...]

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """K, the number of logits of the network."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Name of each logit."""
        return self.classes

    def encode(self, labels: Sequence[str]) -> torch.Tensor:
        """Return the targets of labels, on the CPU.

        Raises:
            ValueError: A label is not among the classes.
        """
        return torch.tensor([self.classes.index(label) for label in labels], dtype=torch.int64)

    def to_mix(self, targets: torch.Tensor) -> torch.Tensor:
        """Return targets (B, C), float32, of which a weighted mean is the target of a mixed image."""
        return F.one_hot(targets, len(self.classes)).float()

    def cross_entropy(
        self,
        logits_BK: torch.Tensor,
        targets: torch.Tensor,
        *,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        balancing: Balancing = UNBALANCED,
    ) -> torch.Tensor:
        """Compute L_ce (eq. 4), a scalar, from logits that are at least float32.

        Args:
            logits_BK: Logits of the student, before the shift of ``balancing``.
            targets: Targets of the batch.
            temperature: Divides the logits.
            label_smoothing: ε in [0, 1): share of each target that is spread evenly.
            balancing: Class weights, or the shift of the logits: the logit adjustment of Menon et al., ICLR 2021,
                with their τ = 1.
        """
        logits_BK = logits_BK if balancing.shift is None else logits_BK + balancing.shift
        return self._cross_entropy(logits_BK / temperature, targets, label_smoothing, balancing.weights)

    @abstractmethod
    def _cross_entropy(
        self, logits_BK: torch.Tensor, targets: torch.Tensor, label_smoothing: float, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute L_ce from logits that are shifted and divided by the temperature."""

    @abstractmethod
    def divergence(
        self,
        student_BK: torch.Tensor,
        targets_BK: torch.Tensor,
        temperature: float,
        *,
        targets_are_probabilities: bool = False,
    ) -> torch.Tensor:
        """Compute L_skd (eqs. 1-3), a scalar: from soft targets to the student."""

    @abstractmethod
    def curvature(self, logits_BK: torch.Tensor, noise_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return a scalar whose gradient with respect to the logits shows how an error there changes ``divergence``.

        Args:
            logits_BK: z.
            noise_BK: Standard normal; over it, the gradient has as covariance the second derivatives of the sum of the
                images' divergences, but for a constant factor, where student and targets agree.
            temperature: τ.
        """

    @abstractmethod
    def mean_logits(self, one_BK: torch.Tensor, other_BK: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return logits (B, K) whose softened probabilities are the mean of those of two networks."""

    @abstractmethod
    def num_correct(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return a scalar, the number of images classified correctly; of a mixed image, its largest share counts."""

    def counts(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return how many of the images show each class: (C,) int64."""
        return torch.bincount(targets_N, minlength=len(self.classes))

    def class_weights(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the class weights with which all classes count the same in the loss."""
        return class_weights(targets_N, len(self.classes))

    def sample_weights(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the (N,) weights with which a sampler draws every class equally often."""
        return self.class_weights(targets_N)[targets_N]

    @abstractmethod
    def prior_logits(self, targets_N: torch.Tensor) -> torch.Tensor:
        """Return the logits (K,) of a network that knows nothing but how frequent each class is among the images.

        A class without an image counts as if it had one.
        """

    def binary_targets(self, targets_N: torch.Tensor) -> torch.Tensor | None:
        """Return for each output what it learns from each image: (N, K) float32, 1 yes, 0 no, NaN nothing.

        None where the outputs depend on each other through a softmax.
        """
        del targets_N

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """Return the class probabilities (N, C), computed in float64; each row sums to 1."""
        return self.tensor_probabilities(torch.from_numpy(logits_NK).double()).numpy()

    @abstractmethod
    def tensor_probabilities(self, logits_NK: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities (N, C) in the dtype of the logits; an export traces this formula."""

    @abstractmethod
    def predicted(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 indices of the predicted classes."""

    def accuracy(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of correct predictions, in [0, 1]."""
        return float((predicted == labels).mean())

    def mistakes(self, probabilities_NC: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the probability of each wrong prediction, (N,) float64; NaN where the prediction is right."""
        predicted = self.predicted(probabilities_NC)
        confidence = probabilities_NC[np.arange(len(predicted)), predicted]
        return np.where(predicted != labels, confidence, np.nan)

    def texts(self, values: np.ndarray) -> list[str]:
        """Return the text of each label or prediction."""
        return [self.classes[value] for value in values]

    def decided_by(self, examples: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Task:
        """Return the task with the thresholds that suit examples, if it has any.

        Args:
            examples: Computes probabilities (N, C) and labels of images that are not tested on.
        """
        del examples
        return self

    def at_temperature(self, temperature: float) -> Task:
        """Return the task that decides about the probabilities of z / T as this one does about those of z.

        The most probable class is the same at every T. The median grade is that of z / T, which may differ.
        """
        del temperature
        return self

    def aggregate(self, probabilities_NC: np.ndarray, how: Aggregate) -> np.ndarray:
        """Join the probabilities of the images of one patient: (C,) float64, which sum to 1."""
        if how == "mean":
            return probabilities_NC.mean(axis=0)
        joined = probabilities_NC.max(axis=0) if how == "max" else 1 - (1 - probabilities_NC).prod(axis=0)
        return joined / joined.sum()

    def joined_label(self, labels: np.ndarray) -> Any:
        """Return the label of a patient whose images have ``labels``; None where they contradict each other."""
        return int(labels[0]) if (labels == labels[0]).all() else None

    def to_json(self) -> dict[str, Any]:
        """Return what a model folder keeps of the task beside the class names; nothing for single."""
        return {"task": self.name}
