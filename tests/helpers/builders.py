"""Small real networks, teachers and image sets for the tests."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers.mlp import GatedMlp
from timm.models._builder import build_model_with_cfg
from timm.models.coat import _create_coat
from timm.models.mlp_mixer import Affine, ResBlock, SpatialGatingBlock, _create_mixer
from timm.models.regnet import RegNet, RegNetCfg

from twinbud.data.preprocessing import Preprocessing

VIT: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4}
CONVNEXT: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [2, 2, 3, 2]}
DINOV3: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SWIN: dict[str, Any] = {
    "img_size": 32, "embed_dim": 8, "depths": [2, 2, 1], "num_heads": [2, 4, 8], "window_size": 2,
}  # fmt: skip
"""Maps of 8, 4 and 2 positions a side; the second block of each of the first two stages shifts its windows."""
MIXER: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 3}


def small_mixer(pretrained: bool = False, **arguments: Any) -> Any:
    """A Mixer whose width is an argument, which it is for none of timm's own names."""
    return _create_mixer("mixer_s32_224", pretrained=pretrained, **{**MIXER, **arguments})


def small_half_mixer(pretrained: bool = False, **arguments: Any) -> Any:
    """Half of ``small_mixer``, with a name of its own."""
    return small_mixer(pretrained, **{"embed_dim": 8, **arguments})


def small_resmlp(pretrained: bool = False, **arguments: Any) -> Any:
    """A ResMLP whose width is an argument."""
    blocks = {"mlp_ratio": 4, "block_layer": partial(ResBlock, init_values=0.5), "norm_layer": Affine}
    return small_mixer(pretrained, **blocks, **arguments)


def small_gmlp(pretrained: bool = False, **arguments: Any) -> Any:
    """A gMLP whose width is an argument."""
    return small_mixer(pretrained, mlp_ratio=6, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, **arguments)


def small_regnety(pretrained: bool = False, **arguments: Any) -> Any:
    """A RegNet of 92 thousand parameters, with groups of 4 channels."""
    config = RegNetCfg(w0=8, wa=8.0, wm=2.0, group_size=4, depth=6, se_ratio=0.25)
    return build_model_with_cfg(RegNet, "regnety_002", pretrained, model_cfg=config, **arguments)


def small_coat(pretrained: bool = False, **arguments: Any) -> Any:
    """A CoaT, whose position encodings have one tensor under several names."""
    sizes = {"embed_dims": [16, 16, 32, 32], "serial_depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2], "img_size": 32}
    return _create_coat("coat_lite_tiny", pretrained, patch_size=4, **{**sizes, **arguments})


SMALL_NETWORKS = {
    make.__name__: make for make in (small_mixer, small_half_mixer, small_resmlp, small_gmlp, small_regnety, small_coat)
}
"""Networks by the names that the fixture ``small_networks`` gives them in timm."""
"""By the names under which ``conftest.small_mixers`` registers them with timm."""


def random_model(architecture: str, seed: int = 0, **arguments: Any) -> Any:
    """A timm model whose every tensor, norms and biases too, holds distinct values, so that a permutation shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(architecture, pretrained=False, **arguments).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    lowest = 0.5 if name.endswith("running_var") else -0.5
                    tensor.copy_((torch.randperm(tensor.numel()) / tensor.numel() + lowest).view_as(tensor))
    return model


def save_teacher(folder: Path, architecture: str, seed: int = 0, **arguments: Any) -> str:
    """Save a small random teacher in timm's layout; returns how ``--teacher`` spells it."""
    folder.mkdir(parents=True)
    model = random_model(architecture, seed, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "model_args": arguments,
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def save_vit_teacher(folder: Path, seed: int = 0) -> str:
    """A DINOv2-like teacher (LayerScale) of 32 channels and 4 heads in 2 blocks."""
    return save_teacher(folder, "vit_tiny_patch16_224", seed, init_values=1e-5, **VIT)


def save_images(folder: Path, classes: dict[str, int], size: int = 32, seed: int = 0) -> Path:
    """Class folders of gray PNG files whose brightness tells the class, with noise that makes each unlike."""
    generator = np.random.default_rng(seed)
    for level, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.normal(60 + 60 * level, 20, (size, size)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def half_preprocessing(image_size: int = 28) -> Preprocessing:
    """Preprocessing with mean 0.5 and standard deviation 0.25 in all channels."""
    return Preprocessing(image_size=image_size, mean=(0.5,) * 3, std=(0.25,) * 3)
