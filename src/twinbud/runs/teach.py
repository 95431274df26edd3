"""Teach a network the features of another one: from images without labels to a teacher folder."""

from __future__ import annotations

from pathlib import Path

from twinbud.config.teaching import TeachConfig, numeric_teaching_settings, teaching_settings
from twinbud.core.environment import describe_environment
from twinbud.core.files import dump_yaml, write_json, write_text
from twinbud.core.memory import PeakMemory
from twinbud.core.progress import Progress, SilentProgress, duration
from twinbud.data.index import write_left_out
from twinbud.data.seen_images import images_seen_by, read_seen_images, write_seen_images
from twinbud.models.model_folder import save_model_folder
from twinbud.models.outline import count_parameters
from twinbud.models.teacher_fingerprint import teacher_fingerprint
from twinbud.report.history import history_writer
from twinbud.report.teacher_card import TeacherCard, write_teacher_card
from twinbud.runs.resume import newest_checkpoint
from twinbud.runs.run_dir import (
    CHECKPOINTS,
    METRICS,
    TEACHER_FOLDER,
    TEACHING_SETTINGS,
    require_run_output,
    started_run,
)
from twinbud.runs.teach_job import TeachJob, prepare_teaching
from twinbud.runs.teach_result import TeachMetrics, TeachResult, measurements
from twinbud.teaching.features import Features, extract_features
from twinbud.teaching.fit import fit_features
from twinbud.teaching.quality import (
    Extract,
    FeatureQuality,
    features_of,
    largest_class_share,
    measure_quality,
    neighbor_accuracy,
)
from twinbud.teaching.source import Whitening
from twinbud.training.amp import SLOWER_IN_BF16, cpu_threads
from twinbud.training.checkpoint import CheckpointFolder
from twinbud.training.checkpoint_manager import CheckpointManager
from twinbud.training.epoch_loop import History
from twinbud.training.execution import Execution
from twinbud.training.unlabelled import UnlabelledImages

_BEFORE = "before"
"""Name of the first measurement in a checkpoint."""


def teach(config: TeachConfig, progress: Progress | None = None) -> TeachResult:
    """Train a network, from a random start, to have the features of another one, and save it as a teacher.

    Args:
        config: All settings; see ``twinbud.config.teaching``.
        progress: Receives progress and notes; silent by default.

    Returns:
        Measurements before and after, on training images, and the teacher folder.

    Raises:
        TwinbudError: A problem that the caller can solve; found before the folder is made where possible.
        Stopped: The process received a signal to stop; ``config.resume`` continues.
    """
    progress = progress or SilentProgress()
    require_run_output(config.output, force=config.force, resume=config.resume, kind=TEACHER_FOLDER)
    with cpu_threads(config.training.threads):
        job = prepare_teaching(config, progress)
        checkpoints = open_checkpoints(job, progress)
        for text in job.notes:
            progress.note(text)
        with started_run(config.output, force=config.force, resume=config.resume, kind=TEACHER_FOLDER) as folder:
            save_inputs(job, folder)
            with checkpoints.stop_on_signal():
                history, metrics = teach_learner(job, folder, checkpoints, progress)
            save_outputs(job, folder, metrics)
    return TeachResult(folder=config.output, metrics=metrics, history=history, notes=job.notes)


def open_checkpoints(job: TeachJob, progress: Progress) -> CheckpointManager:
    """Open the checkpoints; load the newest intact one if the teaching is resumed.

    Raises:
        TwinbudError: It was saved with other settings, images or another source.
    """
    identity = numeric_teaching_settings(job.config) | {
        "precision": job.precision.name,
        "images": job.images.fingerprint(),
        "source": teacher_fingerprint(job.config.source),
    }
    folder = CheckpointFolder(job.config.output / CHECKPOINTS, identity)
    found = newest_checkpoint(folder, job.config, progress, "teaching")
    # after the last epoch, too, since measuring follows
    return CheckpointManager(folder, found, job.config.checkpoint_seconds, save_last=True)


def save_inputs(job: TeachJob, folder: Path) -> None:
    """Write the settings, the environment, the files left out and the checksums of the images."""
    head = "# Resolved settings of this teacher: the options of twinbud teach ('source' is --from).\n"
    write_text(folder / TEACHING_SETTINGS, head + dump_yaml(teaching_settings(job.config)))
    environment = describe_environment(job.device) | {
        "precision": "bf16" if job.bf16 else "float32",
        "precision_reason": job.precision.reason if job.bf16 == job.precision.bf16 else SLOWER_IN_BF16,
    }
    write_json(folder / "environment.json", environment)
    if job.images.image_index.ignored:
        write_left_out(folder / "left_out.csv", job.images.image_index.ignored)
    write_seen_images(folder, {*job.images.image_store.digests, *images_seen_by(job.config.source)})


