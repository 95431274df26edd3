"""Levers that were tried between recovery and the finished network, and are no part of twinbud.

    python benchmarks/levers.py --data DATA/brain-mri --lever head --lever average [--samplings 5] [SETTING=VALUE ...]

Trained on the labelled share of four fifths of the training part, measured on its last fifth; the test part stays
closed. Without a lever: what `twinbud train --develop` does. SETTING=VALUE are settings of `twinbud train`; they begin
as those of profile best. Two to five minutes a sampling on one core. EXPERIMENTS.md has what came out.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from twinbud.config.loading import run_config
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import SilentProgress
from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.models.student_pair import StudentPair
from twinbud.models.teacher import open_teacher_at
from twinbud.runs.context import Job, predict_rows
from twinbud.runs.pipeline import prepare, recover_students, train_student
from twinbud.runs.probe import probe
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.resume import open_checkpoint_manager
from twinbud.training.amp import cpu_threads
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.ema import ema_update
from twinbud.training.epoch_loop import plan_steps
from twinbud.training.optimizer import Optimizer

SETTINGS: dict[str, Any] = {
    "teacher": "dinov2-small",
    "profile": "best",
    "near_duplicates": "ignore",
    "fraction": 0.05,
    "precision": "bf16",
    "threads": 1,
    "develop": True,
}
LEVERS = {
    "head": "begin with a classifier of logistic regression on S's features",
    "still": "hold all but the classifier still for the first fifth of the steps (AdamW's moments go on)",
    "probe": "soft targets from the teacher under such a classifier, as eq. 5 weighs those of S′",
    "average": "predict with a slow average of S",
    "linear": "such a classifier on S as it was recovered, and no training",
    "teacher": "such a classifier on the whole teacher, and no student",
}
_AVERAGE = 0.98
_BOOLEANS = {"true": True, "false": False}


def main() -> None:
    """Measure and print a Markdown table."""
    words = "\n".join(f"  {name:8} {text}" for name, text in LEVERS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nLevers:\n{words}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--samplings", type=int, default=5)
    parser.add_argument("--lever", action="append", choices=LEVERS, default=[])
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    options = parser.parse_args()
    if len(options.lever) > 1 and {"linear", "teacher"} & set(options.lever):
        parser.error("linear and teacher train nothing, and go with no other lever")
    if wrong := [word for word in options.settings if "=" not in word]:
        parser.error(f"expected SETTING=VALUE, got {wrong[0]}")
    words = (word.split("=", 1) for word in options.settings)
    given = SETTINGS | {"data": options.data} | {name: _BOOLEANS.get(value, value) for name, value in words}
    try:
        report(given, options.lever, options.samplings)
    except TwinbudError as error:
        raise SystemExit(f"levers: {error}") from error


def report(given: dict[str, Any], levers: Sequence[str], num_samplings: int) -> None:
    """Measure a few samplings and print a row each.

    Raises:
        TwinbudError: Settings or images that `twinbud train` refuses, too.
    """
    resource_cache = ResourceCache()
    print("| levers | sampling | accuracy | macro AUROC |\n|---|---|---|---|")
    for sampling in range(num_samplings):
        with tempfile.TemporaryDirectory() as folder:
            config = run_config(given | {"seed": sampling}, output=Path(folder))
            with cpu_threads(config.training.threads):
                metrics = attempt(prepare(config, SilentProgress(), resource_cache), Path(folder), levers)
        figures = f"{metrics.accuracy:.4f} | {metrics.auroc_macro:.4f}"
        print(f"| {'+'.join(levers) or 'none'} | {sampling} | {figures} |", flush=True)


def attempt(job: Job, folder: Path, levers: Sequence[str]) -> EvaluationMetrics:
    """One run."""
    checkpoints, student = open_checkpoint_manager(job, SilentProgress()), job.student_pair.student
    if "teacher" in levers:
        job = replace(job, student_pair=StudentPair(student=probed(job, teacher_of(job)), auxiliary=None))
        return measured(job)
    recover_students(job, folder, checkpoints, SilentProgress())
    if "linear" in levers or "head" in levers:
        probed(job, student)
    if "linear" in levers:
        return measured(job)
    if "probe" in levers:
        guide = probed(job, teacher_of(job)).eval().requires_grad_(False)
        job = replace(job, student_pair=StudentPair(student=student, auxiliary=guide, frozen=True))
    average = copy.deepcopy(student).requires_grad_(False) if "average" in levers else None
    num_steps = plan_steps(job.config.training, len(job.split.labelled)).num_steps
    with watched(student, average=average, still_for=num_steps // 5 if "still" in levers else 0):
        train_student(job, folder, checkpoints, SilentProgress())
    if average is not None:
        student.load_state_dict(average.state_dict())
    return measured(job)


def measured(job: Job) -> EvaluationMetrics:
    """Metrics of S on the images that were held out."""
    return evaluate(predict_rows(job, job.split.test), seed=job.config.training.seed)


@contextmanager
def watched(student: Any, *, average: Any | None, still_for: int) -> Iterator[None]:
    """While this lasts, an average follows the student, and at first its body is held still under its classifier."""
    step = Optimizer.step
    head = {id(parameter) for parameter in student.get_classifier().parameters()}

    def observed(optimizer: Optimizer, loss: torch.Tensor) -> torch.Tensor | None:
        num_steps = optimizer.num_steps
        body = [parameter for parameter in student.parameters() if id(parameter) not in head]
        before = [parameter.clone() for parameter in body] if num_steps < still_for else None
        sound = step(optimizer, loss)
        with torch.no_grad():
            if before is not None:
                torch._foreach_copy_(body, before)  # pyright: ignore[reportPrivateImportUsage]
            if average is not None:
                ema_update(average, student, min(_AVERAGE, (1 + num_steps) / (10 + num_steps)))
        return sound

    with patch.object(Optimizer, "step", observed):
        yield


def teacher_of(job: Job) -> Any:
    """The whole teacher."""
    if job.teacher is None:
        raise SystemExit("expected a recovery, whose teacher this lever looks at, got recover=none")
    return open_teacher_at(job.teacher, job.initialization.student_spec.family, job.config.training.image_size).to(
        job.device
    )


def probed(job: Job, network: Any) -> Any:
    """The network with a classifier of logistic regression on eight views of the labelled images."""
    network.reset_classifier(len(job.image_index.classes))
    network.to(job.device)
    probe(job, network, CheckpointManager(), SilentProgress())
    return network


if __name__ == "__main__":
    main()
