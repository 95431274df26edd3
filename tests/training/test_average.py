"""The average of the student's weights that is delivered in place of the last ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers.builders import half_preprocessing
from twinbud.config.schema import TrainingConfig
from twinbud.models.student_pair import StudentPair
from twinbud.training.ema import ema_update, unbiased_beta
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.train_step import TrainingStep

SETTINGS: dict[str, Any] = {
    "image_size": 4, "epochs": 3, "batch_size": 4, "temperature": 4.0, "drop_path": 0.0, "learning_rate": 1e-2,
}  # fmt: skip


def network() -> nn.Module:
    """A network with a running mean and variance, which are weights too, and a count, which is not averaged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 3))
    model.num_classes = 3  # pyright: ignore[reportArgumentType]
    return model


def data() -> LabelledImages:
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing(4))


def train(**changes: Any) -> nn.Module:
    student = network()
    fit(StudentPair(student=student, auxiliary=None), data(), TrainingConfig(**{**SETTINGS, **changes}))
    return student


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights of the student after each step of a training."""
    seen: list[dict[str, torch.Tensor]] = []
    taking = TrainingStep.__call__

    def spy(self: TrainingStep, *batch: Any) -> Any:
        result = taking(self, *batch)
        seen.append(copy.deepcopy(self.student_pair.student.state_dict()))
        return result

    monkeypatch.setattr(TrainingStep, "__call__", spy)
    return seen


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_delivered_weights_are_the_weighted_mean_of_those_after_each_step(
    decay: float, weights: list[dict[str, torch.Tensor]]
) -> None:
    """Batch norm's statistics among them; the initial weights do not count."""
    delivered = train(average=decay).state_dict()
    assert len(weights) == 9
    shares = torch.tensor([decay ** (9 - step) for step in range(1, 10)], dtype=torch.float64)
    for name, tensor in delivered.items():
        steps = torch.stack([state[name].double() for state in weights])
        mean = torch.tensordot(shares / shares.sum(), steps, dims=1)
        expected = steps[-1] if name.endswith("num_batches_tracked") else mean
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_decay_near_one_is_torchs_mean_of_all_steps(weights: list[dict[str, torch.Tensor]]) -> None:
    delivered, model = train(average=1 - 1e-9), network()
    swa = AveragedModel(model, use_buffers=True)
    for state in weights:
        model.load_state_dict(state)
        swa.update_parameters(model)
    for name, parameter in delivered.named_parameters():
        torch.testing.assert_close(parameter, swa.module.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_the_average_changes_neither_the_steps_nor_their_losses() -> None:
    losses = []
    for decay in (None, 0.9):
        config = TrainingConfig(**SETTINGS, average=decay)
        losses.append([e.loss for e in fit(StudentPair(student=network(), auxiliary=None), data(), config).epochs])
    assert losses[0] == losses[1]


def test_a_test_pass_sees_the_average_and_training_goes_on_from_the_last_weights(
    weights: list[dict[str, torch.Tensor]],
) -> None:
    tested: list[torch.Tensor] = []
    student = network()

    def test_accuracy() -> float:
        tested.append(student.get_parameter("2.weight").clone())
        return 0.0

    config = TrainingConfig(**SETTINGS, average=0.9, evaluate_every=1)
    fit(StudentPair(student=student, auxiliary=None), data(), config, Execution(test_accuracy=test_accuracy))
    assert torch.equal(tested[-1], student.get_parameter("2.weight"))
    assert not torch.equal(tested[0], weights[2]["2.weight"])
    assert torch.equal(student.get_parameter("2.weight"), train(average=0.9).get_parameter("2.weight"))


def test_an_update_after_a_step_that_is_not_finite_changes_nothing() -> None:
    average, student = network(), network()
    before = copy.deepcopy(average.state_dict())
    student.get_parameter("2.weight").data.fill_(torch.nan)
    ema_update(average, student, unbiased_beta(0.9, torch.tensor(3.0)), torch.tensor(False))
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, before[name]), name
