"""Swin Transformer (V1): attention in shifted windows, in stages, as timm's ``SwinTransformer`` builds it."""

from __future__ import annotations

import math
import re
import warnings
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformer, window_reverse
from torch import nn

from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import (
    Branch,
    LinearMap,
    NetworkShape,
    RecoverySupport,
    SelectionFamily,
    State,
    TimmModel,
)
from twinbud.models.families.stages import stage_blocks, student_depths
from twinbud.models.widths import Axis, Role, TensorSpec

PAIR_DEPTHS = {"swin_large_patch4_window7_224": (2, 2, 6, 2)}
"""Depths of students: half of Swin-L is Swin-T."""
_TABLE = "attn.relative_position_bias_table"


class SwinRecovery(RecoverySupport):
    """One residual stream (B, H, W, D) per stage."""

    def embed(self, model: TimmModel, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return (B, H, W, D), the normalized patch embeddings."""
        return model.patch_embed(images_BCSS)

    def branches(self, block: TimmModel) -> tuple[Branch, ...]:
        """Return attention and MLP of a block, or a patch merging, which is linear after its norm.

        Attention sees the positions window by window, with padding where windows do not divide the map.
        """
        if hasattr(block, "reduction"):
            return (Branch(forward=block, linears=(LinearMap(name="reduction"),)),)
        order = partial(_from_windows, block)
        return (
            Branch(
                forward=lambda stream: stream + block._attn(block.norm1(stream)),
                linears=(
                    LinearMap(name="attn.qkv", to_stream_order=order),
                    LinearMap(name="attn.proj", writes=True, to_stream_order=order),
                ),
            ),
            Branch(
                forward=lambda stream: (
                    stream + block.mlp(block.norm2(stream.flatten(1, 2))).unflatten(1, stream.shape[1:3])
                ),
                linears=(LinearMap(name="mlp.fc1"), LinearMap(name="mlp.fc2", writes=True)),
            ),
        )

    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """Reshape (B, H, W, D) to (B, H·W, D)."""
        return stream.flatten(1, 2)

    def add(self, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Add (B, H·W, D) to (B, H, W, D)."""
        return stream + tokens.unflatten(1, stream.shape[1:3])

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """Return the last stage's map after the final norm."""
        return model.norm(stream)


class SwinFamily(SelectionFamily):
    """Widths: one per stage; in each block the attention's inner width, its heads, and the MLP's hidden width."""

    name: ClassVar[str] = "Swin"
    members: ClassVar[str] = "Swin (V1)"
    temperature: ClassVar[float] = 4.0
    drop_path: ClassVar[float] = 0.1
    recovery: ClassVar[RecoverySupport | None] = SwinRecovery()
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("swin_large_patch4_window7_224.ms_in22k", "swin_tiny_patch4_window7_224"),
        ("swin_base_patch4_window7_224.ms_in22k", "half"),
    )

    def owns(self, model: nn.Module) -> bool:
        """Return whether ``model`` is timm's SwinTransformer (V1)."""
        return isinstance(model, SwinTransformer)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        """Return the patch merging, if any, and the blocks of each stage."""
        return stage_blocks("layers", model.layers)

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        """See ``SelectionFamily.specs``."""
        return {name: _spec(model, name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def narrow_arguments(self, architecture: str, model: TimmModel, divisor: int) -> dict[str, Any]:
        """Divide the width and the number of heads of every stage; the head size stays.

        Raises:
            TwinbudError: The number of heads of a stage cannot be divided by ``divisor``.
        """
        shape = self.shape(model)
        if wrong := [f"{heads} in stage {stage}" for stage, heads in enumerate(shape.heads) if heads % divisor]:
            raise TwinbudError(
                f"the attention heads cannot be divided by {divisor} ({', '.join(wrong)})",
                where=architecture,
                fix="Use --student half with a teacher that has even numbers of heads, such as"
                " swin_base_patch4_window7_224 or swin_large_patch4_window7_224",
            )
        depths = student_depths(architecture, shape.depths, PAIR_DEPTHS)
        heads = [heads // divisor for heads in shape.heads]
        return {"embed_dim": shape.widths[0] // divisor, "depths": depths, "num_heads": heads}

    def shape(self, model: TimmModel) -> NetworkShape:
        """See ``SelectionFamily.shape``."""
        stages = list(model.layers)
        return NetworkShape(
            depths=tuple(len(stage.blocks) for stage in stages),
            widths=tuple(stage.blocks[0].dim for stage in stages),
            heads=tuple(stage.blocks[0].attn.num_heads for stage in stages),
        )

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        """Return ``img_size``; timm shrinks windows that are larger than a stage's map, and pads smaller ones.

        Raises:
            TwinbudError: The size is not a multiple of the patch size, or leaves the last stage without a position.
        """
        patch = model.patch_embed.patch_size[0]
        smallest = patch * 2 ** (len(model.layers) - 1)
        if image_size % patch or image_size < smallest:
            below = max(smallest, image_size // patch * patch)
            nearest = f"{below}" if image_size < smallest else f"{below} or {below + patch}"
            raise TwinbudError(
                f"a Swin takes images of at least {smallest} pixels, a multiple of its patch size {patch};"
                f" {image_size} is given",
                where=where,
                fix=f"Use --image-size {nearest}",
            )
        return {"img_size": image_size}

    def check_compatible(self, teacher: TimmModel, student: TimmModel, attention: Attention) -> None:
        """Require the teacher's head size, which selection keeps.

        Raises:
            TwinbudError: The student's is another one in some stage.
        """
        del attention
        student_sizes, teacher_sizes = (
            [_head_size(stage.blocks[0]) for stage in model.layers] for model in (student, teacher)
        )
        for stage, (size, expected) in enumerate(zip(student_sizes, teacher_sizes, strict=False)):
            if size != expected:
                raise TwinbudError(
                    f"the student's attention heads have {size} channels in stage {stage}, the teacher's {expected}",
                    where="--student",
                    fix="Use --student half, or a student whose number of heads shrinks with its width",
                )

    def fit_positions(self, state: State, model: TimmModel) -> State:
        """Resample each table of relative positions to the window of ``model``, as timm itself does.

        Raises:
            TwinbudError: A window that is not square has another size in ``model``.
        """
        result = dict(state)
        for block in self.blocks(model):
            name = f"{block}.{_TABLE}"
            if name in state:
                window = model.get_submodule(f"{block}.attn").window_size
                result[name] = _resized_table(name, state[name], window)
        return result


def _head_size(block: TimmModel) -> int:
    return block.attn.proj.in_features // block.attn.num_heads


def _from_windows(block: TimmModel, features: torch.Tensor) -> torch.Tensor:
    """Return features (B·windows, positions, D) of a block's attention as (B, H·W, D), without padding and shift."""
    height, width = block.input_resolution
    padded = [
        math.ceil(side / window) * window for side, window in zip((height, width), block.window_size, strict=True)
    ]
    windows = features.unflatten(1, block.window_size)
    map_BHWD = window_reverse(windows, block.window_size, *padded)[:, :height, :width]
    return map_BHWD.roll(shifts=tuple(block.shift_size), dims=(1, 2)).flatten(1, 2)


def _resized_table(name: str, table: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Return a table of relative positions (positions, heads) for a window (rows, columns).

    Raises:
        TwinbudError: Its own window, or the new one, is not square.
    """
    length = math.prod(2 * side - 1 for side in window)
    if len(table) == length:
        return table
    if len(table) == 1:  # of a window with one position, where timm has nothing to interpolate
        return table.expand(length, -1).clone()
    if window[0] != window[1] or math.isqrt(len(table)) ** 2 != len(table):
        raise TwinbudError(
            f"'{name}' of {len(table)} relative positions is not resampled to a window of {window[0]} × {window[1]}",
            where="--image-size",
            fix="Use an image size that keeps the window, or a network whose windows are square",
        )
    with warnings.catch_warnings():  # torch's, about how timm indexes
        warnings.simplefilter("ignore", UserWarning)
        return resize_rel_pos_bias_table(table, new_window_size=window, new_bias_shape=(length, table.shape[1]))


def _stage(number: str | int) -> Axis:
    return Axis(f"stage/{number}")


def _spec(model: TimmModel, name: str, dimensions: int) -> TensorSpec:
    """Return the spec of the tensor ``name``.

    Raises:
        TwinbudError: No width is defined for it.
    """
    axes: tuple[Axis | None, ...] | None = None
    role: Role = "weight"
    layer: str | None = None
    part, _, kind = name.rpartition(".")
    last = _stage(len(model.layers) - 1)
    if match := re.fullmatch(rf"(layers\.\d+\.blocks\.\d+)\.{re.escape(_TABLE)}", name):
        return TensorSpec((None, Axis(f"heads/{match[1]}")), "relative-position", layer=match[1])
    if match := re.fullmatch(r"(layers\.(\d+)\.blocks\.\d+)\.(.+)", part):
        axes, layer = _block_axes(model, match[1], match[2], match[3]), match[1]
    elif match := re.fullmatch(r"layers\.(\d+)\.downsample\.(norm|reduction)", part):
        four = Axis(_stage(int(match[1]) - 1).width, copies=4)
        axes = (four,) if match[2] == "norm" else (_stage(match[1]), four)
    elif part == "patch_embed.proj":
        axes, role = (_stage(0), None, None, None), "patch" if kind == "weight" else "weight"
    elif part in ("patch_embed.norm", "norm"):
        axes = (_stage(0) if part == "patch_embed.norm" else last,)
    elif part == "head.fc":
        axes, role = (None, last), "classifier"
    if axes is None or kind not in ("weight", "bias"):
        raise TwinbudError(
            f"{type(model).__name__} has tensor '{name}', for which no width is defined",
            where="selection from a Swin",
            fix="Choose another teacher or student",
        )
    return TensorSpec(axes[:dimensions], role, layer)


def _block_axes(model: TimmModel, block: str, stage: str, part: str) -> tuple[Axis | None, ...] | None:
    """Return the axes of a part's weight; its bias runs along the first of them."""
    width, hidden = _stage(stage), Axis(f"mlp/{block}")
    inner = Axis(f"attention/{block}", head_size=_head_size(model.get_submodule(block)))
    return {
        "norm1": (width,),
        "norm2": (width,),
        "attn.qkv": (Axis(inner.width, copies=3, head_size=inner.head_size), width),
        "attn.proj": (width, inner),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }.get(part)
