"""Bring the attributes of timm's layers into step with smaller tensors; see ``narrowing``."""

from __future__ import annotations

from collections.abc import Mapping

from timm.layers.diff_attention import DiffAttention
from timm.layers.grn import GlobalResponseNorm
from timm.layers.layer_scale import LayerScale, LayerScale2d
from timm.layers.norm import RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame
from timm.models.metaformer import Scale
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel

Changes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Shapes before and after of the tensors that a module itself holds, by their names in the module."""
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNormAct2d)
_LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d)
_SCALES = (LayerScale, LayerScale2d, GlobalResponseNorm)
"""Layers that compute with their tensors alone."""
_FOLLOWING = ("num_features", "head_hidden_size", "in_features", "embed_dim")
"""Attributes of whole parts of a network with which timm gives it another classifier; see ``follow_sizes``."""
_HEADS = "num_heads"
"""The number of heads of an attention, which ``follow_sizes`` sets too; its tables have one entry a head."""


def resize_module(path: str, module: TimmModel, changes: Changes) -> None:
    """Set those attributes of ``module`` that its forward pass reads and that depend on the changed shapes.

    A type that is not known is accepted if it keeps no size of a changed tensor in an attribute of its own.

    Args:
        path: The module's name, for errors.
        module: The module; its tensors are not changed.
        changes: The tensors that change.

    Raises:
        TwinbudError: The module's type is not known, or it cannot have these sizes.
    """
    after, norm = next(iter(changes.values()))[1], module
    if isinstance(module, ScaledStdConv2d | ScaledStdConv2dSame):  # keeps a scale of its old fan-in
        raise _cannot_resize(path, module, changes)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        _resize_convolution(path, module, changes)
    elif isinstance(module, nn.Linear):
        if "weight" in changes:
            module.out_features, module.in_features = changes["weight"][1]
    elif isinstance(module, _BATCH_NORMS):
        norm.num_features = after[0]
    elif isinstance(module, _LAYER_NORMS):
        module.normalized_shape = after
    elif isinstance(module, nn.GroupNorm):
        _resize_group_norm(path, module, changes)
    elif isinstance(module, Scale):
        module.shape = (after[0], 1, 1) if len(module.shape) == 3 else (after[0],)
    elif not isinstance(module, _SCALES) and _keeps_size(module, changes):
        raise _cannot_resize(path, module, changes)


def _resize_convolution(path: str, layer: TimmModel, changes: Changes) -> None:
    """Set channels and groups: with the inputs of a group unchanged, whole groups go, as in depthwise kernels.

    Raises:
        TwinbudError: The groups cannot have equal sizes.
    """
    if "weight" not in changes:
        return
    (old_outputs, old_inputs, *_), (outputs, inputs, *_) = changes["weight"]
    if layer.groups > 1 and inputs == old_inputs:
        if layer.groups * outputs % old_outputs:
            raise _cannot_resize(path, layer, changes)
        layer.groups = layer.groups * outputs // old_outputs
    if outputs % layer.groups:
        raise _cannot_resize(path, layer, changes)
    layer.in_channels, layer.out_channels = inputs * layer.groups, outputs


def _resize_group_norm(path: str, norm: TimmModel, changes: Changes) -> None:
    """Set channels and groups: whole groups go, so that a group keeps its size; one group stays one.

    Raises:
        TwinbudError: The groups cannot have equal sizes.
    """
    (before, *_), (after, *_) = next(iter(changes.values()))
    if norm.num_groups > 1:
        if norm.num_groups * after % before:
            raise _cannot_resize(path, norm, changes)
        norm.num_groups = norm.num_groups * after // before
    norm.num_channels = after


def _keeps_size(module: nn.Module, changes: Changes) -> bool:
    """Return whether an attribute of ``module`` is, or contains, the old size of a changed dimension."""
    pairs = [pair for before, after in changes.values() for pair in zip(before, after, strict=True)]
    old = {before for before, after in pairs if before != after}
    values = [
        value for name, value in vars(module).items() if not name.startswith("_") and name not in (*_FOLLOWING, _HEADS)
    ]
    numbers = [number for value in values for number in (value if isinstance(value, tuple | list) else [value])]
    return any(isinstance(number, int) and not isinstance(number, bool) and number in old for number in numbers)


def follow_sizes(model: TimmModel, old_sizes: Mapping[str, int]) -> None:
    """Set attributes of whole parts of the network once all its layers are narrow.

    These are the number of attention heads, whose size stays, and the number of features, with which timm gives the
    network another classifier.

    Args:
        model: The network after it was made narrow.
        old_sizes: Length of the first dimension of each tensor before, without the classifier's.

    Raises:
        TwinbudError: An attention layer's inner width is not a multiple of the size of its heads.
    """
    for path, module in model.named_modules():
        projection = getattr(module, "proj", None)
        if isinstance(projection, nn.Linear) and hasattr(module, "num_heads") and hasattr(module, "head_dim"):
            _resize_attention(path, module, projection.in_features)
    sizes = {old: tensor.shape[0] for name, tensor in model.state_dict().items() if (old := old_sizes.get(name))}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, *_BATCH_NORMS)):
            continue
        for name in _FOLLOWING:
            before = getattr(module, name, None)
            if isinstance(before, int) and before in sizes:
                setattr(module, name, sizes[before])  # the last layer of that size comes before the classifier


def _resize_attention(path: str, module: TimmModel, inner: int) -> None:
    head_size = module.head_dim * (1 + isinstance(module, DiffAttention))  # which has two softmaxes
    if inner == module.num_heads * head_size:
        return
    if inner % head_size:
        raise TwinbudError(
            f"{type(module).__name__} '{path}' cannot have an inner width of {inner}: its heads have"
            f" {head_size} channels",
            where="narrowing",
            fix="Select whole heads",
        )
    module.num_heads = inner // head_size
    if hasattr(module, "attn_dim"):
        module.attn_dim = inner


def _cannot_resize(path: str, module: nn.Module, changes: Changes) -> TwinbudError:
    name, (before, after) = next(iter(changes.items()))
    full = f"{path}.{name}" if path else name
    return TwinbudError(
        f"a {type(module).__name__} cannot be made narrower ('{full}' from shape {before} to {after})",
        where="narrowing",
        fix="Keep this width whole, or choose another teacher",
    )
