"""What only a GPU can show of recovery; on other machines these are skipped by name."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import save_vit_teacher
from twinbud.config import RecoveryConfig, TrainingConfig
from twinbud.models.selected import select
from twinbud.models.teacher import read_teacher_card
from twinbud.models.twins import Twins, build_twins
from twinbud.recovery.looks import UnlabelledImages
from twinbud.recovery.matching import RecoveryStep
from twinbud.recovery.outcome import Recovery
from twinbud.recovery.stage import recover
from waiting import no_waiting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SETTINGS = RecoveryConfig(recover="labelled", recover_epochs=2, recover_batch_size=4, recover_views=2)
TRAINING = TrainingConfig(image_size=28, temperature=4.0, drop_path=0.0)


def recovered(folder: Path, device: str, **settings: Any) -> tuple[Twins, Recovery]:
    card = read_teacher_card(save_vit_teacher(folder / device))
    selection = select(card)
    twins = build_twins(selection, image_size=28, num_classes=3)
    for network in (twins.student, twins.auxiliary):
        assert network is not None
        network.to(device)
    pixels = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = UnlabelledImages(
        images_NCSS=pixels.to(device), mean=(0.5,) * 3, std=(0.25,) * 3, device=torch.device(device)
    )
    return twins, recover(twins, selection, card, images, SETTINGS, TRAINING, **settings)


def test_a_gpu_recovers_what_a_cpu_recovers(tmp_path: Path) -> None:
    (_, cpu), (_, gpu) = recovered(tmp_path, "cpu"), recovered(tmp_path, "cuda")
    for twin, student in cpu.students.items():
        for ours, theirs in zip(student.fits, gpu.students[twin].fits, strict=True):
            assert theirs.after == pytest.approx(ours.after, abs=1e-2)
        losses = [[record.loss for record in part.students[twin].history.epochs] for part in (cpu, gpu)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_recovery_leaves_nothing_on_the_gpu_but_the_students(tmp_path: Path) -> None:
    recovered(tmp_path / "first", "cuda", bf16=True)  # whatever is allocated once
    gc.collect()
    before = torch.cuda.memory_allocated()
    twins, _ = recovered(tmp_path / "second", "cuda", bf16=True)
    gc.collect()
    students = [network for network in (twins.student, twins.auxiliary) if network is not None]
    held = sum(512 * -(-t.numel() * t.element_size() // 512) for n in students for t in n.state_dict().values())
    assert torch.cuda.memory_allocated() - before <= held


def test_no_step_of_recovery_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RecoveryStep.__call__

    def strict(self: RecoveryStep, *arguments: Any) -> Any:
        with no_waiting():
            return plain(self, *arguments)

    monkeypatch.setattr(RecoveryStep, "__call__", strict)
    recovered(tmp_path, "cuda")
