"""Inference with a finished model: evaluate it on labelled images, or classify unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinbud.config.loading import stage_config
from twinbud.config.reading import Reading
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import new_folder, require_new_file, require_new_folder, write_json
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.typed_json import to_json
from twinbud.data.frames import Frames, list_frames
from twinbud.data.image_store import ImageStore, load_images
from twinbud.data.index import IgnoredFile, ImageRef, ImageRow, write_left_out
from twinbud.data.seen_images import read_seen_images
from twinbud.data.source import find_images
from twinbud.evaluation.leakage import seen_before_note
from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.classifier import open_classifier
from twinbud.runs.evaluated_images import images_to_evaluate
from twinbud.runs.run_dir import METRICS, read_settings
from twinbud.runs.run_split import read_run_split
from twinbud.trust.report import TrustReport, broken_promises, measure_trust


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of ``evaluate_run``."""

    metrics: EvaluationMetrics
    predictions: Predictions
    """One row per image."""
    ignored: tuple[IgnoredFile, ...]
    """Images that were left out, and files that are not images, each with the reason."""
    num_left_out: int
    """Number of images among them: unreadable ones, and those that the run has seen in training."""
    note: str
    """A sentence that states which images were evaluated, and how many were left out."""
    trust: TrustReport | None = None
    """What of the calibration holds on these images; None for a run that is not calibrated."""
    warnings: tuple[str, ...] = ()
    """Sentences about images that the teacher of the run has learned from, and about what of the calibration does not
    hold."""

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of ``metrics.json``."""
        trust = {"trust": to_json(self.trust)} if self.trust else {}
        return {**self.metrics.to_json(), "num_left_out": self.num_left_out, **trust}


def evaluate_run(
    folder: Path,
    source: Mapping[str, Any] | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    logits: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate the model of a finished run; the bootstrap uses the seed of the run.

    Args:
        folder: Run folder.
        source: Settings of DataConfig; column names default to those of the run. Without ``data``, or if ``data``
            is a copy of the run's own images, the run's own test part is evaluated. From other labelled images, the
            test part is evaluated if they are divided, else all of them. Classes are matched by name. Images that
            the run has seen in training, and other images of its training patients, are left out and listed.
        output: Folder to create with ``metrics.json``, ``predictions.csv`` and ``left_out.csv``; None: no files.
        force: Replace that folder.
        logits: Write logits to ``predictions.csv`` as well; needs ``output``.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: The run is not finished, images are missing or have changed, or the model does not have one of
            their classes.
    """
    if output is not None:
        require_new_folder(output, force=force)
    elif logits:
        raise TwinbudError("logits have no effect without a file to write", where="--logits", fix="Give --output")
    settings = read_settings(folder)
    seed = stage_config(TrainingConfig, settings).seed
    classifier = open_classifier(folder)
    model_folder = classifier.model_folder
    images = images_to_evaluate(
        model_folder, read_run_split(folder), settings, dict(source or {}), progress or SilentProgress()
    )
    rows = images.image_index.rows
    answers = classifier.classify(
        images.image_store,
        paths=tuple(row.path for row in rows),
        labels=model_folder.task.encode([row.label for row in rows]).numpy(),
        patient_ids=tuple(row.patient_id for row in rows) if images.image_index.has_patients else None,
    )
    predictions, trust = answers.trusted, None
    if classifier.trusted:
        trust = measure_trust(classifier.trusted.trust, answers.alone, predictions, seed=seed)
    seen = seen_before_note(images.image_store.digests, read_seen_images(folder))
    evaluation = Evaluation(
        metrics=evaluate(predictions, seed=seed, aggregate=images.aggregate),
        predictions=predictions,
        ignored=images.image_index.ignored,
        num_left_out=images.num_listed - len(rows),
        note=images.note,
        trust=trust,
        warnings=(*([seen] if seen else []), *(broken_promises(trust) if trust else ())),
    )
    if output is not None:
        with new_folder(output, force=force) as draft:
            write_json(draft / METRICS, evaluation.to_json())
            write_predictions(draft / "predictions.csv", predictions, logits=logits)
            write_left_out(draft / "left_out.csv", evaluation.ignored)
    return evaluation


