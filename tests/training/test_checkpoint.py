"""A resumed run ends bit for bit like an uninterrupted one, and a damaged checkpoint is never used."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import CONVNEXT, VIT, half_preprocessing, random_model
from twinbud.config.schema import Distillation, TrainingConfig
from twinbud.core.errors import Stopped, TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.checkpoint import CheckpointFolder
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit

SETTINGS = TrainingConfig(image_size=28, epochs=3, batch_size=4, temperature=4.0, drop_path=0.1, precision="float32")
NUM_STEPS = 9
IDENTITY = {"seed": 0}


class StopsAfter(CheckpointManager):
    """Is asked to stop during its n-th step."""

    def __init__(self, steps: int, folder: CheckpointFolder, **settings: Any) -> None:
        self.left = steps
        super().__init__(folder, **settings)

    @property
    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left < 0

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        del value


def student_pair(dual: bool = True) -> StudentPair:
    student = random_model("vit_tiny_patch16_224", 0, num_classes=3, drop_path_rate=0.1, **VIT)
    return StudentPair(
        student=student, auxiliary=random_model("vit_tiny_patch16_224", 1, num_classes=3, **VIT) if dual else None
    )


def train(
    checkpoints: CheckpointManager | None = None, *, dual: bool = True, **changes: Any
) -> tuple[StudentPair, History]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())
    pair = student_pair(dual)
    execution = Execution(checkpoints=checkpoints or CheckpointManager())
    return pair, fit(pair, data, replace(SETTINGS, **changes), execution)


@cache
def uninterrupted(**settings: Any) -> tuple[StudentPair, History]:
    """A training without a stop; to be read only."""
    return train(**settings)


def same(one: StudentPair, other: StudentPair) -> bool:
    pairs = [(one.student, other.student), (one.auxiliary, other.auxiliary)]
    return all(
        torch.equal(tensor, b.state_dict()[name])
        for a, b in pairs
        if a is not None
        for name, tensor in a.state_dict().items()
    )


def untimed(history: History) -> list[Any]:
    return [replace(record, seconds=0.0) for record in history.epochs]


def test_weights_that_lie_channels_last_resume_exactly(tmp_path: Path) -> None:
    """The fused optimizer goes through memory as it lies: moments must come back in their parameters' layout."""

    def run(checkpoints: CheckpointManager | None = None) -> StudentPair:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (10, 1, 32, 32), dtype=torch.uint8, generator=generator)
        data = LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())
        networks = [
            random_model("convnext_tiny", seed, num_classes=3, **CONVNEXT).to(memory_format=torch.channels_last)
            for seed in (0, 1)
        ]
        pair = StudentPair(student=networks[0], auxiliary=networks[1])
        fit(pair, data, replace(SETTINGS, image_size=32), Execution(checkpoints=checkpoints or CheckpointManager()))
        return pair

    whole, folder = run(), CheckpointFolder(tmp_path, IDENTITY)
    with pytest.raises(Stopped):
        run(StopsAfter(4, folder))
    resumed = run(CheckpointManager(folder, folder.latest()[0]))
    assert same(whole, resumed)
    weight = resumed.student.get_parameter("stages.0.blocks.0.conv_dw.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("steps", range(1, NUM_STEPS + 1))
def test_a_run_stopped_after_any_step_ends_as_if_it_had_not_been(steps: int, dual: bool, tmp_path: Path) -> None:
    whole, history = uninterrupted(dual=dual)
    folder = CheckpointFolder(tmp_path, IDENTITY)
    with pytest.raises(Stopped, match=r"--resume"):
        train(StopsAfter(steps - 1, folder), dual=dual)
    found, complaints = folder.latest()
    assert found is not None
    assert not complaints
    resumed, again = train(CheckpointManager(folder, found), dual=dual)
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_run_with_a_sampler_goes_on_with_the_samples_it_would_have_drawn(steps: int, tmp_path: Path) -> None:
    whole, history = uninterrupted(balance="sampler", mixup=0.4)
    folder = CheckpointFolder(tmp_path, IDENTITY)
    with pytest.raises(Stopped):
        train(StopsAfter(steps, folder), balance="sampler", mixup=0.4)
    resumed, again = train(CheckpointManager(folder, folder.latest()[0]), balance="sampler", mixup=0.4)
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)


