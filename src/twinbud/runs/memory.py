"""Refuse to train a network whose weights, gradients and moments do not fit into memory."""

from __future__ import annotations

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.core.memory import available_bytes
from twinbud.models.outline import count_parameters

_BYTES_PER_PARAMETER = 16
"""Weights, gradients and AdamW's two moments, in float32; activations come on top."""


def require_training_memory(network: nn.Module, device: torch.device, *, what: str, where: str, fix: str) -> None:
    """Require memory for a network's weights, gradients and moments before training runs out of it.

    Args:
        network: The network to train.
        device: Where it is trained.
        what: The training, for the error, such as "fine-tuning".
        where: The option that asked for it.
        fix: What to do.

    Raises:
        TwinbudError: Less is free.
    """
    num_parameters = count_parameters(network)
    needed, free = num_parameters * _BYTES_PER_PARAMETER, available_bytes(device)
    if needed > free:
        raise TwinbudError(
            f"{what} {num_parameters / 1e6:,.0f} million parameters needs more than {needed / 2**20:,.0f} MiB of"
            f" memory, but {free / 2**20:,.0f} MiB are free",
            where=where,
            fix=fix,
        )
