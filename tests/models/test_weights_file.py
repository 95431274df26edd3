"""What safetensors writes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load, save, save_file

from helpers.builders import save_images, small_coat
from helpers.command import trained
from twinbud.models.weights_file import without_aliases


def test_a_tensor_of_several_names_is_written_under_each() -> None:
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"first": shared, "second": shared, "transposed": shared.t(), "part": shared[1], "own": torch.ones(2)}
    found = load(save(without_aliases(tensors)))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_a_network_with_shared_tensors_is_trained_whole_and_saved(tmp_path: Path) -> None:
    state = small_coat(num_classes=0).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "coat.safetensors")
    images = save_images(tmp_path / "images", {"one": 6, "two": 6})
    network = f"small_coat@{tmp_path / 'coat.safetensors'}"
    words = ("--method", "finetune", "--image-size", 32, "--epochs", 1, "--min-steps", 0)
    run = trained(images, network, tmp_path / "run", *words)
    assert (run / "model" / "model.safetensors").is_file()
