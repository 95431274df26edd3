"""One run, stage by stage: from images and a teacher to a small, evaluated classifier in a run folder."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from twinbud.config.effects import setting_notes
from twinbud.config.loading import settings_of, with_absolute_paths
from twinbud.config.schema import RunConfig, resolve
from twinbud.core.environment import describe_environment
from twinbud.core.errors import explained_writes
from twinbud.core.files import write_json
from twinbud.core.memory import PeakMemory
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.index import write_left_out
from twinbud.data.split import check_split_file
from twinbud.data.split_file import write_split
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.models.initialization import open_initialization
from twinbud.models.model_folder import save_model_folder
from twinbud.models.teacher import TeacherInfo, read_teacher_info
from twinbud.models.teacher_classifier import require_classes
from twinbud.recovery.result import Recovery
from twinbud.recovery.stage import recover
from twinbud.recovery.teacher_provider import require_comparable
from twinbud.report.history import history_writer
from twinbud.runs.context import (
    Job,
    list_images,
    open_images,
    open_near_pairs,
    predict_rows,
    save_seen_images,
    split_images,
    with_decisions,
)
from twinbud.runs.cost import cost_of
from twinbud.runs.fitting import announce_job, fit_job
from twinbud.runs.leak import check_measurable, train_naive
from twinbud.runs.network_cost import measure_network
from twinbud.runs.probe import probe, start_from_probe
from twinbud.runs.report import save_report
from twinbud.runs.resource_cache import ResourceCache, initialization_key
from twinbud.runs.result import RunCost, RunMetrics, RunResult
from twinbud.runs.resume import open_checkpoint_manager, open_tuning_checkpoints, previous_precision
from twinbud.runs.run_dir import METRICS, NAIVE, RECOVERY_FILE, TEACHER, require_run_output, started_run, write_settings
from twinbud.runs.summary import summarize
from twinbud.runs.tuning import TunedTeacher, is_shared_tuning, tune_teacher, tuning_config
from twinbud.tasks.opening import open_task, require_supported
from twinbud.training.amp import SLOWER_IN_BF16, choose_device, choose_precision, cpu_threads
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.compile import choose_compilation
from twinbud.training.epoch_loop import History, plan_steps
from twinbud.training.execution import Execution
from twinbud.training.processes import Processes
from twinbud.training.unlabelled import UnlabelledImages


def train(
    config: RunConfig,
    progress: Progress | None = None,
    *,
    resource_cache: ResourceCache | None = None,
    processes: Processes | None = None,
) -> RunResult:
    """Train a small classifier with weights from a large pretrained model, and evaluate it on held-out images.

    Args:
        config: All settings of the run; see ``twinbud.config.schema``.
        progress: Receives progress and notes; silent by default.
        resource_cache: Images and teachers opened by earlier runs of this process; empty by default.
        processes: Those that train together, of which this is the first (``runs.divided``); None: this one is alone.

    Returns:
        Metrics of the test part after the last epoch, and the run folder.

    Raises:
        TwinbudError: A problem that the caller can solve; found before the run folder is made where possible.
        Stopped: The process received a signal to stop during training; ``config.resume`` continues the run.
    """
    progress, resource_cache = progress or SilentProgress(), resource_cache or ResourceCache()
    require_run_output(config.output, force=config.force, resume=config.resume)
    for text in setting_notes(config):
        progress.note(text)
    with cpu_threads(config.training.threads):
        job, checkpoints = open_first_stage(config, progress, resource_cache, processes)
        repeatedly = processes is not None
        keep = [NAIVE] if config.measure_leak else ()
        with started_run(config.output, force=config.force, resume=config.resume, keep=keep) as folder:
            naive = train_naive(config, job, partial(train, progress=progress, resource_cache=resource_cache))
            tuned = None
            if config.tuning.tune_teacher:
                with checkpoints.stop_on_signal(repeatedly=repeatedly):
                    tuned = tune_teacher(job, folder / TEACHER, checkpoints, progress)
                job = prepare(config, progress, resource_cache, tuned.info, processes)
                announce_job(job, tuned.info)
                checkpoints = open_checkpoint_manager(job, progress)
            environment = save_inputs(job, folder)
            with checkpoints.stop_on_signal(repeatedly=repeatedly):
                recovery = recover_students(job, folder, checkpoints, progress)
                memory = PeakMemory(job.device)
                history = train_student(job, folder, checkpoints, progress, tuned)
            cost = cost_of(history, memory, num_train=len(job.split.labelled), recovery=recovery, tuned=tuned)
            job = with_decisions(job)
            predictions, metrics = evaluate_student(job, history, cost)
            metrics = naive.beside(metrics) if naive else metrics
            save_outputs(job, folder, predictions, metrics)
            shown = tuned.history if tuned and not history.epochs else history
            summary = summarize(job, shown, predictions, metrics, environment)
            unwritten = save_report(folder, summary)
    for text in unwritten:
        progress.note(text)
    return RunResult(
        folder=config.output,
        metrics=metrics,
        predictions=predictions,
        history=history,
        summary=summary,
        unwritten=unwritten,
    )


def open_first_stage(
    config: RunConfig, progress: Progress, resource_cache: ResourceCache, processes: Processes | None = None
) -> tuple[Job, CheckpointManager]:
    """Prepare the run, or the fine-tuning of its teacher, before anything is written; a refused run changes nothing."""
    if not config.tuning.tune_teacher:
        job = prepare(config, progress, resource_cache, processes=processes)
        check_measurable(job)
        announce_job(job)
        return job, open_checkpoint_manager(job, progress)
    student_spec = open_initialization(config).student_spec  # one that would not fit is refused before the fine-tuning
    if config.recovery.recover != "none":
        require_comparable(student_spec, read_teacher_info(config.model.teacher or ""), config.training.image_size)
    job = prepare(tuning_config(config), progress, resource_cache, processes=processes)
    check_measurable(job)
    announce_job(job)
    return job, open_tuning_checkpoints(job, progress)


def prepare(
    config: RunConfig,
    progress: Progress,
    resource_cache: ResourceCache,
    tuned_teacher: TeacherInfo | None = None,
    processes: Processes | None = None,
) -> Job:
    """Read and split the images, open the teacher, and build student and auxiliary; quick checks come first.

    Args:
        config: The settings.
        progress: Shows the decoding of images.
        resource_cache: Images and initial weights of earlier runs.
        tuned_teacher: Takes the place of ``config.model.teacher``.
        processes: See ``Job``.
    """
    device = choose_device(config.training.device)
    listed = list_images(config, progress, resource_cache)
    check_split_file(listed, config.data)
    require_supported(open_task(listed.task, listed.classes), config.training)
    teacher = tuned_teacher
    if teacher is None and config.teacher_use is not None:
        teacher = read_teacher_info(config.model.teacher or "")
    initialization = resource_cache.get_or_create(
        "initialization",
        initialization_key(config, tuned_teacher),
        lambda: open_initialization(config, tuned_teacher),
    )
    image_index, image_store = open_images(config, progress, resource_cache)
    task = open_task(image_index.task, image_index.classes)
    if teacher is not None and config.training.learns_from_teacher:
        require_classes(teacher, task)
    if teacher is not None and config.recovery.reads_logits:
        off = "--recover-classifier off" if config.recovery.recovers_classifier else "--recover-metric variance"
        require_classes(teacher, task, off=off)
    near_pairs = open_near_pairs(config, image_index, image_store.digests, progress, resource_cache)
    to_warn = None if tuned_teacher else progress
    split = split_images(config, image_index, image_store, near_pairs=near_pairs, progress=to_warn)
    gc.collect()  # reference cycles keep the networks of an earlier run, which would count as memory of this one
    family = initialization.student_spec.family
    training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
    compilation = choose_compilation(training.compile, device, plan_steps(training, len(split.labelled)).num_steps)
    return Job(
        config=replace(config, model=initialization.model, training=training),
        image_index=image_index,
        image_store=image_store,
        split=split,
        task=task,
        initialization=initialization,
        teacher=teacher,
        student_pair=initialization.build(training, num_classes=task.num_outputs, device=device),
        device=device,
        precision=choose_precision(training.precision, device, previous=previous_precision(config)),
        compilation=compilation if processes is None else compilation.without_graphs("several processes"),
        processes=processes,
    )


def save_inputs(job: Job, folder: Path) -> dict[str, Any]:
    """Write settings, split, selection plan and environment; return the environment."""
    write_settings(folder, settings_of(with_absolute_paths(job.config)))
    write_split(folder / "split.csv", job.split.rows(job.image_index, job.image_store.digests))
    if job.image_index.ignored:
        write_left_out(folder / "left_out.csv", job.image_index.ignored)
    save_seen_images(folder, job.config)
    if job.initialization.selection is not None:
        write_json(folder / "plan.json", job.initialization.selection.plan.to_json())
    environment = describe_environment(job.device) | {
        "precision": "bf16" if job.bf16 else "float32",
        "precision_reason": job.precision.reason if job.bf16 == job.precision.bf16 else SLOWER_IN_BF16,
        "compilation": job.compilation.name,
        "compilation_reason": job.compilation.reason,
        **({"processes": job.processes.count} if job.processes else {}),
        "seeds": {"seed": job.config.training.seed, "split_seed": job.config.data.split_seed},
    }
    write_json(folder / "environment.json", environment)
    return environment


def recover_students(job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress) -> Recovery | None:
    """Recover student and auxiliary from the teacher if requested, without any test image."""
    recovery, split, student_spec = job.config.recovery, job.split, job.initialization.student_spec
    if recovery.recover == "none":
        return None
    assert job.initialization.selection is not None
    assert job.teacher is not None
    rows = split.seen_by(recovery.recover)
    recovered = recover(
        job.student_pair,
        job.initialization.selection,
        job.teacher,
        UnlabelledImages(
            images_NCSS=job.image_store.rows(rows).fitting(job.device),
            preprocessing=student_spec.preprocessing(job.config.training.image_size),
            device=job.device,
        ),
        recovery,
        job.config.training,
        task=job.task,
        bf16=job.bf16,
        checkpoints=checkpoints,
        progress=progress,
    )
    write_json(folder / RECOVERY_FILE, recovered.to_json())
    gc.collect()  # releases the teacher before training starts
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    return recovered


def train_student(
    job: Job, folder: Path, checkpoints: CheckpointManager, progress: Progress, tuned: TunedTeacher | None = None
) -> History:
    """Train the student on the labelled images, from the last checkpoint if the run is resumed.

    Without epochs, ``history.csv`` holds those of the teacher's fine-tuning.
    """
    if job.config.model.method == "probe":
        with history_writer(folder):  # without epochs
            return probe(job, job.student_pair.student, checkpoints, progress)
    if not job.config.training.epochs:
        with history_writer(folder, tuned.history.epochs if tuned else ()):
            return History()
    if is_shared_tuning(job.config):
        tuned = tune_teacher(job, folder / TEACHER, checkpoints, progress)
        job.student_pair.student.load_state_dict(tuned.info.weights())
        with history_writer(folder, tuned.history.epochs):
            return tuned.history
    start = start_from_probe(job, checkpoints, progress)
    progress.note(f"compilation: {job.compilation.name} ({job.compilation.reason})")
    with history_writer(folder, checkpoints.records) as record:
        history = fit_job(
            job,
            Execution(
                checkpoints=checkpoints,
                progress=progress,
                label=f"training {job.config.model.method}",
                on_epoch=record,
                test_accuracy=lambda: predict_rows(job, job.split.test).accuracy,
            ),
        )
    return history.after(start)


def evaluate_student(job: Job, history: History, cost: RunCost) -> tuple[Predictions, RunMetrics]:
    """Predict the test part once, after the last epoch, and evaluate it; the validation part as well, if any."""
    evaluated = partial(evaluate, seed=job.config.training.seed, aggregate=job.config.data.aggregate)
    predictions = predict_rows(job, job.split.test)
    best = history.best_test_pass
    network_cost = measure_network(job.student_pair.student, job.config.training.image_size)
    metrics = RunMetrics(
        **vars(evaluated(predictions)),
        **vars(replace(cost, **vars(network_cost))),
        best_test_epoch=best.epoch if best else None,
        best_test_accuracy=best.test_accuracy if best else None,
        val=evaluated(predict_rows(job, job.split.val)) if job.split.val else None,
    )
    return predictions, metrics


def save_outputs(job: Job, folder: Path, predictions: Predictions, metrics: RunMetrics) -> None:
    """Write predictions, model and metrics; without any of these, the run has failed."""
    model = folder / "model"
    with explained_writes(model):
        model.mkdir()
    write_predictions(folder / "predictions.csv", predictions, logits=job.config.logits)
    save_model_folder(
        model,
        job.student_pair.student,
        job.initialization.student_spec,
        image_size=job.config.training.image_size,
        classes=job.image_index.classes,
        reading=job.config.data.reading,
        task=job.task,
    )
    write_json(folder / METRICS, metrics.to_json())
