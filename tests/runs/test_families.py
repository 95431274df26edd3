"""Whole runs with a pair of each family that is neither ViT nor ConvNeXt, on generated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from helpers.builders import DINOV3, MIXER, SWIN, save_teacher
from helpers.command import refusal, train, trained
from helpers.runs import rows

TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "mixer": ("small_mixer", MIXER),
    "dinov3": ("vit_small_patch16_dinov3", {"init_values": 0.5, **DINOV3}),
}
STUDENTS = {"swin": "half", "mixer": "small_half_mixer", "dinov3": "half"}
"""Students that plain timm can build: the width of a Mixer is no argument of timm's."""
SIZE = ("--image-size", 32, "--attention", "heads")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One small random teacher of each family; to be read only."""
    folder = tmp_path_factory.mktemp("teachers")
    return {name: save_teacher(folder / name, network, **arguments) for name, (network, arguments) in TEACHERS.items()}


@pytest.mark.parametrize("family", TEACHERS)
def test_a_pair_is_trained_for_an_epoch_and_plain_timm_opens_the_student(
    family: str, teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    run = trained(shared_images, teachers[family], tmp_path / "run", *SIZE, "--logits", "--student", STUDENTS[family])
    (epoch,) = rows(run / "history.csv")
    assert np.isfinite(float(epoch["loss"]))
    assert float(epoch["loss_skd"]) > 0
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    predicted = rows(run / "predictions.csv")
    with torch.inference_mode():
        images = [transform(Image.open(shared_images / row["path"]).convert("RGB")) for row in predicted]
        found = model(torch.stack(images))
    names = [name for name in predicted[0] if name.startswith("logit")]
    expected = torch.tensor([[float(row[name]) for name in names] for row in predicted])
    assert len(names) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    heads = "" if family == "mixer" else "; whole heads (--attention heads)"
    assert f"<dd>uniform{heads}</dd>" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("swin", {"layers.0.blocks.1.attn.proj", "layers.1.downsample.reduction", "layers.2.blocks.0.mlp.fc2"}),
        ("mixer", {"blocks.0.mlp_channels.fc1", "blocks.2.mlp_channels.fc2"}),
        ("dinov3", {"blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc2"}),
    ],
)
def test_a_pair_is_recovered_before_it_is_trained(
    family: str, layers: set[str], teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    words = ("--recover", "labelled", "--recover-epochs", 1, "--recover-batch-size", 8, "--recover-blocks")
    run = trained(shared_images, teachers[family], tmp_path / "run", *SIZE, *words)
    content = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert content.keys() == {"student", "auxiliary"}
    for network in content.values():
        assert layers <= {layer["layer"] for layer in network["layers"]}
        gains = [layer["after"] - layer["before"] for layer in network["layers"]]
        assert sum(gain > 0 for gain in gains) > 0.7 * len(gains)


@pytest.mark.parametrize(
    ("family", "words", "said"),
    [
        ("swin", ("--image-size", 30), "takes images of at least 16 pixels, a multiple of its patch size 4; 30 is"),
        ("mixer", ("--image-size", 28), "takes images of 32 × 32 pixels alone"),
        ("dinov3", ("--attention", "interleaved"), "--attention interleaved: heads cannot be made of parts of the"),
        ("dinov3", ("--recover", "labelled", "--recover-stream", "subspace"), "not possible for this Eva"),
        ("swin", ("--recover", "labelled", "--recover-stream", "subspace"), "for this SwinTransformer: it needs"),
        ("mixer", ("--recover", "labelled", "--recover-stream", "subspace"), "not possible for this MlpMixer"),
    ],
)
def test_what_a_family_cannot_do_is_refused_in_one_line(
    family: str, words: tuple[object, ...], said: str, teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    line = refusal(train(shared_images, teachers[family], tmp_path / "run", *SIZE, *words))
    assert said in line
    assert not (tmp_path / "run").exists()
