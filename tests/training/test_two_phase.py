"""tf-kd-self: a copy of S is trained as CM1 is, then teaches S; both phases resume exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import Stopped
from twinbud.core.progress import Advance, BarKind, SilentProgress
from twinbud.models.student_pair import StudentPair
from twinbud.training import two_phase
from twinbud.training.checkpoint import CheckpointFolder, EpochRecord
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.phases import FIRST_PHASE
from twinbud.training.train_step import TrainingStep
from twinbud.training.two_phase import fit_in_two_phases

SETTINGS = TrainingConfig(
    image_size=28, epochs=2, batch_size=4, temperature=4.0, drop_path=0.1, distillation="tf-kd-self"
)
STEPS_A_PHASE = 6


def student() -> Any:
    return random_model("vit_tiny_patch16_224", 0, num_classes=3, drop_path_rate=0.1, **VIT)


def data() -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=generator)
    return LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())


def train(checkpoints: CheckpointManager | None = None, **settings: Any) -> tuple[dict[str, torch.Tensor], History]:
    student_pair = StudentPair(student=student(), auxiliary=None)
    execution = Execution(checkpoints=checkpoints or CheckpointManager(), **settings)
    history = fit_in_two_phases(student_pair, data(), SETTINGS, execution)
    return student_pair.student.state_dict(), history


@cache
def uninterrupted() -> tuple[dict[str, torch.Tensor], History]:
    """Both phases without a stop; to be read only."""
    return train()


def checkpoint_manager(folder: Path, every_seconds: float = 60.0) -> CheckpointManager:
    """As a run opens them, each phase with what it finds."""
    first, second = CheckpointFolder(folder / "first-phase", {}), CheckpointFolder(folder, {})
    before = CheckpointManager(first, first.latest()[0], every_seconds, save_last=True)
    return CheckpointManager(second, second.latest()[0], every_seconds, phases={FIRST_PHASE: before})


def stop_after(steps: int, checkpoints: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for a stop, as a signal does, during the n-th step of both phases together."""
    taking, taken = TrainingStep.__call__, []

    def counted(self: TrainingStep, *batch: Any) -> Any:
        taken.append(1)
        if len(taken) == steps:
            checkpoints.request_stop()
        return taking(self, *batch)

    monkeypatch.setattr(TrainingStep, "__call__", counted)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def untimed(history: History) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in history.epochs]


def test_the_first_phase_is_cm1_and_the_second_starts_anew_with_its_outcome_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases: list[tuple[dict[str, torch.Tensor], StudentPair, TrainingConfig]] = []

    def spy(
        student_pair: StudentPair, images: LabelledImages, config: TrainingConfig, *execution: Execution
    ) -> History:
        phases.append((copy.deepcopy(student_pair.student.state_dict()), student_pair, config))
        return fit(student_pair, images, config, *execution)

    monkeypatch.setattr(two_phase, "fit", spy)
    train()
    cm1 = StudentPair(student=student(), auxiliary=None)
    fit(cm1, data(), replace(SETTINGS, distillation="skd"))
    (start, first, _), (start_again, second, config) = phases
    assert first.auxiliary is None
    assert same(start, start_again)
    assert config == SETTINGS
    assert second.frozen
    assert second.auxiliary is first.student
    assert same(first.student.state_dict(), cm1.student.state_dict())


def test_cost_counts_both_phases_and_the_history_is_of_the_second() -> None:
    records: list[EpochRecord] = []
    _, history = train(on_epoch=records.append)
    assert records == list(history.epochs)
    assert [record.epoch for record in records] == [1, 2]
    assert all(record.loss_skd is not None for record in records)
    assert (history.num_steps, history.num_images) == (2 * STEPS_A_PHASE, 40)
    assert history.train_seconds > sum(record.seconds for record in records)


def test_each_phase_has_a_bar_of_its_own() -> None:
    shown: list[tuple[str, int, BarKind]] = []

    class Shown(SilentProgress):
        @contextmanager
        def bar(self, label: str, total: int, *, kind: BarKind = "items") -> Iterator[Advance]:
            shown.append((label, total, kind))
            with super().bar(label, total, kind=kind) as advance:
                yield advance

    train(progress=Shown(), label="training dual")
    assert shown == [
        ("training the auxiliary", STEPS_A_PHASE, "steps"),
        ("training dual", STEPS_A_PHASE, "steps"),
    ]


@pytest.mark.parametrize("steps", range(1, 2 * STEPS_A_PHASE + 1))
def test_a_run_stopped_after_any_step_of_either_phase_ends_as_if_it_had_not_been(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = uninterrupted()
    checkpoints = checkpoint_manager(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(steps, checkpoints, patch)
        with pytest.raises(Stopped, match=rf"after step {steps if steps <= STEPS_A_PHASE else steps - STEPS_A_PHASE};"):
            train(checkpoints)
    resumed, again = train(checkpoint_manager(tmp_path))
    assert same(whole, resumed)
    assert untimed(history) == untimed(again)
    assert again.num_steps == history.num_steps


def test_a_stop_asked_for_between_the_phases_is_not_forgotten(tmp_path: Path) -> None:
    checkpoints = checkpoint_manager(tmp_path)
    folder = checkpoints.phase(FIRST_PHASE).folder
    assert folder is not None
    save = folder.save

    def asked_meanwhile(checkpoint: Any) -> None:
        save(checkpoint)
        checkpoints.request_stop()

    folder.save = asked_meanwhile
    with pytest.raises(Stopped, match="after step 1;"):
        train(checkpoints)
    assert same(train(checkpoint_manager(tmp_path))[0], uninterrupted()[0])


def test_a_crash_between_the_phases_does_not_train_the_first_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, history = uninterrupted()
    taking, taken = TrainingStep.__call__, []

    def crashing(self: TrainingStep, *batch: Any) -> Any:
        taken.append(1)
        if len(taken) == STEPS_A_PHASE + 2:
            raise RuntimeError("lightning struck")
        return taking(self, *batch)

    monkeypatch.setattr(TrainingStep, "__call__", crashing)
    with pytest.raises(RuntimeError, match="lightning"):
        train(checkpoint_manager(tmp_path))
    resumed, again = train(checkpoint_manager(tmp_path))
    assert len(taken) == 2 * STEPS_A_PHASE + 2
    assert same(whole, resumed)
    assert (untimed(history), history.num_steps) == (untimed(again), again.num_steps)
