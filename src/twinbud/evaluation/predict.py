"""Run a network over images that are already decoded and resized."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from twinbud.data.augment import Normalisation


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module,
    images_NCSS: torch.Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 64,
) -> np.ndarray:
    """Class probabilities of a network in evaluation mode, computed in float32.

    Args:
        model: Classifier; its mode is restored afterwards.
        images_NCSS: uint8 pixels (N, 3, S, S), not augmented.
        mean: The network's normalisation.
        std: The network's normalisation.
        batch_size: Images at once; it changes nothing but the speed.

    Returns:
        (N, K) float64, each row summing to 1.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    normalise = Normalisation.on(device, mean, std)
    logits = [model(normalise(batch.to(device))).double().cpu() for batch in images_NCSS.split(batch_size)]
    model.train(was_training)
    return torch.cat(logits).softmax(dim=1).numpy()
