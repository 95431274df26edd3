"""Compilation is chosen by what it repays, and changes no number beyond float32's tolerance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import Distillation, TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.compile import STEPS_TO_COMPILE, STEPS_TO_RECORD, Compilation, choose_compilation
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("requested", "device", "steps", "name"),
    [
        ("auto", CPU, STEPS_TO_COMPILE - 1, "none"),
        ("auto", CPU, STEPS_TO_COMPILE, "inductor"),
        ("auto", GPU, STEPS_TO_RECORD - 1, "none"),
        ("auto", GPU, STEPS_TO_RECORD, "graphs"),
        ("off", CPU, 10**6, "none"),
        ("off", GPU, 10**6, "none"),
        ("on", CPU, 1, "inductor"),
        ("on", GPU, 1, "inductor+graphs"),
    ],
)
def test_the_planned_steps_decide(requested: str, device: torch.device, steps: int, name: str) -> None:
    assert choose_compilation(requested, device, steps).name == name  # pyright: ignore[reportArgumentType]


def test_auto_says_from_how_many_steps_it_would_pay() -> None:
    assert choose_compilation("auto", CPU, 360).reason == "360 steps; saves time from about 1,500"


def test_without_a_compiler_auto_goes_without_and_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen = choose_compilation("auto", CPU, 10**6)
    assert (chosen.name, chosen.reason) == ("none", "no C++ compiler")
    with pytest.raises(TwinbudError, match=r"--compile on: there is no C\+\+ compiler\. Install g\+\+"):
        choose_compilation("on", CPU, 1)


def small_vit(seed: int) -> nn.Module:
    return random_model("vit_tiny_patch16_224", seed, num_classes=3, drop_path_rate=0.3, **VIT)


class OneLayer(nn.Sequential):
    """The smallest network that can be trained."""

    num_classes = 3

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 7 * 7, self.num_classes))


@pytest.mark.parametrize(("build", "distillation"), [(small_vit, "skd"), (OneLayer, "cs-kd"), (OneLayer, "tf-kd")])
def test_the_compiled_step_gives_the_plain_steps_numbers(
    build: Callable[[int], Any], distillation: Distillation
) -> None:
    """10 images in batches of 4, so that each epoch's last, short batch takes the plain path.

    Attention and drop path are compiled once, since no loss depends on them: they take most of the time.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())
    student_pair = StudentPair(student=build(0), auxiliary=build(1))
    config = TrainingConfig(
        image_size=28, epochs=2, batch_size=4, temperature=4.0, drop_path=0.3, clip_norm=1.0, distillation=distillation
    )
    plain, compiled = copy.deepcopy(student_pair), copy.deepcopy(student_pair)
    expected = fit(plain, data, config)
    execution = Execution(compilation=Compilation(inductor=True, graphs=False, reason="asked for"))
    found = fit(compiled, data, config, execution)
    assert [record.loss for record in found.epochs] == pytest.approx([r.loss for r in expected.epochs], rel=1e-4)
    for name, tensor in plain.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
