"""What the rivals share: twinbud's settings and student pairs, images decoded as tutorials do it, clock and memory."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from task import Task
from twinbud.config.loading import stage_config
from twinbud.config.profiles import PROFILES
from twinbud.config.schema import TrainingConfig, resolve
from twinbud.core.memory import PeakMemory
from twinbud.models.selection_io import load_selection
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.models.student_spec import StudentSpec

NUM_WORKERS = 2
"""Of the rivals' DataLoaders."""


def settings(task: Task) -> TrainingConfig:
    """twinbud's own settings, resolved for the family of the student pairs."""
    family = load_selection(task.selected).student_spec.family
    chosen: dict[str, Any] = PROFILES[task.profile] | {
        "profile": task.profile,
        "min_steps": 0,
        "image_size": task.image_size,
        "epochs": task.epochs,
        "precision": task.precision,
        "device": task.device,
    }
    return resolve(stage_config(TrainingConfig, chosen), temperature=family.temperature, drop_path=family.drop_path)


def open_student_pair(task: Task, num_classes: int) -> tuple[StudentPair, StudentSpec]:
    """S and S′ exactly as twinbud starts them, on the device, and their architecture."""
    selection, training = load_selection(task.selected), settings(task)
    assert training.drop_path != "auto"
    student_pair = build_student_pair(
        selection,
        image_size=task.image_size,
        num_classes=num_classes,
        drop_path=training.drop_path,
        seed=training.seed,
    )
    if task.method == "selection":
        student_pair = StudentPair(student=student_pair.student, auxiliary=None)
    for network in (student_pair.student, student_pair.auxiliary):
        if network is not None:
            network.to(task.device)
    return student_pair, selection.student_spec


class ImageFiles(Dataset[dict[str, torch.Tensor]]):
    """Image files decoded each time they are asked for, as tutorials do it.

    Args:
        task: Whose listing is read.
        split: ``train`` (augmented) or ``test`` (resized only).
        mean: Normalisation.
        std: Normalisation.
    """

    def __init__(self, task: Task, split: str, mean: Sequence[float], std: Sequence[float]) -> None:
        with task.listing.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.classes = sorted({row["label"] for row in rows})
        self.rows = [(row["image_path"], self.classes.index(row["label"])) for row in rows if row["split"] == split]
        side, training = task.image_size, settings(task)
        seen = [
            transforms.RandomResizedCrop(
                side, scale=(training.crop_scale, 1), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(training.flip),
        ]
        plain = [transforms.Resize((side, side), interpolation=transforms.InterpolationMode.BICUBIC)]
        self.transform = transforms.Compose(
            [*(seen if split == "train" else plain), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, label = self.rows[index]
        with Image.open(path) as image:
            image_store: Any = self.transform(image.convert("RGB"))
        return {"pixel_values": image_store, "labels": torch.tensor(label)}


class Recorder:
    """The clock and the memory of one run, from after everything is loaded."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.memory = PeakMemory(torch.device(task.device))
        self.ends = [time.perf_counter()]

    def epoch_ended(self) -> None:
        """Call once an epoch; waits for the device."""
        if self.task.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def trained(self) -> dict[str, Any]:
        """Call after the last epoch, before the test pass."""
        return {
            "epoch_seconds": [after - before for before, after in pairwise(self.ends)],
            "peak_mib": self.memory.mib,
            "before_mib": self.memory.before_mib,
        }
