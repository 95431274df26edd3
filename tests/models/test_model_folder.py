"""The model folder: it opens with timm alone, and says so when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import twinbud
from helpers.builders import CONVNEXT, DINOV3, SWIN, VIT, random_model, save_teacher
from twinbud.config.reading import Reading
from twinbud.config.schema import Method
from twinbud.core.errors import TwinbudError
from twinbud.models.model_folder import open_model_folder, save_model_folder
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_baseline, build_pretrained, build_student_pair
from twinbud.models.student_spec import StudentSpec, read_student_spec
from twinbud.models.teacher import open_teacher, read_teacher_info

CLASSES = ("no tumour", "glioma", "pituitary", "épendymome")
TEACHERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {"init_values": 1e-5, **VIT}, 42),
    # timm builds convnext_atto with convolutions in its MLP unless it is told not to
    "convnext": ("convnext_atto", {"conv_mlp": False, **CONVNEXT}, 64),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 48),
    "dinov3": ("vit_small_patch16_dinov3", {"init_values": 1.0, **DINOV3}, 48),
}
SAVED_BY_TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "another number of classes": ("vit_tiny_patch16_224", {"num_classes": 3, **VIT}, 28),
    "no classes": ("vit_tiny_patch16_224", {"num_classes": 0, **VIT}, 28),
    "a feature extractor": ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "", **VIT}, 28),
    "a pooled feature extractor": (
        "vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "", "class_token": False, **VIT}, 28,
    ),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "num_classes": 7, **VIT}, 28),
    "dropout": (
        "vit_tiny_patch16_224",
        {**VIT, "drop_rate": 0.5, "proj_drop_rate": 0.2, "attn_drop_rate": 0.1, "drop_path_rate": 0.3},
        28,
    ),
    "settings of timm's training script": (
        "vit_tiny_patch16_224", {"num_classes": 3, "in_chans": 3, "drop_rate": 0.0, "features_only": False, **VIT}, 28,
    ),
    "any image size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "num_classes": 3, **VIT}, 28),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "num_classes": 3, **VIT}, 28),
    "distillation token": ("deit_tiny_distilled_patch16_224", {"num_classes": 3, **VIT}, 28),
    "a deit": ("deit_tiny_patch16_224", {"num_classes": 3, **VIT}, 28),
    "a convnext": ("convnext_tiny", {"num_classes": 3, "drop_rate": 0.3, **CONVNEXT}, 64),
    "a convnext feature extractor": ("convnext_tiny", {"num_classes": 0, "global_pool": "", **CONVNEXT}, 64),
    "a convnext that pools the maximum": ("convnextv2_atto", {"global_pool": "max", "num_classes": 3, **CONVNEXT}, 64),
}  # fmt: skip
WITH_TIMM_ALONE = """
import json, sys
sys.modules["twinbud"] = None
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
for line in sys.stdin:
    folder, files = json.loads(line)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        logits = model(images).tolist()
    print(json.dumps({"logits": logits, "names": model.pretrained_cfg["label_names"]}), flush=True)
