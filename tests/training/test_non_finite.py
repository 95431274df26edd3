"""A value that is not finite, wherever it comes from, reaches neither student nor auxiliary nor the optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.losses import Losses, total_loss
from twinbud.training.train_step import Objective, TrainingStep

BAD_STEP = 2
SETTINGS: dict[str, Any] = {
    "image_size": 28, "epochs": 2, "batch_size": 4, "temperature": 4.0, "drop_path": 0.0, "precision": "float32",
}  # fmt: skip
OBJECTIVE = Objective(alpha=0.6, beta=0.9, temperature=4.0, ce_temperature=1.0, clip_norm=1.0, bf16=False)

Inject = Callable[[StudentPair, float, pytest.MonkeyPatch], None]


def into_image(student_pair: StudentPair, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    for network in (student_pair.student, student_pair.auxiliary):
        assert network is not None

        def spoil(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            del module
            (images,) = inputs
            images = images.clone()
            images[0, 0, 0, 0] = value
            return images

        network.register_forward_pre_hook(spoil)


def into_loss(student_pair: StudentPair, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    del student_pair
    sound = total_loss

    def spoilt(*inputs: Any, **settings: Any) -> Losses:
        losses = sound(*inputs, **settings)
        return losses._replace(total=losses.total * value)

    monkeypatch.setattr("twinbud.training.train_step.total_loss", spoilt)


def into_gradient(student_pair: StudentPair, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    student_pair.student.get_parameter("norm.weight").register_hook(lambda gradient: gradient * value)


def into_student(student_pair: StudentPair, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    student_pair.student.get_parameter("norm.weight").data[0] = value


def into_auxiliary(student_pair: StudentPair, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    assert student_pair.auxiliary is not None
    student_pair.auxiliary.get_parameter("norm.weight").data[0] = value


PLACES: dict[str, Inject] = {
    "image": into_image,
    "loss": into_loss,
    "gradient": into_gradient,
    "S": into_student,
    "S′": into_auxiliary,
}
everywhere = pytest.mark.parametrize("inject", PLACES.values(), ids=PLACES)
every_value = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])


def student_pair() -> StudentPair:
    return StudentPair(
        student=random_model("vit_tiny_patch16_224", 0, num_classes=3, **VIT).train(),
        auxiliary=random_model("vit_tiny_patch16_224", 1, num_classes=3, **VIT),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 28, 28, generator=generator), torch.tensor([0, 1, 2, 1])


def held(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def require_untouched(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        # a value that was not finite before may be another such after, and nothing else may change
        sound = torch.isfinite(before[name])
        assert torch.equal(torch.isfinite(tensor), sound), name
        assert torch.equal(tensor[sound], before[name][sound]), name


@everywhere
@every_value
@pytest.mark.parametrize("deferred", [False, True], ids=["known at once", "read later"])
def test_the_update_reaches_neither_student_nor_auxiliary_and_the_error_names_the_step(
    inject: Inject, value: float, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = student_pair()
    step = TrainingStep(pair, OBJECTIVE, weight_decay=0.05)
    step.optimizer.deferred = deferred
    step(*batch(), 1e-3)
    inject(pair, value, monkeypatch)
    before = held(step.tensors())

    def go_on() -> None:
        for _ in range(3 if deferred else 1):  # on a GPU, more steps are taken before the flag is read
            step(*batch(), 1e-3)
        step.check()

    with pytest.raises(TwinbudError, match=rf"^step {BAD_STEP}\b.*: the (loss|gradient) is not finite \(loss"):
        go_on()
    require_untouched(step.tensors(), before)


@everywhere
def test_training_stops_and_names_step_and_batch(inject: Inject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected as S sees its second batch."""
    pair = student_pair()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())
    taken: list[dict[str, torch.Tensor]] = []
    taking = TrainingStep.__call__

    def spy(self: TrainingStep, *batch: Any) -> Any:
        if self.num_steps == BAD_STEP - 1:
            inject(pair, float("nan"), monkeypatch)
        taken.append(held(self.tensors()))
        return taking(self, *batch)

    monkeypatch.setattr(TrainingStep, "__call__", spy)
    with pytest.raises(TwinbudError) as caught:
        fit(pair, data, TrainingConfig(**SETTINGS))
    assert re.match(rf"step {BAD_STEP}\b.*\bbatch 2\b.*: the (loss|gradient) is not finite", str(caught.value))
    assert len(taken) == BAD_STEP
    for name, network in (("student", pair.student), ("auxiliary", pair.auxiliary)):
        assert network is not None
        expected = {key.removeprefix(f"{name}."): t for key, t in taken[-1].items() if key.startswith(f"{name}.")}
        require_untouched(network.state_dict(), expected)
