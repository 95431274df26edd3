"""Along which widths the residual streams of a network run, and which of them are linear."""

from __future__ import annotations

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.widths import Axis

_MEANS = ("", "avg", "fastavg")
"""Kinds of pooling in timm that are linear."""


def stream_widths(family: SelectionFamily, network: TimmModel) -> dict[str, str]:
    """Return, for each block, the width along which the stream's channels run after it: its last layer's outputs."""
    recovery, specs, widths = family.require_recovery(), family.specs(network), dict[str, str]()
    for name, block in family.blocks(network).items():
        last = recovery.linear_maps(block)[-1]
        axis = specs[f"{recovery.layer_name(network, name, last.name)}.weight"].axes[0]
        assert isinstance(axis, Axis), f"the outputs of {name} run along no width"
        widths[name] = axis.width
    return widths


def linear_streams(family: SelectionFamily, network: TimmModel) -> frozenset[str]:
    """Return the widths of streams whose channels only linear maps mix, so that any basis is as good as the channels.

    Such a stream is what linear bottlenecks (Sandler et al., "MobileNetV2", CVPR 2018) write: convolutions with batch
    norms and without activation. What reads it are layers that mix its channels; an activation, a LayerNorm, a
    depthwise convolution or a maximum over positions would see single channels.
    """
    if getattr(getattr(network, "global_pool", None), "pool_type", "avg") not in _MEANS:
        return frozenset()
    recovery, widths = family.require_recovery(), stream_widths(family, network)
    found, writers = set[str](), set[str]()
    for name, block in family.blocks(network).items():
        last = recovery.linear_maps(block)[-1]
        if last.writes and last.norm:
            found.add(widths[name])
            writers.update(recovery.layer_name(network, name, part) for part in (last.name, last.norm))
    for name, spec in family.specs(network).items():
        for dimension, axis in spec.widths():
            is_written = dimension == 0 and name.rpartition(".")[0] in writers
            if axis.copies > 1 or axis.unit > 1 or (dimension == 0 and not is_written):
                found.discard(axis.width)
    return frozenset(found)


def require_subspace(family: SelectionFamily, network: TimmModel) -> None:
    """Require that the student's residual stream can be a projection of the teacher's.

    Args:
        family: The family of ``network``.
        network: The student's architecture.

    Raises:
        TwinbudError: Something reads single channels of every stream, but for the LayerNorms of a ViT.
    """
    if not has_subspace(family, network):
        raise TwinbudError(
            f"'subspace' is not possible for this {type(network).__name__}: it needs a ViT whose blocks read the stream"
            " only through LayerNorms, or a network with linear bottlenecks (most EfficientNets)",
            where="--recover-stream",
            fix="Give --recover-stream channels",
        )


def has_subspace(family: SelectionFamily, network: TimmModel) -> bool:
    """Return whether the student's residual stream can be a projection of the teacher's."""
    if linear_streams(family, network):
        return True
    try:
        family.require_recovery().stream_norms(network)
    except TwinbudError:
        return False
    return True
