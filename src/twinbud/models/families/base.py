"""What a model family must say about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from twinbud.config import Attention
from twinbud.models.widths import TensorSpec

State = dict[str, torch.Tensor]
TimmModel = Any
"""An nn.Module of timm's, whose parts (``blocks``, ``stages``) are reached by name, which nn.Module does not type."""


class Family(ABC):
    """One family of timm models: its widths, its halves, and its few peculiarities.

    Attributes:
        name: What users call it.
        temperature: τ of equations 1-3 in the paper's runs (section 4.1).
        drop_path: Stochastic depth of the weight-selection recipe.
        memory_format: How its weights lie in memory while it is trained.
    """

    name: ClassVar[str]
    temperature: ClassVar[float]
    drop_path: ClassVar[float]
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format

    @abstractmethod
    def owns(self, model: TimmModel) -> bool:
        """Whether ``model`` is of this family."""

    @abstractmethod
    def specs(self, model: TimmModel, attention: Attention) -> dict[str, TensorSpec]:
        """The spec of every tensor in ``model.state_dict()``.

        Raises:
            TwinbudError: The model has a part that this family does not know.
        """

    @abstractmethod
    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        """timm arguments that halve every width of ``model`` and take the pair table's depth, else its own."""

    def form_arguments(self, teacher: TimmModel) -> dict[str, Any]:
        """timm arguments that build another architecture of the family in the teacher's form."""
        del teacher
        return {}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """timm arguments that fix the input size.

        Raises:
            TwinbudError: The architecture cannot take images of that size.
        """
        del model, image_size, where
        return {}

    def check_compatible(self, teacher: TimmModel, student: TimmModel) -> None:
        """Refuse a student with a part that cannot be cut out of this teacher.

        Raises:
            TwinbudError: Such a part, with a student that fits.
        """
        del teacher, student

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """Multiply LayerScale into the weights before it, where the student has no place for it.

        Returns:
            The teacher's tensors after folding, and the tensors that were folded away with where they went.
        """
        del student_tensors
        return state, {}

    def fit_positions(self, state: State, model: TimmModel) -> State:
        """Resample the position embedding, if there is one, to the grid of ``model``."""
        del model
        return state