@pytest.mark.parametrize("distillation", ["cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-reg"])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_every_variant_goes_on_with_what_it_remembered(steps: int, distillation: Distillation, tmp_path: Path) -> None:
    """Stopped inside the first epoch, at its end, and inside the second; tf-kd-self is in test_beforehand."""
    dual = distillation != "tf-kd-reg"
    whole, history = uninterrupted(dual=dual, distillation=distillation)
    folder = CheckpointFolder(tmp_path, IDENTITY)
    with pytest.raises(Stopped):
        train(StopsAfter(steps - 1, folder), dual=dual, distillation=distillation)
    resumed, again = train(CheckpointManager(folder, folder.latest()[0]), dual=dual, distillation=distillation)
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
        {"average": 0.9, "rotate": 20.0, "contrast": 0.2, "cutout": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_every_regularization_goes_on_as_it_began(steps: int, changes: dict[str, Any], tmp_path: Path) -> None:
    whole, history = uninterrupted(**changes)
    folder = CheckpointFolder(tmp_path, IDENTITY)
    with pytest.raises(Stopped):
        train(StopsAfter(steps - 1, folder), **changes)
    resumed, again = train(CheckpointManager(folder, folder.latest()[0]), **changes)
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)


def test_a_run_resumed_at_every_single_step_still_ends_the_same(tmp_path: Path) -> None:
    whole, history = uninterrupted()
    folder = CheckpointFolder(tmp_path, IDENTITY)
    for _ in range(NUM_STEPS):
        with pytest.raises(Stopped):
            train(StopsAfter(0, folder, checkpoint=folder.latest()[0]))
    resumed, again = train(CheckpointManager(folder, folder.latest()[0]))
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training that saved one after each epoch; to be read only."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train(CheckpointManager(CheckpointFolder(folder, IDENTITY), every_seconds=0.0))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> CheckpointFolder:
    """A copy of ``saved`` in ``tmp_path``."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return CheckpointFolder(tmp_path, IDENTITY)


def test_two_checkpoints_are_kept(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000006", "step-00000009"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "position.json"])
@pytest.mark.parametrize("harm", ["torn", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
    file: str, harm: str, folder: CheckpointFolder, tmp_path: Path
) -> None:
    path = tmp_path / "step-00000009" / file
    data = bytearray(path.read_bytes())
    if harm == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    found, complaints = folder.latest()
    assert found is not None
    assert found.position.num_steps == 6
    assert len(complaints) == 1
    assert complaints[0].startswith("checkpoint step-00000009 is damaged")
    assert same(train(CheckpointManager(folder, found))[0], uninterrupted()[0])


def test_a_draft_that_a_crash_left_behind_is_no_checkpoint(folder: CheckpointFolder, tmp_path: Path) -> None:
    (tmp_path / "step-00000009").rename(tmp_path / ".step-00000012.draft")
    found, complaints = folder.latest()
    assert found is not None
    assert found.position.num_steps == 6
    assert not complaints


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(saved: Path) -> None:
    with pytest.raises(TwinbudError, match=r"other values of seed"):
        CheckpointFolder(saved, {"seed": 1}).latest()


def test_a_full_disk_leaves_the_earlier_checkpoint(
    folder: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = folder.latest()
    assert found is not None

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TwinbudError, match=r"the disk is full"):
        folder.save(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000009"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_a_second_one_is_not_caught(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    checkpoints = CheckpointManager(CheckpointFolder(tmp_path, IDENTITY))
    with checkpoints.stop_on_signal():
        os.kill(os.getpid(), number)
        assert checkpoints.stop_requested
        assert signal.getsignal(number) == signal.SIG_DFL
        with pytest.raises(Stopped, match=r"after step 1;"):
            train(checkpoints)
    assert signal.getsignal(number) == before