def predict(
    folder: Path,
    paths: Sequence[Path],
    *,
    skip_broken: bool = False,
    max_megapixels: float = 36.0,
    output: Path | None = None,
    force: bool = False,
    logits: bool = False,
    progress: Progress | None = None,
) -> tuple[Predictions, tuple[IgnoredFile, ...]]:
    """Classify image files.

    Args:
        folder: Finished run, or model folder.
        paths: Images, or folders that are searched for images.
        skip_broken: Leave unreadable images out and list them.
        max_megapixels: Refuse an image with more pixels.
        output: CSV file to write; None: no file. Files that were left out are listed beside it, see ``left_out_file``.
        force: Replace that file.
        logits: Write logits as well.
        progress: Receives progress; silent by default.

    Returns:
        Predictions without labels, one row per image; and the files that were left out, with the reason.

    Raises:
        TwinbudError: There is no model or no image, an image cannot be read, or ``output`` exists.
    """
    if output is not None:
        require_new_file(output, force=force)
        require_new_file(left_out_file(output), force=force)
    classifier = open_classifier(folder)
    progress = progress or SilentProgress()
    given = read_given_images(
        paths, classifier.model_folder, skip_broken=skip_broken, max_megapixels=max_megapixels, progress=progress
    )
    predictions = classifier.classify(given.image_store, paths=tuple(row.path for row in given.rows)).trusted
    if output is not None:
        write_predictions(output, predictions, logits=logits)
        if given.left_out:
            write_left_out(left_out_file(output), given.left_out)
        else:
            left_out_file(output).unlink(missing_ok=True)
    return predictions, given.left_out


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Images that a user names.

    Attributes:
        rows: Those that can be read.
        image_store: Their pixels, at the size of the network's input.
        left_out: Files without an image and, on request, unreadable ones, each with the reason.
    """

    rows: tuple[ImageRow, ...]
    image_store: ImageStore
    left_out: tuple[IgnoredFile, ...]


def read_given_images(
    paths: Sequence[Path], model_folder: ModelFolder, *, skip_broken: bool, max_megapixels: float, progress: Progress
) -> GivenImages:
    """Read image files, and folders of them, as a model was trained to see them.

    Raises:
        TwinbudError: There is no image, or one cannot be read and ``skip_broken`` is off.
    """
    frames = _frames_to_predict(paths, model_folder.reading, progress)
    with progress.bar("decoding", len(frames.rows)) as advance:
        image_store, broken = load_images(
            [row.image for row in frames.rows],
            names=[row.path for row in frames.rows],
            image_size=model_folder.preprocessing.image_size,
            max_megapixels=max_megapixels,
            skip_broken=skip_broken,
            on_progress=advance,
        )
    unreadable = (IgnoredFile(path=frames.rows[index].path, reason=reason) for index, reason in broken.items())
    return GivenImages(
        rows=tuple(row for index, row in enumerate(frames.rows) if index not in broken),
        image_store=image_store,
        left_out=(*frames.left_out, *unreadable),
    )


def _frames_to_predict(paths: Sequence[Path], reading: Reading, progress: Progress) -> Frames:
    """Return the images of files and folders, read as those of the training were."""
    files, ignored = find_images(paths)
    rows = [ImageRow(path=str(file), image=ImageRef(file), label="") for file in files]
    frames = list_frames(rows, reading, None, progress)
    for note in frames.notes:
        progress.note(f"note: {note}")
    if not frames.rows:
        problem = f"none of {len(rows)} files holds an image ({frames.left_out[0].reason})"
        raise TwinbudError(problem, where=first_few(paths), fix="Give files with pixels")
    return replace(frames, left_out=(*ignored, *frames.left_out))


def left_out_file(output: Path) -> Path:
    """Return the list of left-out files beside a CSV of predictions: ``NAME.left_out.csv`` for ``NAME.csv``."""
    return output.with_name(f"{output.stem}.left_out.csv")
