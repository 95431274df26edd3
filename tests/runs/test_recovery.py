"""Recovery as a stage of a run: which images it may see, what it leaves behind, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.builders import save_teacher, save_vit_teacher
from helpers.command import SMALL, refusal, train, trained
from helpers.command import twinbud as command
from helpers.stopping import sigterm_at_step
from twinbud.models.teacher import open_teacher_at
from twinbud.recovery import teacher_provider
from twinbud.recovery.feature_matching import RecoveryStep
from twinbud.training.train_step import TrainingStep

RECOVER = ("--recover", "labelled", "--recover-epochs", 1, "--recover-batch-size", 8)
MEAN, STD = 0.5, 0.2
"""Of the small teachers' first channel."""


def split_of(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def plain_images(folder: Path) -> Path:
    """40 images, each of a gray value of its own that no crop and no mirror changes."""
    for number in range(40):
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{5 * number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 5 * number).save(path)
    return folder


@pytest.mark.parametrize("develop", [False, True])
@pytest.mark.parametrize("recover", ["labelled", "unlabelled"])
def test_the_teacher_is_shown_the_images_that_it_may_see_and_never_one_of_the_test_part(
    recover: str, develop: bool, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[str] = set()

    def watched(*words: Any) -> Any:
        teacher = open_teacher_at(*words)
        teacher.patch_embed.register_forward_pre_hook(
            lambda _, given: shown.update(f"{round(255 * (STD * float(i[0, 0, 0]) + MEAN)):03d}" for i in given[0])
        )
        return teacher

    monkeypatch.setattr(teacher_provider, "open_teacher_at", watched)
    words = (*RECOVER, "--recover", recover, "--fraction", 0.3, *(["--develop"] if develop else []))
    run = trained(plain_images(tmp_path / "data"), shared_teacher, tmp_path / "run", *words)
    rows = split_of(run)
    may_see = {
        Path(row["image_path"]).stem
        for row in rows
        if (row["labelled"] == "1" if recover == "labelled" else row["split"] == "train")
    }
    shown.remove("128")  # a blank, whose positions are counted; no image has this value
    assert shown == may_see
    assert metrics_of(run)["recover_num_images"] == len(shown)
    assert {row["split"] for row in rows} == ({"train", "test", "held-out"} if develop else {"train", "test"})
    assert ("of the test part are not used" in (run / "report.html").read_text(encoding="utf-8")) == develop
    answer = command("evaluate", run)
    assert ("fifth of the training part that the run held out" in answer.out + answer.err) == develop


def test_a_run_that_recovers_says_what_it_did_and_what_it_cost(
    shared_runs: Callable[..., Path], shared_run: Path, tmp_path: Path
) -> None:
    run, plain = shared_runs(*RECOVER), shared_run
    assert weights(run) != weights(plain)
    content = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert content.keys() == {"student", "auxiliary"}
    assert [epoch["epoch"] for epoch in content["student"]["epochs"]] == [1]
    assert all(layer.keys() == {"layer", "before", "after", "ridge"} for layer in content["student"]["layers"])
    metrics = metrics_of(run)
    assert (metrics["recover_num_images"], metrics["recover_num_passes"]) == (24, 48)
    assert (metrics["recover_num_views"], metrics["recover_num_views_asked"]) == (24, 24)
    assert metrics["recover_seconds"] > 0
    assert metrics["num_steps"] == metrics_of(plain)["num_steps"] + 2 * 3
    assert metrics["num_passes"] == metrics_of(plain)["num_passes"] + 48
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<dt>Recovery</dt>" in page
    steps = metrics["num_steps"] - metrics["recover_num_steps"]
    assert f"<dd>1 epochs, {steps} steps</dd>" in page
    assert "<dt>Recovery</dt>" not in (plain / "report.html").read_text(encoding="utf-8")
    answer = command("train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert weights(run) == weights(tmp_path / "again")


@pytest.mark.parametrize("auxiliary", ["other", "copy", "frozen", "none"])
def test_recovery_goes_with_every_auxiliary(
    auxiliary: str, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run", *RECOVER, "--auxiliary", auxiliary)
    student_pair = {"student", "auxiliary"} if auxiliary in ("other", "frozen") else {"student"}
    assert json.loads((run / "recovery.json").read_text(encoding="utf-8")).keys() == student_pair


def test_a_convnext_recovers_its_map(shared_images: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "convnext_tiny", dims=[8, 16, 24, 32], depths=[2, 2, 3, 2])
    size = ("--image-size", 64)
    run = trained(shared_images, teacher, tmp_path / "run", *RECOVER, *size, "--recover-blocks")
    layers = json.loads((run / "recovery.json").read_text(encoding="utf-8"))["student"]["layers"]
    assert {"stages.1.downsample.1", "stages.3.blocks.1.mlp.fc2"} <= {layer["layer"] for layer in layers}


@pytest.mark.parametrize(("attention", "student"), [("heads", "half"), ("within", "quarter")])
def test_a_run_can_start_from_a_subspace(
    attention: str, student: str, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = (*RECOVER, "--recover-stream", "subspace", "--attention", attention, "--student", student)
    run = trained(shared_images, shared_teacher, tmp_path / "run", *words)
    content = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert 0 < content["auxiliary"]["subspace_explained"] < content["student"]["subspace_explained"] < 1
    answer = command("train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert weights(run) == weights(tmp_path / "again")


def test_the_classifier_of_a_tuned_teacher_is_recovered(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = (*RECOVER, "--tune-teacher", "--tune-epochs", 1, "--tune-min-steps", 0, "--recover-classifier", "on")
    run = trained(shared_images, shared_teacher, tmp_path / "run", *words)
    content = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert all(network["classifier"]["after"] > network["classifier"]["before"] for network in content.values())


def test_a_teacher_that_does_not_know_the_classes_has_no_classifier_to_recover(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *RECOVER, "--recover-classifier", "on"))
    assert "the teacher's classifier has 1,000 classes, but the images have 3" in line
    assert line.endswith("with --tune-teacher, or use --recover-classifier off.")
    assert not (tmp_path / "run").exists()


def test_a_network_without_a_single_stream_has_no_subspace(shared_images: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "convnext_tiny", dims=[8, 16, 24, 32], depths=[2, 2, 3, 2])
    words = (*RECOVER, "--recover-stream", "subspace", "--attention", "heads", "--image-size", 64)
    line = refusal(train(shared_images, teacher, tmp_path / "run", *words))
    assert line == (
        "--recover-stream: 'subspace' is not possible for this ConvNeXt: it needs a ViT whose blocks read the stream "
        "only through LayerNorms, or a network with linear bottlenecks (most EfficientNets). "
        "Give --recover-stream channels."
    )


def test_a_selection_recovers_beside_its_teacher_as_if_it_had_just_been_made(
    shared_images: Path,
    shared_teacher: str,
    shared_selection: Path,
    shared_runs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    direct = shared_runs(*RECOVER)
    words = ("--data", shared_images, "--selected", shared_selection, "--teacher", shared_teacher, *SMALL)
    answer = command("train", *words, *RECOVER, "--output", tmp_path / "carried")
    assert answer.code == 0, answer.err
    assert weights(direct) == weights(tmp_path / "carried")


def test_a_selection_recovers_wherever_its_teacher_lies_now(shared_images: Path, tmp_path: Path) -> None:
    teacher = save_vit_teacher(tmp_path / "then")
    assert command("select", "--teacher", teacher, "--output", tmp_path / "selected").code == 0
    (tmp_path / "then").rename(tmp_path / "now")
    words = ("--selected", tmp_path / "selected", "--teacher", f"local-dir:{tmp_path / 'now'}", *SMALL, *RECOVER)
    answer = command("train", "--data", shared_images, *words, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    answer = command("train", "--config", tmp_path / "run" / "config.yaml", "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert weights(tmp_path / "run") == weights(tmp_path / "again")
    other = save_vit_teacher(tmp_path / "other", seed=1)
    words = ("--selected", tmp_path / "selected", "--teacher", other, *SMALL, *RECOVER)
    line = refusal(command("train", "--data", shared_images, *words, "--output", tmp_path / "refused"))
    assert "the weights were selected from another teacher than" in line


def test_a_selection_alone_cannot_recover(shared_images: Path, shared_selection: Path, tmp_path: Path) -> None:
    words = ("--data", shared_images, "--selected", shared_selection, *SMALL, *RECOVER)
    assert refusal(command("train", *words, "--output", tmp_path / "run")) == (
        "--recover: 'labelled' needs the teacher's weights, which --selected does not hold. "
        "Add the --teacher of the selection, or --recover none."
    )


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("--method", "kaiming"), "--recover: 'labelled' contradicts --method kaiming, which selects no weights"),
        (("--rule", "random-inconsistent"), "--recover: 'labelled' contradicts --rule random-inconsistent"),
        (("--recover-epochs", -1), "--recover-epochs: '-1' is not a whole number of at least 0"),
        (
            ("--recover-batch-size", 0),
            "--recover-batch-size: '0' is not a whole number of at least 1",
        ),
        (
            ("--recover-refit", "off", "--recover-epochs", 0),
            "--recover-epochs: '0' with --recover-refit off and --recover-classifier off leaves no recovery step",
        ),
        (
            ("--recover-stream", "subspace"),
            "--recover-stream: 'subspace' contradicts --attention interleaved, whose heads mix those of the teacher",
        ),
        (
            ("--recover-stream", "subspace", "--attention", "heads", "--rule", "random"),
            "--recover-stream: 'subspace' contradicts --rule random, which a choice by importance replaces",
        ),
        (
            ("--recover-method", "grail"),
            "--recover-method: 'grail' contradicts --attention interleaved, whose heads mix those of the teacher",
        ),
        (
            ("--recover-method", "grail", "--attention", "within"),
            "--recover-method: 'grail' contradicts --attention within, which keeps all heads",
        ),
        (
            ("--recover-method", "corp", "--recover-stream", "subspace", "--attention", "heads"),
            "--recover-stream: 'subspace' contradicts --recover-method corp, which prunes channels",
        ),
        (("--recover", "all"), "--recover: 'all' is not one of none, labelled, unlabelled"),
    ],
)
def test_what_cannot_recover_is_refused_before_anything_is_read(
    words: tuple[object, ...], place: str, shared_teacher: str, tmp_path: Path
) -> None:
    assert place in refusal(train("nowhere", shared_teacher, tmp_path / "run", *RECOVER, *words))


@pytest.mark.parametrize(
    ("words", "step"),
    [*itertools.product([()], [1, 4, 6, 8]), *itertools.product([("--distillation", "tf-kd-self")], [1, 4, 6])],
    ids=str,
)
def test_a_run_that_is_stopped_while_it_recovers_goes_on_and_ends_as_if_it_had_not_been(
    step: int,
    words: tuple[str, ...],
    shared_images: Path,
    shared_teacher: str,
    shared_runs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """By SIGTERM, at the first step, in the second epoch, at the last, and in the auxiliary's part if it recovers."""
    settings = (*RECOVER, "--recover-epochs", 2, "--recover-batch-size", 10, *words)
    whole = shared_runs(*settings)
    with sigterm_at_step(RecoveryStep, step):
        stopped = train(shared_images, shared_teacher, tmp_path / "run", *settings)
    assert stopped.code == 75, stopped.err
    network, place = ("student", step) if step <= 6 else ("auxiliary", step - 6)
    assert any((tmp_path / "run" / "checkpoints" / f"recovery-{network}").glob("step-*"))
    resumed = train(shared_images, shared_teacher, tmp_path / "run", *settings, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"recovery of the {network}: going on after step {place}" in resumed.err
    assert weights(whole) == weights(tmp_path / "run")
    counts = ("num_steps", "num_passes", "recover_num_passes", "accuracy")
    assert all(metrics_of(whole)[name] == metrics_of(tmp_path / "run")[name] for name in counts)


def test_a_run_that_crashes_after_its_recovery_does_not_recover_again(
    shared_images: Path,
    shared_teacher: str,
    shared_runs: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = shared_runs(*RECOVER)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", lambda *_: struck_by_lightning())
        with pytest.raises(RuntimeError, match="lightning"):
            train(shared_images, shared_teacher, tmp_path / "run", *RECOVER)
    monkeypatch.setattr(teacher_provider, "open_teacher_at", lambda *_: pytest.fail("the teacher was opened again"))
    resumed = train(shared_images, shared_teacher, tmp_path / "run", *RECOVER, "--resume")
    assert resumed.code == 0, resumed.err
    assert weights(whole) == weights(tmp_path / "run")
    assert recovery_of(whole) == recovery_of(tmp_path / "run")


def struck_by_lightning() -> None:
    raise RuntimeError("lightning struck")


def recovery_of(run: Path) -> list[Any]:
    """What was done, times aside."""
    content = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    return [(student["layers"], [epoch["loss"] for epoch in student["epochs"]]) for student in content.values()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--recover", "none"),
            ("--recover-batch-size 8 has no effect with --recover none", "--recover-epochs 1 has no effect with --re"),
        ),
        (
            ("--recover-epochs", 0, "--recover-blocks"),
            (
                "--recover-batch-size 8 has no effect with --re",
                "--recover-blocks has no effect with --recover-epochs 0",
            ),
        ),
        (
            ("--recover-refit", "off", "--recover-views", 9),
            ("--recover-views 9 has no effect with --recover-refit off and --recover-classifier off",),
        ),
        (("--recover-views", 2), ()),
        (
            ("--recover-refit", "off", "--recover-stream", "subspace"),
            ("--recover-stream subspace has no effect with --recover-refit off",),
        ),
        (("--recover", "none", "--recover-epochs", 0, "--recover-batch-size", 64), ()),
    ],
)
def test_settings_of_disabled_recovery_steps_are_named(
    words: tuple[object, ...], told: tuple[str, ...], shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    answer = train(shared_images, shared_teacher, tmp_path / "run", *RECOVER, *words)
    assert answer.code == 0, answer.err
    lines = [line for line in answer.err.splitlines() if "has no effect" in line]
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True)), lines


def test_least_squares_that_would_not_fit_are_refused(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinbud.recovery.refit.available_bytes", lambda _: 10**5)
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *RECOVER))
    assert line.startswith("--recover-memory: least squares needs 0.2 MiB of memory, but 0.1 MiB are free. Lower it")
