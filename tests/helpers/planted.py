"""Images whose class is the color of a square at a random place, and small networks that learn it in a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.classifier import ClassifierHead
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vgg import VGG, ConvMlp

from helpers.builders import DINOV3, small_mixer
from twinbud.tasks.single import SingleLabel

TASK = SingleLabel(("blue", "none", "red"))
SIZE, SIDE = 32, 8
"""Side of the images and of their squares, in pixels."""
AREA = (SIDE / SIZE) ** 2
_RESNET: Any = ResNet
_BLOCKS = [["ds_r1_k3_s1_e1_c16"], ["ir_r1_k3_s2_e3_c24"], ["ir_r1_k3_s2_e3_c32"]]


def _efficientnet(**arguments: Any) -> Any:
    blocks = decode_arch_def(_BLOCKS)
    return EfficientNet(blocks, stem_size=8, num_features=48, fix_stem=True, **arguments)


def _vgg(num_classes: int) -> Any:
    """A VGG without its 4,096 hidden channels, which no argument changes."""
    model = VGG(cfg=[8, 16, "M", 32, "M", 32, "M"], num_classes=num_classes, norm_layer=torch.nn.BatchNorm2d)
    model.pre_logits, model.head = ConvMlp(32, 32), ClassifierHead(32, num_classes)
    return model


NETWORKS: dict[str, Callable[..., Any]] = {
    "vit": lambda **k: timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=32, depth=2, num_heads=4, **k
    ),
    "eva": lambda **k: timm.create_model("vit_small_patch16_dinov3", **{**DINOV3, "patch_size": 4}, **k),
    "swin": lambda **k: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=SIZE, patch_size=2, embed_dim=16, depths=[1, 1],
        num_heads=[2, 4], window_size=4, **k,
    ),
    "mixer": lambda **k: small_mixer(patch_size=4, **k),
    "convnext": lambda **k: timm.create_model(
        "convnext_atto", dims=[16, 32, 48, 64], depths=[1, 1, 1, 1], output_stride=8, patch_size=1, **k
    ),
    "vgg": _vgg,
    "resnet": lambda **k: _RESNET(BasicBlock, [1, 1, 1, 1], output_stride=8, channels=[8, 16, 16, 32], **k),
    "efficientnet": _efficientnet,
}  # fmt: skip
"""One small network of each family."""


@dataclass(frozen=True)
class Planted:
    """Images (N, 3, S, S) with noise, their classes (N,), and where the square of each is: (N, S, S) booleans."""

    images: torch.Tensor
    labels: torch.Tensor
    squares: torch.Tensor

    def visible(self) -> Planted:
        """Those that have a square."""
        chosen = self.labels != TASK.classes.index("none")
        return Planted(self.images[chosen], self.labels[chosen], self.squares[chosen])


def planted(count: int, seed: int) -> Planted:
    """Make images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 3, SIZE, SIZE), generator=generator) * 0.6 - 0.3
    labels = torch.randint(0, 3, (count,), generator=generator)
    corners = torch.randint(0, SIZE - SIDE + 1, (count, 2), generator=generator)
    inside = (torch.arange(SIZE) >= corners[..., None]) & (torch.arange(SIZE) < corners[..., None] + SIDE)
    squares = inside[:, 0, :, None] & inside[:, 1, None, :]
    for channel, name in ((0, "red"), (2, "blue")):
        images[:, channel] += 2.0 * (squares & (labels == TASK.classes.index(name))[:, None, None])
    return Planted(images, labels, squares)


def fitted_network(name: str, seed: int = 0) -> Any:
    """A network with random weights whose classifier is fitted to ``planted`` by least squares.

    Nothing in it depends on rounding, as the course of a training does.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = NETWORKS[name](num_classes=len(TASK.classes)).eval().requires_grad_(False)
        known = planted(192, seed=0)
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the statistics of the one batch
            norm.train()
        network(known.images)
        for norm in norms:
            norm.eval()
        features = network.forward_head(network.forward_features(known.images), pre_logits=True)
        inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        targets = 2 * F.one_hot(known.labels, len(TASK.classes)).double() - 1
        ridge = 1e-4 * len(inputs) * inputs.pow(2).mean() * torch.eye(inputs.shape[1])
        solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets).float()
        classifier = network.get_classifier()
        classifier.weight.copy_(5 * solution[:-1].T)
        classifier.bias.copy_(5 * solution[-1])
    return network


def trained_network(name: str, max_steps: int = 70) -> Any:
    """A network that tells the classes of ``planted`` apart, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name](num_classes=len(TASK.classes))
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, fused=True)
        losses = []
        for step in range(max_steps):
            batch = planted(16, seed=step)
            loss = F.cross_entropy(network.train()(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step > 15 and sum(losses[-3:]) < 0.6:
                break
    return network.eval().requires_grad_(False)
