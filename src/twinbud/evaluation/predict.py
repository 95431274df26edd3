"""Run a network over images that are already decoded and resized."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from twinbud.data.image_store import ImageSubset
from twinbud.data.prefetch import prefetch
from twinbud.data.preprocessing import Preprocessing


@torch.inference_mode()
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
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    normalize = preprocessing.normalization(device)
    order = torch.arange(len(images_NCSS)).split(batch_size)
    logits = [model(normalize(batch)).float().cpu() for batch in prefetch(images_NCSS, order, device)]
    model.train(was_training)
    return torch.cat(logits).numpy()
