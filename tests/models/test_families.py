"""A family without a residual stream: selection, baselines and layer decay work, and recovery is refused clearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from timm.models import _registry
from timm.models.mlp_mixer import MlpMixer, _create_mixer
from torch import nn

from helpers.builders import save_teacher
from twinbud.config.loading import run_config
from twinbud.core.errors import TwinbudError
from twinbud.models import families
from twinbud.models.families.base import NetworkShape, SelectionFamily, TimmModel
from twinbud.models.initialization import open_initialization
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.student_spec import make_student_spec
from twinbud.models.teacher import IMAGENET_MEAN, IMAGENET_STD, read_teacher_info
from twinbud.models.widths import Axis, TensorSpec
from twinbud.training.optimizer import lr_scales


class MixerFamily(SelectionFamily):
    """timm's MLP-Mixer: one channel width for all blocks, and two hidden widths in each."""

    name: ClassVar[str] = "Mixer"
    members: ClassVar[str] = "MLP-Mixer"
    temperature: ClassVar[float] = 3.0
    drop_path: ClassVar[float] = 0.0

    def owns(self, model: nn.Module) -> bool:
        return isinstance(model, MlpMixer)

    def blocks(self, model: TimmModel) -> dict[str, nn.Module]:
        return {f"blocks.{number}": block for number, block in enumerate(model.blocks)}

    def specs(self, model: TimmModel) -> dict[str, TensorSpec]:
        return {name: self._spec(name, tensor.dim()) for name, tensor in model.state_dict().items()}

    def half(self, architecture: str, model: TimmModel) -> dict[str, Any]:
        del architecture
        return {"embed_dim": model.num_features // 2}

    def shape(self, model: TimmModel) -> NetworkShape:
        return NetworkShape(depths=(len(model.blocks),), widths=(model.num_features,))

    def image_arguments(self, model: TimmModel, image_size: int, where: str) -> dict[str, Any]:
        del model, where
        return {"img_size": image_size}

    def _spec(self, name: str, dimensions: int) -> TensorSpec:
        width = Axis("channels")
        if name.startswith("head."):
            return TensorSpec((None, width)[:dimensions], "classifier")
        block, _, part = name.partition(".mlp_")
        if not part:  # the stem, and every norm
            return TensorSpec((width, None, None, None)[:dimensions], "patch" if dimensions == 4 else "weight")
        kind, layer, _ = part.split(".")
        hidden, ends = Axis(f"{kind}/{block}"), width if kind == "channels" else None  # positions are kept whole
        axes = (hidden, ends) if layer == "fc1" else (ends, hidden)
        return TensorSpec(axes[:dimensions], layer=block)


def small_mixer(pretrained: bool = False, **arguments: Any) -> Any:
    """A mixer whose width can be given, which timm's own names do not allow."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 3}
    return _create_mixer("mixer_s32_224", pretrained=pretrained, **{**small, **arguments})


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, MixerFamily()))
    monkeypatch.setitem(_registry._model_entrypoints, "small_mixer", small_mixer)
    return save_teacher(tmp_path / "mixer", "small_mixer")


def test_its_weights_are_selected_and_its_students_run(teacher: str) -> None:
    selection = select(read_teacher_info(teacher))
    pair = build_student_pair(selection, image_size=32, num_classes=3)
    assert pair.auxiliary is not None
    assert pair.student(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert selection.plan.widths["channels"].student_indices == tuple(range(0, 16, 2))
    assert not torch.equal(pair.student.norm.weight, pair.auxiliary.norm.weight)


def test_layer_decay_counts_its_blocks(teacher: str) -> None:
    pair = build_student_pair(select(read_teacher_info(teacher)), image_size=32, num_classes=3)
    scales = lr_scales(pair.student, 0.5)
    assert scales["head.weight"] == 1.0
    assert scales["blocks.2.norm1.weight"] == 0.5
    assert scales["stem.proj.bias"] == 0.5**4


def test_recovery_is_refused_in_one_line_before_weights_are_opened(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "mixer" / "model.safetensors").unlink()
    baseline = {"teacher": teacher, "image_size": 32, "method": "timm"}
    assert open_initialization(run_config(baseline, output=Path("run"))).selection is None
    settings = {"teacher": teacher, "image_size": 32, "recover": "labelled"}
    with pytest.raises(
        TwinbudError, match=r"^--recover: recovery is not implemented for Mixer\. .*choose a ViT or ConvNeXt teacher"
    ):
        open_initialization(run_config(settings, output=Path("run")))


def test_selecting_from_a_network_of_no_known_family_is_refused(tmp_path: Path) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "resnet", "test_resnet"))
    for student in ("half", "resnet18"):
        with pytest.raises(TwinbudError, match=r"^--teacher: weights of a ResNet cannot be selected.*finetune"):
            select(teacher_info, student)


def test_a_network_of_no_known_family_has_the_layers_of_timm() -> None:
    """Stem, four stages and classifier, as ``ResNet.group_matcher`` divides them; every parameter has a factor."""
    model: Any = timm.create_model("test_resnet", num_classes=3)
    scales = lr_scales(model, 0.5)
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    assert scales["fc.weight"] == 1.0
    assert scales["layer4.0.conv1.weight"] < 1.0
    assert scales["conv1.0.weight"] < scales["layer1.0.conv1.weight"] < scales["layer2.0.conv1.weight"]


def test_an_image_size_that_a_network_cannot_process_is_refused() -> None:
    student_spec = make_student_spec("mixer_s32_224", {}, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert student_spec.timm_arguments(224) == {}
    with pytest.raises(TwinbudError, match=r"^--image-size: mixer_s32_224 cannot process images of 64 pixels.* 224"):
        student_spec.timm_arguments(64)


def test_stochastic_depth_is_refused_where_timm_has_none() -> None:
    student_spec = make_student_spec("ghostnet_050", {}, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert student_spec.build(image_size=64, num_classes=2).num_classes == 2
    with pytest.raises(TwinbudError, match=r"^--drop-path 0\.1: timm's ghostnet_050 has no stochastic depth"):
        student_spec.build(image_size=64, num_classes=2, drop_path=0.1)


@pytest.mark.parametrize(
    ("architecture", "on_cpu"),
    [("vit_tiny_patch16_224", True), ("convnext_atto", True), ("resnet10t", True), ("tf_efficientnet_lite0", False)],
)
def test_depthwise_convolutions_of_a_plain_network_stay_in_float32_on_a_cpu(architecture: str, on_cpu: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(architecture)
    family = families.family_of(model)
    assert family.gains_from_bf16(model, torch.device("cpu")) == on_cpu
    assert family.gains_from_bf16(model, torch.device("cuda"))
