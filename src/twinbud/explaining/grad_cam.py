"""Grad-CAM (Selvaraju et al., ICCV 2017): the layer's channels, weighed by the gradient of a score.

The score is differentiated only down to the layer: nothing before it takes part, which makes a map as cheap as two
forward passes of the network.

Shape legend: B images, D channels, S image side, h × w places of the layer's map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from twinbud.explaining.layers import MapLayer
from twinbud.models.families.base import TimmModel

Score = Callable[[torch.Tensor], torch.Tensor]
"""From logits (B, K) to the score of each image, (B,), that is to be explained."""


def grad_cam(
    model: TimmModel, images_BCSS: torch.Tensor, score: Score, layer: MapLayer, *, rectify: bool = True
) -> torch.Tensor:
    """Compute Grad-CAM: ReLU(Σ_d α_d A_d), with α_d the mean over all places of ∂score/∂A_d (equations 1 and 2).

    Args:
        model: Classifier in evaluation mode.
        images_BCSS: Normalized images.
        score: What is explained.
        layer: A.
        rectify: Apply the ReLU, which leaves nothing of some maps.

    Returns:
        (B, h, w) float32, not scaled; at least 0 if it is rectified.
    """
    watched: list[torch.Tensor] = []

    def watch(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        watched.append(output.detach().requires_grad_())
        return watched[-1].clone()  # the next layer may change it in place

    handle = model.get_submodule(layer.name).register_forward_hook(watch)
    try:
        with torch.enable_grad():
            scores_B = score(model(images_BCSS))
            (gradient,) = torch.autograd.grad(scores_B.sum(), watched[-1])
    finally:
        handle.remove()
    output_BDhw, gradient_BDhw = layer.to_map(watched[-1].detach()), layer.to_map(gradient)
    weights_BD = gradient_BDhw.mean(dim=(2, 3))
    maps_Bhw = torch.einsum("bd,bdhw->bhw", weights_BD, output_BDhw).float()
    return maps_Bhw.relu() if rectify else maps_Bhw
