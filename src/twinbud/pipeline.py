"""One run, every stage in order: images come in, a small classifier goes out, nothing walks back."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinbud.cache import cache_folder
from twinbud.config import RunConfig, resolve
from twinbud.data.catalog import read_catalog
from twinbud.data.pixel_cache import PixelCache
from twinbud.data.pixels import Pixels, load_pixels
from twinbud.data.rows import Catalog, write_left_out
from twinbud.data.split import Split, check_split_file, make_split, write_split
from twinbud.environment import describe_environment
from twinbud.errors import explained_writes
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_probabilities
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.materials import Materials, images_key, origin_key, source_key
from twinbud.memory import PeakMemory
from twinbud.models.bundle import save_bundle
from twinbud.models.origin import Origin, open_origin
from twinbud.models.teacher import TeacherCard, read_teacher_card
from twinbud.models.twins import Twins
from twinbud.phases import open_keeper, precision_so_far
from twinbud.progress import Progress, SilentProgress
from twinbud.recovery.looks import UnlabelledImages
from twinbud.recovery.outcome import RECOVERY_COST, Recovery
from twinbud.recovery.stage import recover
from twinbud.report.history import history_writer
from twinbud.report.model_card import write_model_card
from twinbud.report.page import RunSummary, write_report
from twinbud.report.summary import summarise
from twinbud.run_folder import (
    METRICS,
    RECOVERY_FILE,
    require_run_output,
    started_run,
    write_json,
    write_settings,
)
from twinbud.settings import settings_of, unread_words, with_absolute_paths
from twinbud.training.beforehand import fit_in_two_phases
from twinbud.training.compilation import Compilation, choose_compilation
from twinbud.training.epochs import History, plan_steps
from twinbud.training.keeper import Keeper
from twinbud.training.loop import LabelledImages, fit
from twinbud.training.precision import PrecisionChoice, choose_device, choose_precision, limited_threads


@dataclass(frozen=True, kw_only=True)
class Run:
    """What ``train`` made, in memory and in ``folder``."""

    folder: Path
    metrics: dict[str, Any]
    predictions: Predictions
    history: History
    summary: RunSummary


def train(config: RunConfig, progress: Progress | None = None, *, materials: Materials | None = None) -> Run:
    """Grow a small classifier from a large pretrained model and measure it on images it never saw.

    Args:
        config: The whole run; see ``twinbud.config``.
        progress: Where to report; silent by default.
        materials: What earlier runs of this process have opened; nothing by default.

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
        job = prepare(config, progress, materials or Materials())
        keeper = open_keeper(job, progress)  # before anything is written: a refused resume leaves the run as it is
        with started_run(config.output, force=config.force, resume=config.resume) as folder:
            environment = describe(job, folder)
            with keeper.listening():
                recovered = regain(job, folder, keeper, progress)
                memory = PeakMemory(job.device)
                history = learn(job, folder, keeper, progress)
            metrics = cost_of(history, recovered, memory, num_train=len(job.split.labelled))
            run = measure(job, folder, history, metrics, environment)
            deliver(job, run)
    return run


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is known before the first step: resolved settings, images, their division, and the twins."""

    config: RunConfig
    catalog: Catalog
    pixels: Pixels
    split: Split
    origin: Origin
    teacher: TeacherCard | None
    """To recover from, if that is asked for."""
    twins: Twins
    device: torch.device
    precision: PrecisionChoice
    compilation: Compilation


def prepare(config: RunConfig, progress: Progress, materials: Materials) -> Job:
    """Read and divide the images, open the teacher, build the twins; cheap mistakes are found first."""
    device = choose_device(config.training.device)
    listed = list_images(config, materials)
    check_split_file(listed, config.data)
    teacher = read_teacher_card(config.model.teacher or "") if config.recovery.recover != "none" else None
    origin = materials.once("origin", origin_key(config), lambda: open_origin(config))
    catalog, pixels = open_images(config, progress, materials)
    split = make_split(catalog, pixels.digests, config.data, seed=config.training.seed)
    gc.collect()  # the networks of an earlier run hang in cycles, and would count as memory of this one
    family = origin.design.family
    training = resolve(config.training, temperature=family.temperature, drop_path=family.drop_path)
    return Job(
        config=replace(config, model=origin.model, training=training),
        catalog=catalog,
        pixels=pixels,
        split=split,
        origin=origin,
        teacher=teacher,
        twins=origin.build(training, num_classes=len(catalog.classes), device=device),
        device=device,
        precision=choose_precision(training.precision, device, so_far=precision_so_far(config)),
        compilation=choose_compilation(training.compile, device, plan_steps(training, len(split.labelled)).num_steps),
    )


def list_images(config: RunConfig, materials: Materials) -> Catalog:
    """The images of the run's source, not opened yet."""
    return materials.once("catalog", source_key(config), lambda: read_catalog(config.data))


def open_images(config: RunConfig, progress: Progress, materials: Materials) -> tuple[Catalog, Pixels]:
    """The images that can be read, and their pixels."""
    return materials.once(
        "images", images_key(config), lambda: decode_images(list_images(config, materials), config, progress)
    )