"""


class TimmAlone:
    """A process without twinbud that opens model folders with timm, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def predict(self, folder: Path, files: list[Path]) -> dict[str, Any]:
        """Return the logits of the image files, and the names of the classes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        print(json.dumps([str(folder), [str(file) for file in files]]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.process.stderr.read()
        return json.loads(answer)


@pytest.fixture(scope="module")
def timm_alone() -> Iterator[TimmAlone]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", WITH_TIMM_ALONE], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        yield TimmAlone(process)
        process.kill()


def model_folder(folder: Path, family: str) -> tuple[Path, StudentSpec, Any]:
    """The half of a small teacher at an image size that isn't the teacher's, with distinct random weights."""
    architecture, arguments, image_size = TEACHERS[family]
    spec = save_teacher(folder / "teacher", architecture, **arguments)
    student_spec = read_student_spec(read_teacher_info(spec), "half")
    model = random_model(
        student_spec.architecture, 3, num_classes=len(CLASSES), **student_spec.timm_arguments(image_size)
    )
    (folder / "model").mkdir()
    save_model_folder(folder / "model", model, student_spec, image_size=image_size, classes=CLASSES)
    return folder / "model", student_spec, model


def oblong_images(folder: Path) -> list[Path]:
    """A gray and an RGB image, neither of them square."""
    generator = np.random.default_rng(0)
    files = []
    for name, shape in (("gray", (33, 90)), ("color", (71, 40, 3))):
        files.append(folder / f"{name}.png")
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(files[-1])
    return files


def deliver(folder: Path, spec: str, image_size: int, *, weights: str = "inherited") -> Path:
    """Build a student from the teacher ``spec`` with its weights, or as a baseline, and save its model folder."""
    teacher_info = read_teacher_info(spec)
    student_spec = read_student_spec(teacher_info, "half")
    sizes: Any = {"image_size": image_size, "num_classes": len(CLASSES)}
    if weights == "inherited":
        student = build_student_pair(select(teacher_info), **sizes).student
    else:
        student = build_baseline(student_spec, cast("Method", weights), **sizes).student
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.startswith("head") and "norm" not in name:  # larger than at the start, so that a mistake shows
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    folder.mkdir(parents=True)
    save_model_folder(folder, student, student_spec, image_size=image_size, classes=CLASSES)
    return folder


def assert_timm_agrees(timm_alone: TimmAlone, folders: list[Path], files: list[Path]) -> None:
    """Open the folders with timm alone, and compare logits on the same image files."""
    for folder in folders:
        answer = timm_alone.predict(folder, files)
        expected = torch.tensor(answer["logits"], dtype=torch.float64).log_softmax(dim=1)
        found = torch.from_numpy(twinbud.predict(folder, files, show_progress=False).probabilities).log()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, f=folder: f"{f}: {text}")
        assert float((found[0] - found[1]).abs().max()) > 1e-4, f"{folder}: the pixels would prove nothing"
        assert tuple(answer["names"]) == CLASSES


def test_timm_alone_gives_the_logits_that_twinbud_predicts_with(timm_alone: TimmAlone, tmp_path: Path) -> None:
    folders = [model_folder(tmp_path / family, family)[0] for family in TEACHERS]
    assert_timm_agrees(timm_alone, folders, oblong_images(tmp_path))


def test_timm_alone_opens_what_is_delivered_from_every_folder_that_timm_saves(
    timm_alone: TimmAlone, tmp_path: Path
) -> None:
    folders = []
    for number, (architecture, arguments, image_size) in enumerate(SAVED_BY_TIMM.values()):
        teacher = tmp_path / f"teacher-{number}"
        save_for_hf(random_model(architecture, **arguments), str(teacher), safe_serialization=True)
        folders.append(deliver(tmp_path / f"model-{number}", f"local-dir:{teacher}", image_size))
    assert_timm_agrees(timm_alone, folders, oblong_images(tmp_path))


def test_timm_alone_opens_what_is_delivered_from_other_kinds_of_teacher(timm_alone: TimmAlone, tmp_path: Path) -> None:
    vit, convnext = (
        save_teacher(tmp_path / name, architecture, **arguments)
        for name, (architecture, arguments, _) in TEACHERS.items()
        if name in ("vit", "convnext")
    )
    small = random_model("test_convnext", num_classes=9)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    old = tmp_path / "old"  # timm's older, flat layout, with a name that timm has renamed since
    old.mkdir()
    model = random_model("vit_small_patch16_224", num_classes=3)
    save_file(model.state_dict(), old / "model.safetensors")
    flat = {"architecture": "vit_small_patch16_224_in21k", "num_classes": 3, "mean": [0.1] * 3, "std": [0.3] * 3}
    (old / "config.json").write_text(json.dumps(flat))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # timm's, about the old name
        assert read_teacher_info(f"local-dir:{old}").mean == (0.1, 0.1, 0.1)
        folders = [
            deliver(tmp_path / "file", f"test_convnext@{tmp_path}/small.safetensors", 96),
            deliver(tmp_path / "renamed", f"local-dir:{old}", 32),
        ]
    folders += [
        deliver(tmp_path / f"{method}-{number}", spec, 42 if number == 0 else 64, weights=method)
        for number, spec in enumerate((vit, convnext))
        for method in ("timm", "xavier", "kaiming")
    ]
    folders.append(deliver(tmp_path / "grandchild", f"local-dir:{folders[0]}", 96))  # a delivered folder as teacher
    assert_timm_agrees(timm_alone, folders, oblong_images(tmp_path))


WHOLE: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {"num_classes": 7, **VIT}, 42),
    "a feature extractor": ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "", **VIT}, 28),
    "convnext": ("convnext_tiny", {"num_classes": 0, **CONVNEXT}, 64),
    "batch norm": ("test_resnet", {"num_classes": 9}, 48),
}


def test_timm_alone_opens_networks_that_were_kept_whole(timm_alone: TimmAlone, tmp_path: Path) -> None:
    folders = []
    for name, (architecture, arguments, image_size) in WHOLE.items():
        teacher_info = read_teacher_info(save_teacher(tmp_path / name / "teacher", architecture, **arguments))
        student_spec = read_student_spec(teacher_info, "same")
        weights = open_teacher(teacher_info).model.state_dict()
        student = build_pretrained(student_spec, weights, image_size=image_size, num_classes=len(CLASSES)).student
        with torch.no_grad():  # logits of about 1, whatever the features of a random network are
            images = torch.rand(8, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
            student.get_classifier().weight.div_(student.eval()(images).std())
        folders.append(tmp_path / name / "model")
        folders[-1].mkdir()
        save_model_folder(folders[-1], student, student_spec, image_size=image_size, classes=CLASSES)
    assert_timm_agrees(timm_alone, folders, oblong_images(tmp_path))


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
    assert opened.preprocessing.image_size == TEACHERS[family][2]
    assert (opened.preprocessing.mean, opened.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
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
    "unknown argument": config_with(model_args__color="red"),
    "argument of another kind": config_with(model_args__embed_dim="wide"),
    "mean of two channels": config_with(pretrained_cfg__mean=[0.5, 0.5]),
    "deviation of zero": config_with(pretrained_cfg__std=[0.2, 0.0, 0.2]),
    "another image size": config_with(pretrained_cfg__input_size=[3, 28, 28]),
    "preprocessing and timm's configuration disagree": config_with(pretrained_cfg__std=[0.2, 0.25, 0.4]),
    "another mean than timm's": config_with(preprocessing__mean=[0.1, 0.4, 0.3]),
    "another resize rule": config_with(pretrained_cfg__crop_pct=0.875),
    "an unknown resize rule": config_with(preprocessing__resize_rule="center-crop"),
    "preprocessing of another kind": config_with(preprocessing=[]),
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


def test_the_folder_keeps_how_files_were_read_and_older_folders_have_the_default(tmp_path: Path) -> None:
    folder, student_spec, model = model_folder(tmp_path, "vit")
    reading = Reading(window="lung", frames="middle", axis="sagittal", volume=2)
    save_model_folder(folder, model, student_spec, image_size=TEACHERS["vit"][2], classes=CLASSES, reading=reading)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    assert content["reading"] == {"window": "lung", "frames": "middle", "axis": "sagittal", "volume": 2}
    assert open_model_folder(folder).reading == reading
    del content["reading"]
    config.write_text(json.dumps(content))
    assert open_model_folder(folder).reading == Reading()
    config.write_text(json.dumps(content | {"reading": {"window": "heart"}}))
    with pytest.raises(TwinbudError, match=r"config\.json is not usable: reading is not usable: --window: 'heart'"):
        open_model_folder(folder)
