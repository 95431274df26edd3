"""What twinbud needs to know about a family of timm models.

``SelectionFamily`` is the required part: how the tensors of a network share widths, and how to build a narrower one.
``RecoverySupport`` is the optional part, for families with a residual stream: with it, ``--recover`` can refit a
student's layers to the teacher. A family without it trains all methods of the paper.

A new family is one file in this folder and one line in ``registry.FAMILIES``. ``families/mixer.py`` is a short one.
``tests/models/families/test_proof.py`` proves a map of widths: add a small network of the family to ``NETWORKS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.heads import no_narrower_heads
from twinbud.models.widths import TensorSpec

State = dict[str, torch.Tensor]
TimmModel = Any
"""An nn.Module of timm, whose parts (``blocks``, ``stages``) are attributes that nn.Module does not type."""


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """Depth, width and attention heads of a network, one number per stage.

    Attributes:
        depths: Repeated blocks of each stage.
        widths: Channels of each stage.
        heads: Attention heads of each stage; empty for a network without attention.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    heads: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear layer inside a block, or a convolution that mixes channels, that least squares can refit.

    Attributes:
        name: Name of the layer inside its block.
        writes: Whether the layer's output, but for its scale or norm, is added to the residual stream or is the stream.
        scale: Name inside the block of the LayerScale between the layer and the stream, or None.
        norm: Name inside the block of the batch norm that alone reads the layer's output, or None; of a layer that
            writes, no activation follows it.
        to_stream_order: Maps what enters or leaves the layer to (B, L, channels), in the positions of the stream; None
            if the layer computes it in that order.
    """

    name: str
    writes: bool = False
    scale: str | None = None
    norm: str | None = None
    to_stream_order: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A part of a block: from the residual stream before it to the stream after it.

    Attributes:
        forward: The part as a function of the stream.
        linears: Its layers that mix channels, in the order in which they are computed. A part that mixes positions
            alone has none; it is never the last one of its block.
        has_shortcut: Whether the stream before the part is added to what its last layer writes.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    linears: tuple[LinearMap, ...] = ()
    has_shortcut: bool = True


class RecoverySupport(ABC):
    """The residual stream of a family: what recovery reads and refits.

    The stream enters the first of ``SelectionFamily.blocks`` and passes through all of them in order.
    Shapes: B images, S image side in pixels, L positions, D channels of the stream.
    """

    @abstractmethod
    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return the residual stream that enters the first block."""

    has_largest_stream_first: ClassVar[bool] = True
    """Whether no block's stream has more elements than that which enters the first block."""

    def layer_name(self, model: TimmModel, block: str, linear: str) -> str:
        """Return the full name of a layer of ``model``, given those of its block and inside the block."""
        del model
        return f"{block}.{linear}"

    @abstractmethod
    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return the parts whose composition is the block, in evaluation mode.

        Raises:
            TwinbudError: The block computes its layers in a way that recovery does not support.
        """

    def linear_maps(self, block: TimmModel) -> tuple[LinearMap, ...]:
        """Return the layers of all branches of a block, in order."""
        return tuple(linear for branch in self.branches(block) for linear in branch.linears)

    def stream_norms(self, model: TimmModel, option: str = "--recover-stream subspace") -> dict[str, tuple[str, ...]]:
        """Return the LayerNorms that read the stream, each with the layers of the blocks that read its output.

        With ``branches``, this says where a change of the stream's basis enters the weights. All names are full names.
        The last norm is the one before the classifier, which no layer of a block reads.

        Args:
            model: A network of the family.
            option: What needs to know them, for the error.

        Raises:
            TwinbudError: The family has more than one stream, or something else than these norms reads it.
        """
        raise no_single_stream(f"networks like {type(model).__name__}", option)

    @abstractmethod
    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """Return a residual stream as (B, L, D)."""

    def add(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the stream with ``tokens`` (B, L, D) added to it; the inverse of ``tokens`` gives their place."""
        return stream + tokens

    @abstractmethod
    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream after the last block, in its shape, normalized if the model normalizes before it pools."""


def no_single_stream(networks: str, option: str) -> TwinbudError:
    """Return the error for networks without one residual stream that LayerNorms alone read."""
    return TwinbudError(
        f"it does not support {networks}, only ViTs whose residual stream is read by LayerNorms alone",
        where=option,
        fix="Leave the option out, or choose a ViT such as dinov2-small as teacher",
    )


class SelectionFamily(ABC):
    """A family of timm models whose weights can be selected.

    Attributes:
        name: The family's name in messages.
        members: The name, and the names of variants that belong to the family, for messages.
        temperature: Default τ of equations 1-3 (paper section 4.1).
        drop_path: Default rate of stochastic depth (Xu et al., "Initializing Models with Larger Ones", ICLR 2024).
        memory_format: Memory layout of the weights during training.
        has_fixed_image_size: Whether the weights fix the image size, so that the students have the teacher's.
        recovery: The family's residual stream, or None if it has none.
        pairs: Examples of a teacher and a student, those of the paper first.
    """

    name: ClassVar[str]
    members: ClassVar[str]
    temperature: ClassVar[float]
    drop_path: ClassVar[float]
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    has_fixed_image_size: ClassVar[bool] = False
    recovery: ClassVar[RecoverySupport | None] = None
    pairs: ClassVar[tuple[tuple[str, str], ...]] = ()

    @abstractmethod
    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` belongs to this family."""

    def gains_from_bf16(self, model: TimmModel, device: torch.device) -> bool:
        """Return whether bf16 autocast makes training ``model`` faster on a device that has bf16 units."""
        del model, device
        return True

    @abstractmethod
    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the blocks that run one after another, by name and in order.

        ``layer_numbers`` counts them, and recovery refits them.
        """

    @abstractmethod
    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """Return the spec of every tensor in ``model.state_dict()``.

        Raises:
            TwinbudError: The model has a tensor that this family does not know.
        """

    def narrow_name(self, architecture: str, divisor: int) -> str:
        """Return the timm name of the teacher with every width divided by ``divisor``; by default, the teacher's own.

        With another name, ``narrow_sizes`` is not used, and ``narrow_arguments`` gives the other arguments.
        """
        del divisor
        return architecture

    @abstractmethod
    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` that divide every width of ``model``; see ``narrow_name``.

        The depth is that of the paper's pair (Table 1) if it has one for ``architecture``, and the model's otherwise.

        Raises:
            TwinbudError: A width cannot be divided by ``divisor``.
        """

    def teacher_names(self, teacher: TimmModel, student: TimmModel) -> dict[str, str]:
        """Return, for each tensor of the student, the name of the teacher's tensor that it is selected from.

        Only the families whose layers are numbered through the whole network need other names than the student's. A
        tensor that is left out has no counterpart.
        """
        del teacher
        return {name: name for name in student.state_dict()}

    def narrow_sizes(self, model: TimmModel, divisor: int) -> dict[str, int] | None:
        """Return the size of each width divided by ``divisor``, or None if ``narrow_arguments`` give it.

        A width that is not named stays whole. timm alone cannot build a network of such sizes; see ``narrowing``.

        Raises:
            TwinbudError: A width cannot be divided by ``divisor``.
        """
        del model, divisor
        return None

    @abstractmethod
    def shape(self, model: TimmModel) -> NetworkShape:
        """Return the depth, width and heads as the paper's Table 1 counts them."""

    def layer_numbers(self, model: TimmModel) -> dict[str, int]:
        """Return the number of each parameter's layer, in order from 0, for layer-wise learning-rate decay.

        The parameters before the first block form the first layer, each block is a layer, and those after the last
        block form the last layer (Bao et al., "BEiT", ICLR 2022).
        """
        blocks = list(self.blocks(model))
        numbers: dict[str, int] = {}
        number = 0
        for name, _ in model.named_parameters():  # in the order of the layers
            inside = [index for index, block in enumerate(blocks, 1) if name.startswith(f"{block}.")]
            number = inside[0] if inside else len(blocks) + 1 if number else 0
            numbers[name] = number
        return numbers

    def pooling_arguments(self, model: TimmModel) -> dict[str, Any]:
        """Return the timm arguments with which a network saved as a feature extractor gets one vector for an image."""
        del model
        return {}

    def form_arguments(self, teacher: TimmModel) -> dict[str, Any]:
        """Return the timm arguments with which another architecture of the family gets the teacher's layer types."""
        del teacher
        return {}

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Return the timm arguments that fix the input size, in pixels.

        Raises:
            TwinbudError: The architecture cannot process images of that size.
        """
        del model, image_size, where
        return {}

    def arguments_from_weights(self, model: TimmModel, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the timm arguments that only the shapes of saved tensors tell, such as the image size.

        Args:
            model: A network of their architecture, for any image size.
            state: The saved tensors.
        """
        del model, state
        return {}

    def check_attention(self, model: TimmModel, attention: Attention) -> None:
        """Refuse a way to index attention that would change what the channels of a head mean.

        Raises:
            TwinbudError: ``attention`` is not ``heads``, and the channels inside the heads of ``model`` have roles that
                the heads share; or it is ``within``, and the family has no heads that can get narrower.
        """
        if attention == "within":
            raise no_narrower_heads(model)

    def check_compatible(self, teacher: TimmModel, student: TimmModel, attention: Attention) -> None:
        """Refuse a student with a part that cannot be selected from this teacher.

        Raises:
            TwinbudError: There is such a part; the fix names a student that works.
        """
        del teacher, student, attention

    def fold_layer_scale(self, state: State, student_tensors: set[str]) -> tuple[State, dict[str, str]]:
        """Multiply LayerScale into the layer before it if the student has no tensor for it.

        Returns:
            The teacher's tensors after folding, and for each folded tensor the layer that it went into.
        """
        del student_tensors
        return state, {}

    def fit_positions(self, state: State, model: TimmModel) -> State:
        """Resample what depends on the image size, such as a position embedding, to the size of ``model``."""
        del model
        return state

    def require_recovery(self) -> RecoverySupport:
        """Return the family's recovery support.

        Raises:
            TwinbudError: It has none.
        """
        if self.recovery is None:
            raise TwinbudError(
                f"recovery is not implemented for {self.name}",
                where="--recover",
                fix="Use --recover none, or choose a teacher of another family",
            )
        return self.recovery