def describe(job: Job, folder: Path) -> dict[str, Any]:
    """Write what the run starts from: settings, split, plan and environment; returns the last."""
    write_settings(folder, settings_of(with_absolute_paths(job.config)))
    write_split(folder / "split.csv", job.catalog, job.split, job.pixels.digests)
    if job.catalog.ignored:
        write_left_out(folder / "left_out.csv", job.catalog)
    if job.origin.selection is not None:
        write_json(folder / "plan.json", job.origin.selection.plan.to_json())
    environment = describe_environment(job.device) | {
        "precision": job.precision.name,
        "precision_reason": job.precision.reason,
        "compilation": job.compilation.name,
        "compilation_reason": job.compilation.reason,
        "seeds": {"seed": job.config.training.seed, "split_seed": job.config.data.split_seed},
    }
    write_json(folder / "environment.json", environment)
    return environment


def regain(job: Job, folder: Path, keeper: Keeper, progress: Progress) -> Recovery | None:
    """Recover S and S′ from the teacher, if that is asked for; no test image is seen."""
    recovery, split, design = job.config.recovery, job.split, job.origin.design
    if recovery.recover == "none":
        return None
    assert job.origin.selection is not None
    assert job.teacher is not None
    rows = split.seen_by(recovery.recover)
    found = recover(
        job.twins,
        job.origin.selection,
        job.teacher,
        UnlabelledImages(
            images_NCSS=job.pixels.rows(rows).fitting(job.device), mean=design.mean, std=design.std, device=job.device
        ),
        recovery,
        job.config.training,
        bf16=job.precision.bf16,
        keeper=keeper,
        progress=progress,
    )
    write_json(folder / RECOVERY_FILE, found.to_json())
    gc.collect()  # the teacher, before training begins
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def learn(job: Job, folder: Path, keeper: Keeper, progress: Progress) -> History:
    """Train S on the labelled images, from the last checkpoint if the run is resumed."""
    design = job.origin.design
    data = LabelledImages(
        images_NCSS=job.pixels.rows(job.split.labelled).fitting(job.device),
        labels_N=class_indices(job.catalog, job.split.labelled).to(job.device),
        mean=design.mean,
        std=design.std,
    )
    progress.note(f"compilation: {job.compilation.name} ({job.compilation.reason})")
    train_student = fit_in_two_phases if job.config.training.num_phases == 2 else fit
    with history_writer(folder, keeper.records) as record:
        return train_student(
            job.twins,
            data,
            job.config.training,
            bf16=job.precision.bf16,
            compilation=job.compilation,
            on_epoch=record,
            test_accuracy=lambda: accuracy_of(predict_rows(job, job.split.test)),
            keeper=keeper,
            progress=progress,
            label=f"training {job.config.model.method}",
        )


def measure(job: Job, folder: Path, history: History, metrics: dict[str, Any], environment: dict[str, Any]) -> Run:
    """Predict the test part once, after the last epoch, and gather all that the report shows."""
    predictions = predict_rows(job, job.split.test)
    metrics = evaluate(predictions, seed=job.config.training.seed) | metrics
    if job.split.val:
        metrics["val"] = evaluate(predict_rows(job, job.split.val), seed=job.config.training.seed)
    summary = summarise(job, history, predictions, metrics, environment)
    return Run(folder=folder, metrics=metrics, predictions=predictions, history=history, summary=summary)


def deliver(job: Job, run: Run) -> None:
    """Write predictions, report and metrics, and the model folder: S alone, and its card."""
    model = run.folder / "model"
    with explained_writes(model):
        model.mkdir()
    write_predictions(run.folder / "predictions.csv", run.predictions)
    save_bundle(
        model,
        job.twins.student,
        job.origin.design,
        image_size=job.config.training.image_size,
        classes=job.catalog.classes,
    )
    write_model_card(model / "README.md", run.summary)
    write_report(run.folder / "report.html", run.summary)
    write_json(run.folder / METRICS, run.metrics)


def decode_images(catalog: Catalog, config: RunConfig, progress: Progress) -> tuple[Catalog, Pixels]:
    """Decode every image once, under a bar."""
    size = config.training.image_size
    cache = PixelCache(cache_folder() / "pixels", size) if config.pixel_cache else None
    with progress.bar("decoding", len(catalog.rows)) as advance:
        decoded = load_pixels(
            catalog,
            image_size=size,
            max_megapixels=config.data.max_megapixels,
            skip_broken=config.data.skip_broken,
            cache=cache,
            on_progress=advance,
        )
    if cache is not None and cache.trouble is not None:
        progress.note(cache.trouble)
    return decoded


def class_indices(catalog: Catalog, rows: tuple[int, ...]) -> torch.Tensor:
    """(N,) int64 class indices of some rows."""
    return torch.tensor([catalog.classes.index(catalog.rows[row].label) for row in rows], dtype=torch.int64)


def predict_rows(job: Job, rows: tuple[int, ...]) -> Predictions:
    """What S says about some rows of the catalog."""
    catalog, design = job.catalog, job.origin.design
    return Predictions(
        paths=tuple(catalog.rows[row].path for row in rows),
        labels=class_indices(catalog, rows).numpy(),
        probabilities=predict_probabilities(job.twins.student, job.pixels.rows(rows), mean=design.mean, std=design.std),
        classes=catalog.classes,
        patient_ids=tuple(catalog.rows[row].patient_id for row in rows) if catalog.has_patients else None,
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
