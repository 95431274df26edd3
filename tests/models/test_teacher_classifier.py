"""The teacher as a frozen classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from helpers.builders import CONVNEXT, VIT, save_teacher
from twinbud.core.errors import TwinbudError
from twinbud.data.augment import Normalization
from twinbud.data.preprocessing import Preprocessing
from twinbud.models.teacher import read_teacher_info
from twinbud.models.teacher_classifier import open_teacher_classifier
from twinbud.tasks.single import SingleLabel

CPU = torch.device("cpu")
THREE = SingleLabel(("a", "b", "c"))
TEACHERS = {
    "vit_tiny_patch16_224": (VIT, 28),
    "convnext_tiny": (CONVNEXT, 32),
}


@pytest.mark.parametrize("architecture", TEACHERS)
@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.1, 0.6, 0.7), (0.5, 0.4, 1.0))], ids=["same", "other"]
)
def test_its_logits_are_those_of_plain_timm_whatever_the_students_normalization(
    architecture: str, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    arguments, size = TEACHERS[architecture]
    spec = save_teacher(tmp_path / "teacher", architecture, num_classes=3, **arguments)
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(spec, pretrained=True, num_classes=3).eval()
    expected = plain(Normalization.on(CPU, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))(pixels))
    preprocessing = Preprocessing(image_size=size, mean=mean, std=std)
    teacher = open_teacher_classifier(
        read_teacher_info(spec), SingleLabel(("a", "b", "c")), preprocessing=preprocessing, device=CPU
    )
    torch.testing.assert_close(teacher(preprocessing.normalization(CPU)(pixels)), expected, rtol=1e-4, atol=1e-4)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_folder_that_names_classes_its_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    spec = save_teacher(tmp_path / "teacher", "vit_tiny_patch16_224", num_classes=3, **VIT)
    preprocessing = Preprocessing(image_size=28, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(TwinbudError, match="the teacher's classifier has 3 classes, but the images have 2"):
        open_teacher_classifier(
            read_teacher_info(spec), SingleLabel(("a", "b")), preprocessing=preprocessing, device=CPU
        )


def test_its_precision_is_its_own(tmp_path: Path) -> None:
    spec = save_teacher(tmp_path / "teacher", "vit_tiny_patch16_224", num_classes=3, **VIT)
    preprocessing = Preprocessing(image_size=28, mean=(0.5,) * 3, std=(0.5,) * 3)
    images_BCSS = torch.zeros(2, 3, 28, 28)
    for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        teacher = open_teacher_classifier(
            read_teacher_info(spec), THREE, preprocessing=preprocessing, device=CPU, bf16=bf16
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=not bf16):
            assert teacher(images_BCSS).dtype is dtype
