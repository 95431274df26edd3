"""The losses of a few steps, and what recovery finds, kept in a file: a faster path must give the same numbers.

The tolerance is float32's: relative, and absolute for ``loss_skd``, a small difference of log-probabilities near 1.

``python tests/training/test_golden.py`` writes the file anew; a change of it is a change of results, and says so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.builders import CONVNEXT, VIT, half_preprocessing, random_model, save_vit_teacher
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import TrainingConfig
from twinbud.models.selection_io import select
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.models.teacher import read_teacher_info
from twinbud.recovery.stage import recover
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.unlabelled import UnlabelledImages

GOLDEN = Path(__file__).with_name("golden_losses.json")
CASES = [(architecture, method) for architecture in ("vit", "convnext") for method in ("dual", "selection")]


def network(architecture: str, seed: int) -> Any:
    if architecture == "vit":
        return random_model("vit_tiny_patch16_224", seed, num_classes=3, drop_path_rate=0.1, **VIT)
    return random_model("convnext_tiny", seed, num_classes=3, drop_path_rate=0.1, **CONVNEXT)


def losses(architecture: str, method: str) -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    size = 28 if architecture == "vit" else 32
    images = torch.randint(0, 256, (10, 3, size, size), dtype=torch.uint8, generator=generator)
    data = LabelledImages(images_NCSS=images, labels_N=torch.arange(10) % 3, preprocessing=half_preprocessing())
    student_pair = StudentPair(
        student=network(architecture, 0), auxiliary=network(architecture, 1).eval() if method == "dual" else None
    )
    config = TrainingConfig(
        image_size=size, epochs=4, batch_size=4, temperature=4.0, drop_path=0.1, learning_rate=1e-3, clip_norm=1.0
    )
    return [
        {"loss": record.loss, "loss_ce": record.loss_ce}
        | ({} if record.loss_skd is None else {"loss_skd": record.loss_skd})
        for record in fit(student_pair, data, config).epochs
    ]


def recovered(folder: Path) -> list[dict[str, float]]:
    """Each layer's fit where views have to be left out, then matching, then training with layer decay."""
    teacher_info = read_teacher_info(save_vit_teacher(folder / "vit"))
    selection = select(teacher_info)
    student_pair = build_student_pair(selection, image_size=28, num_classes=3, auxiliary="none")
    image_store = torch.randint(0, 256, (30, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocessing = half_preprocessing()
    images = UnlabelledImages(images_NCSS=image_store, preprocessing=preprocessing, device=torch.device("cpu"))
    training = TrainingConfig(
        image_size=28, epochs=2, batch_size=10, temperature=4.0, drop_path=0.0, learning_rate=1e-3, layer_decay=0.5
    )
    recovery = RecoveryConfig(
        recover="labelled", recover_views=4, recover_memory=0.001, recover_epochs=2, recover_batch_size=10
    )
    found = recover(student_pair, selection, teacher_info, images, recovery, training).students["student"]
    assert found.refit.num_views < 120
    labelled = LabelledImages(images_NCSS=image_store, labels_N=torch.arange(30) % 3, preprocessing=preprocessing)
    fits = [{"loss": 1 - layer.after, "ridge": layer.ridge} for layer in found.refit.fits]
    epochs = (*found.history.epochs, *fit(student_pair, labelled, training).epochs)
    return [*fits, *({"loss": epoch.loss} for epoch in epochs)]


@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_the_losses_are_those_of_the_plain_path(architecture: str, method: str) -> None:
    expected = json.loads(GOLDEN.read_text())[f"{architecture} {method}"]
    for epoch, (found, kept) in enumerate(zip(losses(architecture, method), expected, strict=True)):
        growth = 10**epoch
        assert found == pytest.approx(kept, rel=1e-5 * growth, abs=1e-7 * growth), f"epoch {epoch + 1}"


def test_recovery_finds_what_it_found(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())["recovered"]
    for number, (found, kept) in enumerate(zip(recovered(tmp_path), expected, strict=True)):
        assert found == pytest.approx(kept, rel=1e-3), f"line {number + 1}"


if __name__ == "__main__":
    golden = {f"{architecture} {method}": losses(architecture, method) for architecture, method in CASES}
    with tempfile.TemporaryDirectory() as folder:
        golden["recovered"] = recovered(Path(folder))
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
