"""What a model family must say about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from twinbud.config.schema import Attention
from twinbud.models.widths import TensorSpec

State = dict[str, torch.Tensor]
TimmModel = Any
"""An nn.Module of timm's, whose parts (``blocks``, ``stages``) are reached by name, which nn.Module does not type."""


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear layer inside a block, or a convolution that mixes channels, and where its output goes.

    Attributes:
        name: The layer's, inside its block.
        begins: For a layer that writes into the residual stream, the part of the block whose input is the stream
            before; None for one whose output is used inside the block.
        ends: The part whose input is the stream after, or None where that is the block's output.
        scale: LayerScale between the layer and the stream, by its name inside the block.
    """

    name: str
    begins: str | None = None
    ends: str | None = None
    scale: str | None = None


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

    @abstractmethod
    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """The residual stream that enters the first block."""

    @abstractmethod
    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """All that turns one residual stream into the next, by name and in order."""

    @abstractmethod
    def spans(self, student: TimmModel, teacher: TimmModel) -> dict[str, list[str]]:
        """For each block of the student those of the teacher that it stands for, the one it was cut out of first."""

    @abstractmethod
    def stream_width(self, block: str) -> str:
        """The name of the width that the stream after ``block`` has."""

    @abstractmethod
    def linear_maps(self, block: TimmModel) -> tuple[LinearMap, ...]:
        """The layers of a block that mix channels, in the order in which they are computed."""

    @abstractmethod
    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """A residual stream as (B, L, D): L positions of D channels."""

    @abstractmethod
    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """The final tokens: the stream after the last block, and after the norm if one comes before pooling."""
