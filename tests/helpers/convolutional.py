"""Small networks of the convolutional families, some of them narrower than timm's arguments can build."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.narrowing import Shapes, build_network, narrowed_shapes
from twinbud.models.outline import outline
from twinbud.models.untrusted import NARROWED
from twinbud.models.widths import width_sizes


def small_shapes(architecture: str, largest: int, **arguments: Any) -> Shapes:
    """Shapes of timm's network of that name with ``largest`` to ``largest`` + 4 indices in each width, an even number.

    ``largest`` is even; a width that has fewer indices keeps them.
    """
    whole = outline(architecture, "test", **{"num_classes": 1, **arguments})
    specs, state = family_of(whole).specs(whole), whole.state_dict()
    # neighboring widths differ, so that a wrong map cannot fit by chance
    sizes = {
        width: min(size, largest + 2 * (place % 3))
        for place, (width, size) in enumerate(width_sizes(specs, state).items())
    }
    return narrowed_shapes(specs, state, sizes)


def small_network(architecture: str, largest: int, *, num_classes: int = 5, **arguments: Any) -> TimmModel:
    """timm's network of that name with narrow widths, see ``small_shapes``."""
    shapes = small_shapes(architecture, largest, **arguments)
    return build_network(architecture, "test", shapes, num_classes=num_classes, **arguments)


def save_narrow_teacher(folder: Path, architecture: str, largest: int = 8, **arguments: Any) -> str:
    """Save a random teacher that timm cannot build, as twinbud saves it; returns how ``--teacher`` spells it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_network(architecture, largest, **arguments)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    config = {
        "architecture": architecture + NARROWED,
        "model_args": arguments,
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def named_as_by_timm(model: TimmModel, classifier: str) -> TimmModel:
    """Add what ``timm.create_model`` adds to a network: its image size and the name of its classifier."""
    model.pretrained_cfg = {"classifier": classifier, "input_size": (3, 32, 32)}
    return model


def inverted_residuals(cls: type[nn.Module], *blocks: str, **arguments: Any) -> TimmModel:
    """An EfficientNet or MobileNetV3 of blocks in timm's notation; each string is a stage."""
    block_args = decode_arch_def([[block] for block in blocks])
    arguments = {"stem_size": 6, "num_features": 10, "num_classes": 5, "round_chs_fn": round} | arguments
    return named_as_by_timm(cls(block_args, **arguments), "classifier")


def residual(block: Any, *channels: int, **arguments: Any) -> TimmModel:
    """A ResNet of two blocks in the first stage and one in each of the others."""
    model = ResNet(block, (2, 1, 1, 1), **{"num_classes": 5, "channels": channels} | arguments)
    return named_as_by_timm(model, "fc")


CONVOLUTIONAL: dict[str, tuple[Callable[[], TimmModel], int]] = {
    "vgg": (partial(small_network, "vgg11", 4), 32),
    "vgg-batch-norm": (partial(small_network, "vgg11_bn", 4), 32),
    "vgg-two-poolings": (partial(small_network, "vgg11", 4, global_pool="catavgmax"), 32),
    "resnet-basic": (partial(residual, BasicBlock, 64, 8, 10, 12), 32),
    "resnet-basic-deep-stem": (
        partial(residual, BasicBlock, 8, 8, 10, 12, stem_type="deep", stem_width=4, block_args={"attn_layer": "se"}),
        32,
    ),
    "resnet-bottleneck": (partial(residual, Bottleneck, 6, 6, 6, 8), 32),
    "resnext-strided-stem": (
        partial(
            residual,
            Bottleneck,
            16,
            16,
            24,
            24,
            cardinality=4,
            base_width=8,
            replace_stem_pool=True,
            avg_down=True,
            stem_type="deep",
            stem_width=4,
        ),
        32,
    ),
    "efficientnet": (
        partial(
            inverted_residuals, EfficientNet, "ds_r2_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e2_c12_se0.25", "cn_r1_k1_s1_c14"
        ),
        32,
    ),
    "efficientnetv2": (
        partial(inverted_residuals, EfficientNet, "cn_r2_k3_s1_e1_c8_skip", "er_r2_k3_s2_e2_c12", "ir_r1_k3_s1_e2_c12"),
        32,
    ),
    "efficientnet-without-head": (partial(inverted_residuals, EfficientNet, "ir_r2_k3_s2_e2_c12", num_features=0), 32),
    "mobilenetv3": (
        partial(
            inverted_residuals, MobileNetV3, "ds_r1_k3_s1_e1_c6", "ir_r2_k5_s2_e2_c12_se0.25_nre", "cn_r1_k1_s1_c14"
        ),
        32,
    ),
    "mobilenetv3-two-poolings": (
        partial(inverted_residuals, MobileNetV3, "ir_r1_k3_s2_e2_c12", global_pool="catavgmax", head_norm=True),
        32,
    ),
    "mobilenetv4": (
        partial(inverted_residuals, MobileNetV3, "uir_r2_a3_k5_s2_e2_c12", layer_scale_init_value=1.0, head_norm=True),
        32,
    ),
}
"""How to build each network with five classes, and the side of its images in pixels."""


def convolutional(name: str) -> tuple[TimmModel, int]:
    """Build one of ``CONVOLUTIONAL``; returns the network and the side of its images."""
    build, image_size = CONVOLUTIONAL[name]
    torch.manual_seed(0)
    return build(), image_size
