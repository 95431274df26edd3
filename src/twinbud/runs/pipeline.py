"""One run, every stage in order: images come in, a small classifier goes out, nothing walks back."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinbud.config.loading import settings_of, unread_words, with_absolute_paths
from twinbud.config.schema import RunConfig, resolve
from twinbud.core.environment import describe_environment
from twinbud.core.errors import explained_writes
from twinbud.core.files import write_json
from twinbud.core.memory import PeakMemory
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.duplicates import blank_digests
from twinbud.data.index import ImageIndex, write_left_out
from twinbud.data.split import check_split_file, make_split
from twinbud.data.split_file import write_split
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_probabilities
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.models.initialization import open_initialization
from twinbud.models.model_folder import save_model_folder
from twinbud.models.teacher import read_teacher_card
from twinbud.recovery.refit_batches import UnlabelledImages
from twinbud.recovery.result import RECOVERY_COST, Recovery
from twinbud.recovery.stage import recover
from twinbud.report.history import history_writer
from twinbud.report.model_card import write_model_card
from twinbud.report.page import RunSummary, write_report
from twinbud.runs.context import Job, list_images, open_images
from twinbud.runs.resource_cache import ResourceCache, initialization_key
from twinbud.runs.resume import open_checkpoint_manager, precision_so_far
from twinbud.runs.run_dir import (
    METRICS,
    RECOVERY_FILE,
    require_run_output,
    started_run,
    write_settings,
)
from twinbud.runs.summary import summarize
from twinbud.training.amp import choose_device, choose_precision, limited_threads
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import choose_compilation
from twinbud.training.epoch_loop import History, plan_steps
from twinbud.training.fit import LabelledImages, fit
from twinbud.training.two_phase import fit_in_two_phases


@dataclass(frozen=True, kw_only=True)
class Run:
    """What ``train`` made, in memory and in ``folder``."""

    folder: Path
    metrics: dict[str, Any]
    predictions: Predictions
    history: History
    summary: RunSummary


def train(config: RunConfig, progress: Progress | None = None, *, resource_cache: ResourceCache | None = None) -> Run:
    """Grow a small classifier from a large pretrained model and measure it on images it never saw.

    Args:
        config: The whole run; see ``twinbud.config.schema``.
        progress: Where to report; silent by default.
        resource_cache: What earlier runs of this process have opened; nothing by default.

    Returns:
        Metrics on the test part after the last epoch, and where everything was written.

    Raises:
        TwinbudError: Anything the caller can put right, before the run folder is made where that is possible.
        Stopped: The system asked for a stop during training; ``config.resume`` goes on from there.
    """
    progress = progress or SilentProgress()
    require_run_output(config.output, force=config.force, resume=config.resume)
    for text in unread_words(config):
        progress.note(text)
    with limited_threads(config.training.threads):
        job = prepare(config, progress, resource_cache or ResourceCache())
        checkpoints = open_checkpoint_manager(job, progress)  # before any write: a refused resume changes nothing
        with started_run(config.output, force=config.force, resume=config.resume) as folder:
            environment = save_inputs(job, folder)
            with checkpoints.stop_on_signal():
                recovered = recover_students(job, folder, checkpoints, progress)
                memory = PeakMemory(job.device)
                history = train_student(job, folder, checkpoints, progress)
            metrics = cost_of(history, recovered, memory, num_train=len(job.split.labelled))
            run = evaluate_student(job, folder, history, metrics, environment)
            save_outputs(job, run)
    return run


def prepare(config: RunConfig, progress: Progress, resource_cache: ResourceCache) -> Job:
    """Read and split the images, open the teacher, build student and auxiliary; cheap checks come first."""
    device = choose_device(config.training.device)
    listed = list_images(config, resource_cache)
    check_split_file(listed, config.data)
    teacher = read_teacher_card(config.model.teacher or "") if config.recovery.recover != "none" else None
    initialization = resource_cache.once(
        "initialization", initialization_key(config), lambda: open_initialization(config)
    )
    image_index, image_store = open_images(config, progress, resource_cache)
    split = make_split(
        image_index,
        image_store.digests,
        config.data,
        seed=config.training.seed,
        blank=blank_digests(image_store),
    )
    gc.collect()  # the networks of an earlier run hang in cycles, and would count as memory of this one
    family = initialization.student_spec.family
    training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
    return Job(
        config=replace(config, model=initialization.model, training=training),
        image_index=image_index,
        image_store=image_store,
        split=split,
        initialization=initialization,
        teacher=teacher,
        student_pair=initialization.build(training, num_classes=len(image_index.classes), device=device),
        device=device,
        precision=choose_precision(training.precision, device, so_far=precision_so_far(config)),
        compilation=choose_compilation(training.compile, device, plan_steps(training, len(split.labelled)).num_steps),
    )


def save_inputs(job: Job, folder: Path) -> dict[str, Any]:
    """Write what the run starts from: settings, split, plan and environment; returns the last."""
    write_settings(folder, settings_of(with_absolute_paths(job.config)))
    write_split(folder / "split.csv", job.split.rows(job.image_index, job.image_store.digests))
    if job.image_index.ignored:
        write_left_out(folder / "left_out.csv", job.image_index)
    if job.initialization.selection is not None:
        write_json(folder / "plan.json", job.initialization.selection.plan.to_json())
    environment = describe_environment(job.device) | {
        "precision": job.precision.name,
        "precision_reason": job.precision.reason,
        "compilation": job.compilation.name,
        "compilation_reason": job.compilation.reason,
        "seeds": {"seed": job.config.training.seed, "split_seed": job.config.data.split_seed},
    }
    write_json(folder / "environment.json", environment)
    return environment


def recover_students(job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress) -> Recovery | None:
    """Recover S and S′ from the teacher, if that is asked for; no test image is seen."""
    recovery, split, student_spec = job.config.recovery, job.split, job.initialization.student_spec
    if recovery.recover == "none":
        return None
    assert job.initialization.selection is not None
    assert job.teacher is not None
    rows = split.seen_by(recovery.recover)
    found = recover(
        job.student_pair,
        job.initialization.selection,
        job.teacher,
        UnlabelledImages(
            images_NCSS=job.image_store.rows(rows).fitting(job.device),
            mean=student_spec.mean,
            std=student_spec.std,
            device=job.device,
        ),
        recovery,
        job.config.training,
        bf16=job.precision.bf16,
        checkpoints=checkpoints,
        progress=progress,
    )
    write_json(folder / RECOVERY_FILE, found.to_json())
    gc.collect()  # the teacher, before training begins
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def train_student(job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress) -> History:
    """Train S on the labelled images, from the last checkpoint if the run is resumed."""
    student_spec = job.initialization.student_spec
    data = LabelledImages(
        images_NCSS=job.image_store.rows(job.split.labelled).fitting(job.device),
        labels_N=class_indices(job.image_index, job.split.labelled).to(job.device),
        mean=student_spec.mean,
        std=student_spec.std,
    )
    progress.note(f"compilation: {job.compilation.name} ({job.compilation.reason})")
    train_student = fit_in_two_phases if job.config.training.num_phases == 2 else fit
    with history_writer(folder, checkpoints.records) as record:
        return train_student(
            job.student_pair,
            data,
            job.config.training,
            bf16=job.precision.bf16,
            compilation=job.compilation,
            on_epoch=record,
            test_accuracy=lambda: accuracy_of(predict_rows(job, job.split.test)),
            checkpoints=checkpoints,
            progress=progress,
            label=f"training {job.config.model.method}",
        )


def evaluate_student(
    job: Job, folder: Path, history: History, metrics: dict[str, Any], environment: dict[str, Any]
) -> Run:
    """Predict the test part once, after the last epoch, and gather all that the report shows."""
    predictions = predict_rows(job, job.split.test)
    metrics = evaluate(predictions, seed=job.config.training.seed) | metrics
    if job.split.val:
        metrics["val"] = evaluate(predict_rows(job, job.split.val), seed=job.config.training.seed)
    summary = summarize(job, history, predictions, metrics, environment)
    return Run(folder=folder, metrics=metrics, predictions=predictions, history=history, summary=summary)


def save_outputs(job: Job, run: Run) -> None:
    """Write predictions, report and metrics, and the model folder: S alone, and its card."""
    model = run.folder / "model"
    with explained_writes(model):
        model.mkdir()
    write_predictions(run.folder / "predictions.csv", run.predictions)
    save_model_folder(
        model,
        job.student_pair.student,
        job.initialization.student_spec,
        image_size=job.config.training.image_size,
        classes=job.image_index.classes,
    )
    write_model_card(model / "README.md", run.summary)
    write_report(run.folder / "report.html", run.summary)
    write_json(run.folder / METRICS, run.metrics)


def class_indices(image_index: ImageIndex, rows: tuple[int, ...]) -> torch.Tensor:
    """(N,) int64 class indices of some rows."""
    return torch.tensor([image_index.classes.index(image_index.rows[row].label) for row in rows], dtype=torch.int64)


def predict_rows(job: Job, rows: tuple[int, ...]) -> Predictions:
    """What S says about some rows of the catalog."""
    image_index, student_spec = job.image_index, job.initialization.student_spec
    return Predictions(
        paths=tuple(image_index.rows[row].path for row in rows),
        labels=class_indices(image_index, rows).numpy(),
        probabilities=predict_probabilities(
            job.student_pair.student, job.image_store.rows(rows), mean=student_spec.mean, std=student_spec.std
        ),
        classes=image_index.classes,
        patient_ids=tuple(image_index.rows[row].patient_id for row in rows) if image_index.has_patients else None,
    )


def accuracy_of(predictions: Predictions) -> float:
    """Share of images classified rightly."""
    assert predictions.labels is not None
    return float((predictions.predicted == predictions.labels).mean())


def cost_of(history: History, recovery: Recovery | None, memory: PeakMemory, *, num_train: int) -> dict[str, Any]:
    """What training took, recovery counted in, and the best of the test passes if any were asked for."""
    tested = [record for record in history.epochs if record.test_accuracy is not None]
    best = max(tested, key=lambda record: record.test_accuracy or 0.0, default=None)
    num_steps, num_images, seconds = history.num_steps, history.num_images, history.train_seconds
    cost: dict[str, Any] = {}
    if recovery is not None:
        num_steps, num_images = num_steps + recovery.num_steps, num_images + recovery.num_passes
        seconds += recovery.seconds
        cost = {f"recover_{name}": getattr(recovery, name) for name in RECOVERY_COST}
    return cost | {
        "num_train": num_train,
        "num_steps": num_steps,
        "num_passes": num_images,
        "epochs": len(history.epochs),
        "train_seconds": seconds,
        "images_per_second": history.num_images / history.train_seconds,
        "peak_memory_mib": max(memory.mib, recovery.peak_memory_mib if recovery else 0.0),
        "memory_before_training_mib": memory.before_mib,
        "best_test_epoch": best.epoch if best else None,
        "best_test_accuracy": best.test_accuracy if best else None,
    }
