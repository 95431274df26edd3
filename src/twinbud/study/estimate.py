"""Estimate the time of runs: their number of steps times the measured time of a step.

The time of a step comes from finished runs of the same shape. Without one, a few steps are timed on blank images with
random weights; then a step of recovery counts as a training step, although it takes longer. Fine-tuning that runs share
is counted once. Least squares takes no steps and is counted only if a finished run has its time. Nor does a probe: only
its test pass is counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from twinbud.config.schema import RunConfig, resolve
from twinbud.core.progress import Progress
from twinbud.models.families.base import TimmModel
from twinbud.models.initialization import describe_student
from twinbud.models.student_pair import StudentPair
from twinbud.models.student_spec import make_student_spec
from twinbud.models.teacher import read_teacher_info
from twinbud.runs.tuning import shared_tuning_config
from twinbud.study.grid import PlannedRun, checked_config
from twinbud.training.amp import choose_device, choose_precision, cpu_threads
from twinbud.training.execution import Execution
from twinbud.training.fit import LabelledImages, fit

_NUM_STEPS, _NUM_CLASSES = 6, 4
_TEST_SHARE = 1 / 3
"""Time of predicting an image, relative to training on it: one forward pass of a forward and two backward ones."""
_SHAPE = ("student", "distillation", "image_size", "batch_size", "precision")
"""Settings that decide the time of a step, besides the teacher, the threads, the auxiliary and the recovery."""


class Estimate:
    """Estimates the seconds of a run.

    Args:
        records: Records of finished runs, from any machine.
        tuned: Ids of the fine-tuning that is done; see ``SharedTuning``.
        progress: Reports when steps are timed.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], progress: Progress, tuned: Iterable[str] = ()) -> None:
        self.progress = progress
        self.tuned = set(tuned)
        self.recorded: dict[tuple[Any, ...], list[float]] = {}
        self.measured: dict[tuple[Any, ...], float] = {}
        self.least_squares: dict[tuple[Any, ...], list[float]] = {}
        for record in records:
            facts, cost, least_squares = record["facts"], record["cost"], 0.0
            if facts["settings"]["recover"] != "none" and not facts["settings"]["recover_epochs"]:
                least_squares = cost.get("recover_seconds", 0.0)
                self.least_squares.setdefault(_images_key(facts), []).append(least_squares)
            if not cost["num_steps"]:
                continue
            step_seconds = (cost["train_seconds"] - least_squares) / cost["num_steps"]
            self.recorded.setdefault(step_key(facts), []).append(step_seconds)

    def seconds(self, run: PlannedRun) -> float:
        """Estimate training and the test pass, without loading and reporting.

        Raises:
            TwinbudError: The student cannot be built.
        """
        step, tuning_step = self._step_seconds(run)
        least_squares = statistics.median(self.least_squares.get(_images_key(run.facts), [0.0]))
        num_steps = run.num_steps + _TEST_SHARE * run.num_test / run.facts["settings"]["batch_size"]
        if run.tuning is None:
            return least_squares + step * num_steps
        is_tuned = run.tuning.tuning_id in self.tuned
        self.tuned.add(run.tuning.tuning_id)
        num_tuning_steps = run.tuning.num_steps
        return least_squares + step * (num_steps - num_tuning_steps) + tuning_step * num_tuning_steps * (not is_tuned)

    def _step_seconds(self, run: PlannedRun) -> tuple[float, float]:
        """Return the seconds of a step of the run, and of its fine-tuning; records hold the mean of both."""
        key = step_key(run.facts)
        if key in self.recorded:
            mean = statistics.median(self.recorded[key])
            return mean, mean
        config = checked_config(run.settings)
        tuning = shared_tuning_config(config)
        if tuning is None:
            return self._measure(key, config), 0.0
        settings = run.facts["settings"]
        shape = [settings[name] for name in ("image_size", "batch_size", "precision")]
        seconds = self._measure((run.facts["teacher"], run.facts["threads"], *shape), tuning)
        return seconds if tuning == config else self._measure(key, config), seconds

    def _measure(self, key: tuple[Any, ...], config: RunConfig) -> float:
        if key not in self.measured:
            self.progress.note(f"timing {_NUM_STEPS} steps: {config.model.student}, {config.model.method}")
            self.measured[key] = measure_step(config)
        return self.measured[key]


def step_key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the facts of a run that decide the time and the memory of a step."""
    settings = facts["settings"]
    has_auxiliary = settings["method"] == "dual" and settings["auxiliary"] != "none"
    recovery = [(name, value) for name, value in sorted(settings.items()) if name.startswith("recover")]
    return (
        facts["teacher"],
        facts["threads"],
        has_auxiliary,
        tuple(recovery) if settings["recover"] != "none" else (),
        tuple(item for item in sorted(settings.items()) if item[0].startswith("tune")),
        *(settings[name] for name in _SHAPE),
    )


def _images_key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the facts that decide the time of least squares: those of a step, and the number of images."""
    settings = facts["settings"]
    return *step_key(facts), facts["images"], settings["fraction"], settings["develop"]


def measure_step(config: RunConfig) -> float:
    """Time a few training steps of the last phase.

    Returns:
        The median of the steps after the first, in seconds.
    """
    training, size = config.training, config.training.image_size
    student_spec = describe_student(config.model)
    device = choose_device(training.device)

    def student(seed: int) -> TimmModel:
        network = student_spec.build(image_size=size, num_classes=_NUM_CLASSES, seed=seed)
        return network.to(device, memory_format=student_spec.family.memory_format)

    has_two_phases = training.num_phases == 2
    has_auxiliary = config.auxiliary != "none" or has_two_phases
    data = LabelledImages(
        images_NCSS=torch.zeros((training.batch_size, 3, size, size), dtype=torch.uint8, device=device),
        labels_N=torch.arange(training.batch_size, device=device) % _NUM_CLASSES,
        preprocessing=student_spec.preprocessing(size),
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
        frozen=config.auxiliary == "frozen" or has_two_phases,
    )
    teacher = _random_teacher(config.model.teacher, size).to(device) if training.learns_from_teacher else None
    bf16 = choose_precision(training.precision, device).bf16 and family.gains_from_bf16(student_pair.student, device)
    with cpu_threads(training.threads):
        history = fit(student_pair, data, short, Execution(bf16=bf16), teacher=teacher)
    return statistics.median(record.seconds for record in history.epochs[1:])


def _random_teacher(name: str | None, image_size: int) -> TimmModel:
    """Return a frozen network of the teacher's shape, with random weights."""
    info = read_teacher_info(name or "")
    teacher_spec = make_student_spec(
        info.architecture, info.model_args, mean=info.mean, std=info.std, shapes=info.shapes
    )
    return teacher_spec.build(image_size=image_size, num_classes=_NUM_CLASSES).eval().requires_grad_(False)
