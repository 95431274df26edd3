"""What isotropic networks share: one residual stream (B, L, D) through all blocks."""

from __future__ import annotations

import torch

from twinbud.models.families.base import RecoverySupport, TimmModel
from twinbud.models.widths import Axis

RESIDUAL = Axis("residual")


class IsotropicRecovery(RecoverySupport):
    """One residual stream (B, L, D), prefix tokens included."""

    def tokens(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream unchanged."""
        return stream

    def finish(self, model: TimmModel, stream: torch.Tensor) -> torch.Tensor:
        """Return the stream after the final norm; unchanged if the model normalizes after pooling."""
        return model.norm(stream)
