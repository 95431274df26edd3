"""What only a GPU can show; on other machines these are skipped by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.builders import VIT, half_preprocessing, random_model
from helpers.waiting import no_waiting
from twinbud.config.schema import Distillation, TrainingConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.compile import EAGER, Compilation
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.train_step import TrainingStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

VARIANTS: tuple[Distillation, ...] = ("skd", "cs-kd", "cs-kd-pair", "tf-kd", "tf-kd-reg", "teacher", "skd+teacher")
"""All that take a step of their own; tf-kd-self takes those of selection and of skd."""
SETTINGS = TrainingConfig(image_size=28, epochs=2, batch_size=4, temperature=4.0, drop_path=0.0, clip_norm=1.0)


RECORDED = Compilation(inductor=False, graphs=True, reason="asked for")


def train(device: str, compilation: Compilation = EAGER, config: TrainingConfig = SETTINGS) -> tuple[StudentPair, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=generator)
    data = LabelledImages(
        images_NCSS=images.to(device), labels_N=(torch.arange(10) % 3).to(device), preprocessing=half_preprocessing()
    )
    drop = 0.0 if config.drop_path == "auto" else config.drop_path
    *pair, teacher = (
        random_model("vit_tiny_patch16_224", seed, num_classes=3, drop_path_rate=drop, **VIT).to(device)
        for seed in (0, 1, 2)
    )
    student_pair = StudentPair(student=pair[0], auxiliary=pair[1])
    teacher = teacher.requires_grad_(False)
    return student_pair, fit(student_pair, data, config, Execution(compilation=compilation), teacher=teacher)


@pytest.mark.parametrize("distillation", VARIANTS)
def test_a_gpu_computes_what_a_cpu_computes(distillation: Distillation) -> None:
    config = replace(SETTINGS, distillation=distillation)
    (cpu, history), (gpu, again) = train("cpu", config=config), train("cuda", config=config)
    assert again.epochs[0].loss == pytest.approx(history.epochs[0].loss, rel=1e-4)
    for name, tensor in cpu.student.state_dict().items():
        torch.testing.assert_close(gpu.student.state_dict()[name].cpu(), tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("distillation", VARIANTS)
def test_a_recorded_step_does_what_an_ordinary_one_does(distillation: Distillation) -> None:
    """Two shapes of batch, more epochs than ordinary calls, warm-up and drop path: all replayed, nothing lost."""
    config = replace(SETTINGS, epochs=8, learning_rate=1e-3, warmup=0.5, drop_path=0.1, distillation=distillation)
    (plain, history), (recorded, again) = train("cuda", config=config), train("cuda", RECORDED, config)
    assert [record.loss for record in again.epochs] == pytest.approx([r.loss for r in history.epochs], rel=1e-4)
    for recorded_network, plain_network in ((recorded.student, plain.student), (recorded.auxiliary, plain.auxiliary)):
        assert recorded_network is not None
        assert plain_network is not None
        for name, tensor in plain_network.state_dict().items():
            torch.testing.assert_close(recorded_network.state_dict()[name], tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("distillation", VARIANTS)
def test_no_step_waits_for_the_device(distillation: Distillation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the step runs where any synchronisation is an error."""
    plain = TrainingStep.__call__

    def strict(self: TrainingStep, *arguments: Any) -> Any:
        with no_waiting():
            return plain(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", strict)
    train("cuda", config=replace(SETTINGS, distillation=distillation))


@pytest.mark.parametrize("distillation", VARIANTS)
def test_a_bad_step_on_a_gpu_changes_nothing_and_is_told_at_the_epochs_end(
    distillation: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither student and auxiliary, nor the moments, nor what the targets remember."""
    plain = TrainingStep.__call__
    kept: dict[str, torch.Tensor] = {}

    def poisoned(self: TrainingStep, images: torch.Tensor, *arguments: Any) -> Any:
        if self.num_steps == 1:
            kept.update({name: value.clone() for name, value in self.tensors().items()})
            images = images * float("nan")
        result = plain(self, images, *arguments)
        if kept:
            for name, value in self.tensors().items():
                assert torch.equal(value, kept[name]), name
        return result

    monkeypatch.setattr(TrainingStep, "__call__", poisoned)
    with pytest.raises(TwinbudError, match=r"step 2 \(epoch 1, batch 2\)"):
        train("cuda", config=replace(SETTINGS, distillation=distillation))
