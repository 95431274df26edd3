"""Fine-tuning of the teacher before selection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from helpers.command import refusal, train, trained
from helpers.command import twinbud as command
from helpers.stopping import sigterm_at_step
from twinbud.config.loading import run_config
from twinbud.core.errors import TwinbudError
from twinbud.models.selection_io import select
from twinbud.models.teacher import read_teacher_info
from twinbud.runs import memory, pipeline, tuning
from twinbud.runs.result import RunResult
from twinbud.training.train_step import TrainingStep

TUNE = ("--method", "selection", "--tune-teacher", "--tune-epochs", 2, "--tune-min-steps", 0)


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def weights(run: Path, folder: str = "model") -> bytes:
    return (run / folder / "model.safetensors").read_bytes()


def test_the_student_is_selected_from_the_tuned_teacher(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    untrained = ("--learning-rate", 0, "--final-learning-rate", 0)
    run = trained(shared_images, shared_teacher, tmp_path / "run", *TUNE, *untrained)
    tuned = select(read_teacher_info(f"local-dir:{run / 'teacher'}")).student_weights
    original = select(read_teacher_info(shared_teacher)).student_weights
    found = load_file(run / "model" / "model.safetensors")
    names = [name for name in tuned if name.startswith("blocks.")]
    assert all(torch.equal(found[name], tuned[name]) for name in names)
    assert not any(torch.equal(found[name], original[name]) for name in names if name.endswith("qkv.weight"))


def test_timm_alone_opens_the_tuned_teacher_with_the_classes_of_the_run(
    shared_images: Path, shared_runs: Callable[..., Path]
) -> None:
    run = shared_runs(*TUNE)
    teacher = timm.create_model(f"local-dir:{run / 'teacher'}", pretrained=True)
    assert teacher.num_classes == len(list(shared_images.iterdir()))
    assert torch.equal(teacher.state_dict()["head.weight"], load_file(run / "teacher/model.safetensors")["head.weight"])


def test_the_cost_of_tuning_is_counted(shared_runs: Callable[..., Path]) -> None:
    plain, found = metrics_of(shared_runs("--method", "selection")), metrics_of(shared_runs(*TUNE))
    assert (found["tune_num_steps"], found["tune_num_passes"]) == (6, 48)  # 24 images, 2 epochs, batches of 8
    assert found["num_steps"] == plain["num_steps"] + 6
    assert found["num_passes"] == plain["num_passes"] + 48
    assert found["train_seconds"] > found["tune_seconds"] > 0
    assert not any(name.startswith("tune_") for name in plain)


def test_a_tuned_teacher_guides_a_random_student(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = trained(
        shared_images, shared_teacher, tmp_path / "run", *TUNE, "--method", "timm", "--distillation", "teacher"
    )
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "fine-tuned on the labelled images" in page
    assert "loss_skd" in (run / "history.csv").read_text(encoding="utf-8").splitlines()[0]


def test_the_saved_settings_repeat_the_run(shared_runs: Callable[..., Path], tmp_path: Path) -> None:
    run = shared_runs(*TUNE)
    answer = command("train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert weights(run, "teacher") == weights(tmp_path / "again", "teacher")
    assert weights(run) == weights(tmp_path / "again")


@pytest.mark.parametrize("step", [1, 5, 6, 8], ids="step {}".format)
def test_a_run_that_is_stopped_while_or_after_it_tunes_ends_as_if_it_had_not_been(
    step: int, shared_images: Path, shared_teacher: str, shared_runs: Callable[..., Path], tmp_path: Path
) -> None:
    """In the first epoch of tuning, in the second, at the last step, and in the training of the student."""
    settings = (*TUNE, "--recover", "labelled")
    whole = shared_runs(*settings)
    with sigterm_at_step(TrainingStep, step):
        stopped = train(shared_images, shared_teacher, tmp_path / "run", *settings)
    assert stopped.code == 75, stopped.err
    resumed = train(shared_images, shared_teacher, tmp_path / "run", *settings, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"fine-tuning the teacher: going on after step {min(step, 6)}" in resumed.err
    assert weights(whole, "teacher") == weights(tmp_path / "run", "teacher")
    assert weights(whole) == weights(tmp_path / "run")
    counts = ("num_steps", "num_passes", "tune_num_steps", "tune_num_passes", "accuracy")
    assert all(metrics_of(whole)[name] == metrics_of(tmp_path / "run")[name] for name in counts)


def test_other_tuning_settings_do_not_go_on_from_a_checkpoint(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "save_model_folder", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(shared_images, shared_teacher, tmp_path / "run", *TUNE)
    answer = train(shared_images, shared_teacher, tmp_path / "run", *TUNE, "--tune-learning-rate", 1e-3, "--resume")
    assert "learning_rate" in refusal(answer)


def test_runs_with_a_common_cache_tune_the_teacher_once(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "data": str(shared_images), "teacher": shared_teacher, "profile": "paper", "method": "selection",
        "image_size": 28, "epochs": 1, "batch_size": 8, "precision": "float32", "threads": 1,
        "tune_teacher": True, "tune_epochs": 1, "tune_min_steps": 0,
    }  # fmt: skip
    tuned: list[Path] = []
    tune = tuning._tune
    monkeypatch.setattr(tuning, "_tune", lambda job, folder, *rest: (tuned.append(folder), tune(job, folder, *rest)))

    def run(name: str, **changes: object) -> RunResult:
        return pipeline.train(run_config(settings | changes, output=tmp_path / name, teacher_cache=tmp_path / "cache"))

    first = run("first")
    second = run("second", alpha=0.9, epochs=2)
    other_sampling = run("other", seed=1)
    assert len(tuned) == len(set(tuned)) == 2, "one for each sampling"
    assert first.metrics.tune_seconds == second.metrics.tune_seconds != other_sampling.metrics.tune_seconds
    assert not (tmp_path / "first" / "teacher").exists()
    weights_of_other = (tuned[1] / "model.safetensors").read_bytes()
    weights_of_first = (tuned[0] / "model.safetensors").read_bytes()
    (tuned[0] / "model.safetensors").write_bytes(weights_of_other)
    with pytest.raises(TwinbudError, match="the tuned teacher beside it is not the one that was saved"):
        run("other teacher")
    (tuned[0] / "model.safetensors").write_bytes(weights_of_first)
    saved = tuned[0] / "tuning.json"
    saved.write_text(saved.read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(TwinbudError, match="the epochs of the fine-tuning cannot be read") as caught:
        run("third")
    assert f"{saved}" in str(caught.value)
    saved.unlink()
    assert run("fourth").metrics.accuracy == first.metrics.accuracy
    assert tuned[-1] == tuned[0], "tuned again"


def test_a_run_that_fine_tunes_the_teacher_shares_it_with_those_that_start_from_it(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {
        "data": str(shared_images), "teacher": shared_teacher, "profile": "best", "image_size": 28, "batch_size": 8,
        "precision": "float32", "threads": 1, "mixup": 0.4, "average": 0.99, "classifier_start": "probe",
    }  # fmt: skip
    whole = {"method": "finetune", "epochs": 2, "min_steps": 0}
    tuned = {"method": "selection", "tune_epochs": 2, "tune_min_steps": 0}

    def run(name: str, own: dict[str, Any], cache: Path | None) -> RunResult:
        return pipeline.train(run_config(common | own, output=tmp_path / name, teacher_cache=cache))

    alone = run("alone", whole, None)
    run("selected", tuned, tmp_path / "cache")
    monkeypatch.setattr(tuning, "_tune", lambda *_: pytest.fail("tuned twice"))
    shared = run("shared", whole, tmp_path / "cache")
    assert weights(tmp_path / "shared") == weights(tmp_path / "alone")
    assert shared.metrics.num_steps == alone.metrics.num_steps == 6
    assert shared.metrics.num_passes == alone.metrics.num_passes
    saved = json.loads(next((tmp_path / "cache").rglob("tuning.json")).read_text(encoding="utf-8"))
    assert shared.metrics.peak_memory_mib >= saved["peak_memory_mib"]
    losses = [[record.loss for record in result.history.epochs] for result in (shared, alone)]
    assert losses[0] == losses[1]
    assert len((tmp_path / "shared" / "history.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_a_loss_that_is_not_finite_names_the_fine_tuning_and_its_learning_rate(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = (*TUNE, "--tune-learning-rate", "1e30", "--warmup", 0)
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *words))
    assert line.startswith("fine-tuning the teacher: step 2 (epoch 1, batch 2): the loss is not finite (loss nan")
    assert "lower --tune-learning-rate" in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "kaiming"), "--tune-teacher: --method kaiming takes nothing from the teacher. Give --no-tune-t"),
        (("--tune-epochs", 0), "--tune-epochs: '0' is not a whole number of at least 1"),
        (("--student", "convnext_atto"), "--student: convnext_atto is a ConvNeXt, but the teacher is a ViT"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    words: tuple[object, ...], line: str, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    assert line in refusal(train(shared_images, shared_teacher, tmp_path / "run", *TUNE, *words))
    assert not (tmp_path / "run").exists()


def test_weights_selected_before_cannot_come_from_a_tuned_teacher(
    shared_images: Path, shared_teacher: str, shared_selection: Path, tmp_path: Path
) -> None:
    words = ("--selected", shared_selection, "--recover", "labelled")
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *TUNE, *words))
    assert "the weights were selected from the teacher before fine-tuning. Give --teacher instead" in line


def test_a_teacher_too_large_to_tune_is_refused(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**10)
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *TUNE))
    assert line.startswith("--tune-teacher: fine-tuning ")
    assert "but 0 MiB are free" in line
