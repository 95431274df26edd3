"""The model folder: it opens with timm alone, and says so when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import twinbud
from helpers.builders import CONVNEXT, VIT, random_model, save_teacher
from twinbud.core.errors import TwinbudError
from twinbud.models.model_folder import open_model_folder, save_model_folder
from twinbud.models.student_spec import StudentSpec, read_student_spec
from twinbud.models.teacher import read_teacher_card

CLASSES = ("no tumour", "glioma", "pituitary", "épendymome")
TEACHERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {"init_values": 1e-5, **VIT}, 42),
    # timm builds convnext_atto with convolutions in its MLP unless it is told not to
    "convnext": ("convnext_atto", {"conv_mlp": False, **CONVNEXT}, 64),
}
WITH_TIMM_ALONE = """
import json, sys
sys.modules["twinbud"] = None
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
files, *folders = json.loads(sys.argv[1]), *sys.argv[2:]
for folder in folders:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        print(json.dumps({"logits": model(images).tolist(), "names": model.pretrained_cfg["label_names"]}))
"""


def model_folder(folder: Path, family: str) -> tuple[Path, StudentSpec, Any]:
    """The half of a small teacher at an image size that isn't the teacher's, with distinct random weights."""
    architecture, arguments, image_size = TEACHERS[family]
    spec = save_teacher(folder / "teacher", architecture, **arguments)
    student_spec = read_student_spec(read_teacher_card(spec), "half")
    model = random_model(
        student_spec.architecture, 3, num_classes=len(CLASSES), **student_spec.timm_arguments(image_size)
    )
    (folder / "model").mkdir()
    save_model_folder(folder / "model", model, student_spec, image_size=image_size, classes=CLASSES)
    return folder / "model", student_spec, model


def oblong_images(folder: Path) -> list[Path]:
    """A grey and an RGB image, neither of them square."""
    generator = np.random.default_rng(0)
    files = []
    for name, shape in (("grey", (33, 90)), ("colour", (71, 40, 3))):
        files.append(folder / f"{name}.png")
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(files[-1])
    return files


def test_timm_alone_gives_the_logits_that_twinbud_predicts_with(tmp_path: Path) -> None:
    folders = [model_folder(tmp_path / family, family)[0] for family in TEACHERS]
    files = oblong_images(tmp_path)
    names = json.dumps([str(file) for file in files])
    answer = subprocess.run(
        [sys.executable, "-c", WITH_TIMM_ALONE, names, *folders], capture_output=True, text=True, check=True
    )
    for folder, line in zip(folders, answer.stdout.splitlines(), strict=True):
        theirs = torch.tensor(json.loads(line)["logits"], dtype=torch.float64).log_softmax(dim=1)
        ours = torch.from_numpy(twinbud.predict(folder, files)[0].probabilities).log()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert float((ours[0] - ours[1]).abs().max()) > 1e-3  # else the pixels would prove nothing
        assert tuple(json.loads(line)["names"]) == CLASSES


def test_the_shape_that_timm_cannot_guess_is_in_the_folder(tmp_path: Path) -> None:
    folder, _, _ = model_folder(tmp_path / "vit", "vit")
    vit = json.loads((folder / "config.json").read_text())["model_args"]
    assert (vit["img_size"], vit["embed_dim"], vit["num_heads"]) == (42, 16, 2)
    folder, _, _ = model_folder(tmp_path / "convnext", "convnext")
    convnext = json.loads((folder / "config.json").read_text())["model_args"]
    assert convnext["dims"] == [4, 8, 12, 16]
    assert convnext["depths"] == [2, 2, 3, 2]
    assert convnext["conv_mlp"] is False


@pytest.mark.parametrize("family", TEACHERS)
def test_the_weights_come_back_bit_for_bit(tmp_path: Path, family: str) -> None:
    folder, _, model = model_folder(tmp_path, family)
    opened = open_model_folder(folder)
    assert opened.classes == CLASSES
    assert opened.image_size == TEACHERS[family][2]
    assert (opened.mean, opened.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert not opened.model.training
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_without_pretrained_timm_opens_the_shape_with_random_weights(tmp_path: Path) -> None:
    """The trap: nothing fails, and the model knows nothing."""
    folder, _, model = model_folder(tmp_path, "vit")
    opened: Any = timm.create_model(f"local-dir:{folder}")
    assert opened.patch_embed.proj.weight.shape == model.patch_embed.proj.weight.shape
    assert not torch.equal(opened.patch_embed.proj.weight, model.patch_embed.proj.weight)


def config_with(**changes: Any) -> Callable[[Path], None]:
    """Damage: some keys of config.json replaced; a key of ``pretrained_cfg`` is spelled with two underscores."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            outer, _, inner = name.partition("__")
            holder, key = (config[outer], inner) if inner else (config, outer)
            holder[key] = value
        path.write_text(json.dumps(config))

    return damage


def one_weight_of_another_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["norm.weight"] = state["norm.weight"][:-1].clone()
    save_file(state, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "config cut short": lambda folder: (folder / "config.json").write_text("{"),
    "config of another kind": lambda folder: (folder / "config.json").write_text("[]"),
    "weights cut short": cut_short,
    "weights of another shape": one_weight_of_another_shape,
    "unknown architecture": config_with(architecture="vit_nano"),
    "a class too few": config_with(label_names=list(CLASSES[:-1])),
    "classes of another kind": config_with(label_names=[1, 2, 3, 4]),
    "classes as one word": config_with(label_names="abcd"),
    "unknown argument": config_with(model_args__colour="red"),
    "argument of another kind": config_with(model_args__embed_dim="wide"),
    "mean of two channels": config_with(pretrained_cfg__mean=[0.5, 0.5]),
    "deviation of zero": config_with(pretrained_cfg__std=[0.2, 0.0, 0.2]),
    "another image size": config_with(pretrained_cfg__input_size=[3, 28, 28]),
    "image size of another kind": config_with(pretrained_cfg__input_size=[3, None, None]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder, _, _ = model_folder(tmp_path, "vit")
    damage(folder)
    with pytest.raises(TwinbudError) as caught:
        open_model_folder(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.fix
