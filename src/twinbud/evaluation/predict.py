"""Run a network over images that are already decoded and resized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.data.image_store import ImageSubset
from twinbud.data.prefetch import prefetch
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.families.base import TimmModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What a network says of N images.

    Attributes:
        logits_NK: (N, K) float32.
        features_ND: (N, D) float32, which its classifier reads.

    Raises:
        TwinbudError: A value is not finite.
    """

    logits_NK: np.ndarray
    features_ND: np.ndarray

    def __post_init__(self) -> None:
        is_finite_N = np.isfinite(self.logits_NK).all(axis=1) & np.isfinite(self.features_ND).all(axis=1)
        if not is_finite_N.all():
            num_bad = np.count_nonzero(~is_finite_N)
            problem = f"a logit or feature is NaN or infinite for {num_bad} of {len(self.logits_NK)} images"
            raise TwinbudError(problem, where="the network", fix="Restore its model.safetensors, or train again")


def predict_logits(
    model: nn.Module,
    images_NCSS: torch.Tensor | ImageSubset,
    *,
    preprocessing: Preprocessing,
    batch_size: int = 64,
) -> np.ndarray:
    """Compute the logits of a network in evaluation mode, in float32.

    Args:
        model: Classifier; its mode is restored afterwards.
        images_NCSS: uint8 pixels (N, C, S, S) of one channel or three, not augmented, on any device.
        preprocessing: Preprocessing of the network's input.
        batch_size: Images per batch; it affects only the speed.

    Returns:
        (N, K) float32.
    """
    return _run(model, lambda images_BCSS: (model(images_BCSS),), images_NCSS, preprocessing, batch_size)[0]


def predict_outputs(
    model: TimmModel, images_NCSS: torch.Tensor | ImageSubset, *, preprocessing: Preprocessing, batch_size: int = 64
) -> Outputs:
    """Compute logits and features in one pass; arguments as for ``predict_logits``, whose logits are the same."""

    def outputs(images_BCSS: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raw = model.forward_features(images_BCSS)
        return model.forward_head(raw), model.forward_head(raw, pre_logits=True)

    logits_NK, features_ND = _run(model, outputs, images_NCSS, preprocessing, batch_size)
    return Outputs(logits_NK=logits_NK, features_ND=features_ND)


@torch.inference_mode()
def _run(
    model: nn.Module,
    compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    images_NCSS: torch.Tensor | ImageSubset,
    preprocessing: Preprocessing,
    batch_size: int,
) -> tuple[np.ndarray, ...]:
    """Return each result of ``compute`` for all images, on the CPU in float32."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    normalize = preprocessing.normalization(device)
    order = torch.arange(len(images_NCSS)).split(batch_size)
    batches = [
        [part.float().cpu() for part in compute(normalize(batch))] for batch in prefetch(images_NCSS, order, device)
    ]
    model.train(was_training)
    return tuple(torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
