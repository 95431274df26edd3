"""What the benchmarks compare is comparable, and their arithmetic is right."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench_table import Row, Target, epoch_ratio, limit_lines, table, twin_targets, whole_run_targets
from helpers.builders import VIT, random_model
from measuring import Measurement
from plain_loop import make_optimizer, train_step
from task import Task
from twinbud.config.schema import TrainingConfig
from twinbud.models.student_pair import StudentPair
from twinbud.training.fit import objective
from twinbud.training.schedule import peak_learning_rate
from twinbud.training.train_step import TrainingStep

SELECTION = Row("vit", 112, "selection", "twinbud")
DUAL = SELECTION._replace(method="dual")
LIMIT: dict[str, Any] = {
    "f": 0.25, "forward_seconds": 0.1, "step_seconds": 0.4, "dual_step_seconds": 0.5, "augmentation_seconds": 0.01,
    "gflops": {"float32": 100.0, "bf16": 300.0}, "gflop_step": {"selection": 32.0, "dual": 42.0}, "batch": 32,
    "auxiliary_mib": 20.0,
}  # fmt: skip


def small_vit(seed: int) -> Any:
    return random_model("vit_tiny_patch16_224", seed, num_classes=3, **VIT).double()


def taken(epoch_seconds: float, peak_mib: float = 100.0, wall_seconds: float = 50.0) -> Measurement:
    found = {"in_epochs_seconds": wall_seconds - 4, "test_seconds": 3.0, "to_training_seconds": 0.75}
    return Measurement(
        wall_seconds=wall_seconds, epoch_seconds=epoch_seconds, num_train=160, peak_mib=peak_mib, found=found
    )


@pytest.mark.parametrize("method", ["selection", "dual"])
@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_the_plain_loop_takes_the_same_step(method: str, clip_norm: float | None) -> None:
    """In float64: in float32, Adam's first step magnifies the rounding of gradients that are nearly zero."""
    training = TrainingConfig(temperature=4.0, drop_path=0.0, clip_norm=clip_norm, precision="float32")
    pair = StudentPair(student=small_vit(0).train(), auxiliary=small_vit(1) if method == "dual" else None)
    student, auxiliary = copy.deepcopy(pair.student), copy.deepcopy(pair.auxiliary)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(5)).double()
    labels = torch.tensor([0, 1, 2, 1])

    step = TrainingStep(pair, objective(training, bf16=False), weight_decay=training.weight_decay)
    rate = peak_learning_rate(training.learning_rate, training.batch_size)
    losses = step(images, labels, rate).losses
    loss = train_step(student, auxiliary, make_optimizer(student, training), images, labels, training)

    torch.testing.assert_close(loss, losses.total.detach())
    torch.testing.assert_close(student.state_dict(), pair.student.state_dict(), rtol=0, atol=1e-9)
    assert not torch.equal(student.head.weight, small_vit(0).head.weight)
    if auxiliary is not None and pair.auxiliary is not None:
        torch.testing.assert_close(auxiliary.state_dict(), pair.auxiliary.state_dict(), rtol=0, atol=1e-9)
        assert not torch.equal(auxiliary.head.weight, small_vit(1).head.weight)


def test_a_task_survives_the_command_line() -> None:
    task = Task(
        data="images", fraction=0.05, listing=Path("a.csv"), selected=Path("vit"), result=Path("r.json"), method="dual",
        image_size=112, epochs=3, precision="bf16", device="cpu", profile="quick",
    )  # fmt: skip
    assert Task.from_command_line(None, task.options) == task
    assert {field.name for field in dataclasses.fields(Task)} == {
        word[2:].replace("-", "_") for word in task.options[::2]
    }


def test_the_table_has_a_line_a_row_with_medians_and_paired_ratios() -> None:
    rival = SELECTION._replace(program="Trainer")
    lines = list(
        table({SELECTION: [taken(2), taken(4), taken(1)], rival: [taken(6), taken(6), taken(2)]}, {"vit": "ViT"})
    )
    assert lines[2] == "| ViT | 112 | selection | twinbud | 80.0 (40.0 – 160.0) | 2.00 | 100 |  |"
    assert lines[3] == "| ViT | 112 | selection | Trainer | 26.7 (26.7 – 80.0) | 6.00 | 100 | 2.00 × |"
    assert len({line.count("|") for line in lines}) == 1


def test_ratios_are_taken_turn_by_turn() -> None:
    """A machine that slows down during the measurement slows both sides of a pair."""
    assert epoch_ratio([taken(2), taken(20), taken(200)], [taken(1), taken(10), taken(100)]) == 2


def test_targets_follow_the_measurements() -> None:
    found = {SELECTION: [taken(1.0, 100)] * 3, DUAL: [taken(1.3, 123)] * 3}
    time, memory = twin_targets(SELECTION, LIMIT, found, "ViT")
    assert (time.value, time.limit, time.met) == (1.3, pytest.approx(1.25 * 1.03), False)
    assert (memory.value, memory.limit, memory.met) == (23, 24, True)
    assert str(time).startswith("- **missed**: `dual` / `selection` in time, ViT, 112 px: 1.3 ×, target ≤ 1.29 ×")
    (line,) = limit_lines(SELECTION, LIMIT, found, "float32", "ViT")
    assert "f = 0.250" in line
    assert "`selection` reaches 160 GFLOP/s, 160% of it" in line


def test_a_whole_run_is_held_against_trainer_and_its_own_clocks() -> None:
    own, rival = [taken(1, wall_seconds=50)] * 5, [taken(1, wall_seconds=60)] * 5
    faster, bookkeeping, start = whole_run_targets("dual", own, rival, epochs=40)
    assert (faster.value, faster.met) == (1.2, False)
    assert (bookkeeping.value, bookkeeping.met) == (pytest.approx(2), True)
    assert (start.value, start.met) == (0.75, True)


def test_a_target_is_met_on_the_right_side() -> None:
    assert Target("slow", 1.0, 2.0).met
    assert not Target("fast", 1.0, 2.0, at_least=True).met