def teach_learner(
    job: TeachJob, folder: Path, checkpoints: CheckpointManager, progress: Progress
) -> tuple[History, TeachMetrics]:
    """Measure the learner, train it, from the last checkpoint if resumed, and measure it again."""
    source, found, memory = job.open_source(), checkpoints.checkpoint, PeakMemory(job.device)
    measured = job.images.measured(job.preprocessing, job.device)

    def features(extract: Extract, label: str) -> Features:
        return features_of(
            extract, measured, label=label, progress=progress, stop_requested=lambda: checkpoints.stop_requested
        )

    def quality(label: str) -> FeatureQuality:
        job.learner.eval()
        learned = features(lambda images_BCSS: extract_features(job.learner, images_BCSS), label)
        return measure_quality(learned, targets, measured, seed=job.config.training.seed)

    raw = features(source.features, "features of the source")
    whitening = Whitening.from_tensors(found.tensors) if found else Whitening.of(raw, measured.num_fitted)
    targets = whitening(raw)
    before = FeatureQuality.from_tensor(found.tensors[_BEFORE]) if found else quality("features before")
    with history_writer(folder, checkpoints.records) as record:
        history = fit_features(
            job.learner,
            job.feature_maps(),
            source,
            whitening.to(job.device),
            training_images(job),
            job.config.training,
            Execution(bf16=job.bf16, checkpoints=checkpoints, progress=progress, label="teaching", on_epoch=record),
            kept=whitening.tensors() | {_BEFORE: before.tensor()},
        )
    after = quality("features after")
    own_vectors = raw.pooled_BP[measured.labelled].numpy()
    return history, TeachMetrics(
        before=before,
        after=after,
        source_neighbor_accuracy=neighbor_accuracy(own_vectors, measured.labels, measured.groups),
        largest_class_share=largest_class_share(measured.labels),
        num_train=len(job.images.train),
        num_held_out=len(job.images.held_out),
        num_labelled=len(measured.labels),
        num_parameters=count_parameters(job.learner),
        epochs=len(history.epochs),
        num_steps=history.num_steps,
        num_passes=history.num_images,
        train_seconds=history.train_seconds,
        images_per_second=history.num_images / history.train_seconds,
        peak_memory_mib=memory.mib,
    )


def training_images(job: TeachJob) -> UnlabelledImages:
    """Return the images that train, on the device where they fit."""
    pixels = job.images.image_store.rows(job.images.train).fitting(job.device)
    return UnlabelledImages(images_NCSS=pixels, preprocessing=job.preprocessing, device=job.device)


def save_outputs(job: TeachJob, folder: Path, metrics: TeachMetrics) -> None:
    """Write the network in timm's layout, its card and the metrics; without any of these, the teaching has failed."""
    save_model_folder(
        folder,
        job.learner,
        job.learner_spec,
        image_size=job.config.training.image_size,
        classes=(),
        reading=job.config.data.reading,
    )
    card = TeacherCard(
        architecture=job.learner_spec.architecture,
        source=job.config.source,
        preprocessing=job.preprocessing,
        num_seen=len(read_seen_images(folder)),
        notes=job.notes,
        measurements=measurements(metrics),
        facts=_facts(job, metrics),
    )
    write_teacher_card(folder / "README.md", card)
    write_json(folder / METRICS, metrics.to_json())


def _facts(job: TeachJob, metrics: TeachMetrics) -> dict[str, str]:
    training, shape = job.config.training, job.learner_shape
    return {
        "Training images": f"{metrics.num_train:,}, without labels; {metrics.num_held_out:,} more only measured",
        "Image size": f"{training.image_size} × {training.image_size} pixels",
        "Features": f"a map of {shape.height} × {shape.width} × {shape.num_channels}, and {shape.num_pooled} pooled",
        "Parameters": f"{metrics.num_parameters / 1e6:.2f} million",
        "Training": f"{metrics.epochs} epochs, {metrics.num_steps:,} steps, {duration(metrics.train_seconds)}",
        "Batch size, learning rate": f"{training.batch_size}, {training.learning_rate:g} at batch size 32",
        "Seed": f"{training.seed}",
        "Device": f"{job.device}, {'bf16' if job.bf16 else 'float32'}",
    }
