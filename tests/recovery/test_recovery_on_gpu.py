"""What only a GPU can show of recovery; on other machines these are skipped by name."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import half_preprocessing, save_vit_teacher
from helpers.waiting import no_waiting
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import Attention, TrainingConfig
from twinbud.models.selection_io import select
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.models.teacher import read_teacher_info
from twinbud.recovery.feature_matching import RecoveryStep
from twinbud.recovery.result import Recovery
from twinbud.recovery.stage import recover
from twinbud.training.unlabelled import UnlabelledImages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SETTINGS = RecoveryConfig(recover="labelled", recover_epochs=2, recover_batch_size=4, recover_views=2)
TRAINING = TrainingConfig(image_size=28, temperature=4.0, drop_path=0.0)


def recovered(
    folder: Path,
    device: str,
    *,
    config: RecoveryConfig = SETTINGS,
    attention: Attention = "interleaved",
    **settings: Any,
) -> tuple[StudentPair, Recovery]:
    teacher_info = read_teacher_info(save_vit_teacher(folder / device))
    selection = select(teacher_info, attention=attention)
    student_pair = build_student_pair(selection, image_size=28, num_classes=3)
    for network in (student_pair.student, student_pair.auxiliary):
        assert network is not None
        network.to(device)
    pixels = torch.randint(0, 256, (10, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = UnlabelledImages(
        images_NCSS=pixels.to(device), preprocessing=half_preprocessing(), device=torch.device(device)
    )
    return student_pair, recover(student_pair, selection, teacher_info, images, config, TRAINING, **settings)


@pytest.mark.parametrize("attention", ["interleaved", "within"])
def test_a_gpu_recovers_what_a_cpu_recovers(attention: Attention, tmp_path: Path) -> None:
    config = SETTINGS if attention == "interleaved" else replace(SETTINGS, recover_stream="subspace")
    (_, cpu), (_, gpu) = (recovered(tmp_path, d, config=config, attention=attention) for d in ("cpu", "cuda"))
    for pair_role, student in cpu.students.items():
        for ours, theirs in zip(student.refit.fits, gpu.students[pair_role].refit.fits, strict=True):
            assert theirs.after == pytest.approx(ours.after, abs=1e-2)
        losses = [[record.loss for record in part.students[pair_role].history.epochs] for part in (cpu, gpu)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_recovery_leaves_nothing_on_the_gpu_but_the_students(tmp_path: Path) -> None:
    recovered(tmp_path / "first", "cuda", bf16=True)  # whatever is allocated once
    gc.collect()
    before = torch.cuda.memory_allocated()
    student_pair, _ = recovered(tmp_path / "second", "cuda", bf16=True)
    gc.collect()
    students = [network for network in (student_pair.student, student_pair.auxiliary) if network is not None]
    held = sum(512 * -(-t.numel() * t.element_size() // 512) for n in students for t in n.state_dict().values())
    assert torch.cuda.memory_allocated() - before <= held


def test_no_step_of_recovery_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RecoveryStep.__call__

    def strict(self: RecoveryStep, *arguments: Any) -> Any:
        with no_waiting():
            return plain(self, *arguments)

    monkeypatch.setattr(RecoveryStep, "__call__", strict)
    recovered(tmp_path, "cuda")
