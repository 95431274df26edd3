"""How long runs will take: their steps, times what a step was measured to take on this machine.

A finished run of the same shape tells it; where there is none, a few steps are taken on blank images, with random
weights, since time does not depend on what the numbers are. A step of recovery then counts as one of training, though
the teacher's pass makes it longer; and least squares, which take no steps, count only where a record tells of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from twinbud.config.schema import RunConfig, resolve
from twinbud.core.progress import Progress
from twinbud.models.student_pair import StudentPair, build_baseline
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_card
from twinbud.study.grid import PlannedRun, checked_config
from twinbud.training.amp import choose_device, choose_precision, limited_threads
from twinbud.training.fit import LabelledImages, fit

_NUM_STEPS = 6
_TEST_SHARE = 1 / 3
"""What predicting an image takes of what training on it takes: a forward pass of the forward and two backward ones."""
_SHAPE = ("teacher", "student", "distillation", "image_size", "batch_size", "threads", "precision")
"""The settings that decide how long a step takes, besides whether there is an S′."""


class Estimate:
    """Seconds a run, from records where possible.

    Args:
        records: Finished runs, made on whatever machine.
        progress: Where to say that steps are being measured.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], progress: Progress) -> None:
        self.progress = progress
        self.measured: dict[tuple[Any, ...], list[float]] = {}
        self.least_squares: dict[tuple[Any, ...], list[float]] = {}
        for record in records:
            cost = record["cost"]
            config = checked_config({**record["settings"], "data": "phantom"})
            key, beside = _shape(config), 0.0
            if config.recovery.recover != "none" and not config.recovery.recover_epochs:
                beside = cost.get("recover_seconds", 0.0)
                self.least_squares.setdefault((*key, *_images(record["facts"], config)), []).append(beside)
            self.measured.setdefault(key, []).append((cost["train_seconds"] - beside) / max(1, cost["num_steps"]))

    def seconds(self, run: PlannedRun) -> float:
        """Training and the test pass; opening and reporting are left out.

        Raises:
            TwinbudError: The run's student cannot be built.
        """
        config = checked_config(run.settings)
        key = _shape(config)
        if key not in self.measured:
            self.progress.note(f"measuring {_NUM_STEPS} steps: {run.settings['student']}, {config.model.method}")
            self.measured[key] = [measure_step(config)]
        step = statistics.median(self.measured[key])
        beside = statistics.median(self.least_squares.get((*key, *_images(run.facts, config)), [0.0]))
        return beside + step * (run.num_steps + _TEST_SHARE * run.num_test / config.training.batch_size)


def measure_step(config: RunConfig) -> float:
    """Median seconds of a training step after the first; of the second phase, where there are two."""
    training = config.training
    student_spec = read_student_spec(read_teacher_card(config.model.teacher or ""), config.model.student)
    device = choose_device(training.device)

    def student(seed: int) -> Any:
        student_pair = build_baseline(student_spec, "timm", image_size=training.image_size, num_classes=4, seed=seed)
        return student_pair.student.to(device)

    is_trained_beforehand = training.num_phases == 2
    has_auxiliary = config.auxiliary != "none" or is_trained_beforehand
    size = training.image_size
    data = LabelledImages(
        images_NCSS=torch.zeros((training.batch_size, 3, size, size), dtype=torch.uint8, device=device),
        labels_N=torch.arange(training.batch_size, device=device) % 4,
        mean=student_spec.mean,
        std=student_spec.std,
    )
    family = student_spec.family
    short = resolve(
        replace(training, epochs=_NUM_STEPS, min_steps=0, evaluate_every=None),
        temperature=family.temperature,
        drop_path=family.drop_path,
    )
    student_pair = StudentPair(
        student=student(0),
        auxiliary=student(1).eval().requires_grad_(False) if has_auxiliary else None,
        frozen=config.auxiliary == "frozen" or is_trained_beforehand,
    )
    with limited_threads(training.threads):
        history = fit(student_pair, data, short, bf16=choose_precision(training.precision, device).bf16)
    return statistics.median(record.seconds for record in history.epochs[1:])


def _images(facts: Mapping[str, Any], config: RunConfig) -> tuple[Any, ...]:
    """What decides how many images a run learns from."""
    return facts["images"], config.data.fraction, config.data.develop


def _shape(config: RunConfig) -> tuple[Any, ...]:
    values = {**vars(config.model), **vars(config.training)}
    recovery = config.recovery if config.recovery.recover != "none" else None
    return config.auxiliary == "none", recovery, *(values[name] for name in _SHAPE)
