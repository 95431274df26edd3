"""Along which widths the residual streams of a network run, and which of them are linear."""

from __future__ import annotations

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.widths import Axis


def stream_width(family: SelectionFamily, network: TimmModel, block: str) -> str:
    """Return the width along which the stream's channels run after a block: that of its last layer's outputs."""
    recovery = family.require_recovery()
    last = recovery.linear_maps(family.blocks(network)[block])[-1]
    axis = family.specs(network)[f"{recovery.layer_name(network, block, last.name)}.weight"].axes[0]
    assert isinstance(axis, Axis), f"the outputs of {block} run along no width"
    return axis.width


def linear_streams(family: SelectionFamily, network: TimmModel) -> frozenset[str]:
    """Return the widths of streams whose channels only linear maps mix, so that any basis is as good as the channels.

    Such a stream is what linear bottlenecks (Sandler et al., "MobileNetV2", CVPR 2018) write: convolutions with batch
    norms and without activation. What reads it are layers that mix its channels; an activation, a LayerNorm or a
    depthwise convolution would see single channels.
    """
    recovery = family.require_recovery()
    written, per_channel = set[str](), set[str]()
    for name, block in family.blocks(network).items():
        last = recovery.linear_maps(block)[-1]
        if last.writes and last.norm:
            written.add(stream_width(family, network, name))
            layers = (recovery.layer_name(network, name, part) for part in (last.name, last.norm))
            per_channel.update(layers)
    found = set(written)
    for name, spec in family.specs(network).items():
        for dimension, axis in spec.widths():
            is_part = axis.copies > 1 or axis.unit > 1
            is_read_by_channel = dimension == 0 and name.rpartition(".")[0] not in per_channel
            if is_part or is_read_by_channel:
                found.discard(axis.width)
    return frozenset(found)


def require_subspace(family: SelectionFamily, network: TimmModel, option: str) -> None:
    """Require that the student's residual stream can be a projection of the teacher's.

    Args:
        family: The family of ``network``.
        network: The student's architecture.
        option: What asks for it, for the error.

    Raises:
        TwinbudError: Something reads single channels of every stream, but for the LayerNorms of a ViT.
    """
    if not linear_streams(family, network):
        family.require_recovery().stream_norms(network, option)


def has_subspace(family: SelectionFamily, network: TimmModel) -> bool:
    """Return whether ``require_subspace`` accepts the network."""
    try:
        require_subspace(family, network, "--recover-stream subspace")
    except TwinbudError:
        return False
    return True
