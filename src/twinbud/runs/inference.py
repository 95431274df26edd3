"""Inference with a finished model: evaluate it on labelled images, or classify unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.config.data_config import DataConfig
from twinbud.config.loading import stage_config
from twinbud.config.reading import Reading
from twinbud.config.schema import TrainingConfig
from twinbud.config.task import Aggregate
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import new_folder, require_free, require_new_file, write_json
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.frames import Frames, list_frames
from twinbud.data.image_store import ImageStore, load_image_store, load_images
from twinbud.data.index import IgnoredFile, ImageIndex, ImageRef, ImageRow, unknown_labels, write_left_out
from twinbud.data.patient_salt import default_salt_file, is_key, require_one_salt
from twinbud.data.seen_images import read_seen_images
from twinbud.data.source import find_images, read_index
from twinbud.data.split_file import SplitRow, read_split
from twinbud.evaluation.leakage import (
    changed_images,
    has_the_paths,
    never_learned_from,
    own_test_part,
    seen_before_note,
)
from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.evaluation.predict import predict_logits
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.runs.run_dir import CONFIG, MARKER, METRICS, read_settings


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
    warning: str | None = None
    """A sentence about images that the teacher of the run has learned from; None if there are none."""

    def to_json(self) -> dict[str, Any]:
        """Convert to the content of ``metrics.json``."""
        return {**self.metrics.to_json(), "num_left_out": self.num_left_out}


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
        logits: Write logits to ``predictions.csv`` as well.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: The run is not finished, images are missing or have changed, or the model does not have one of
            their classes.
    """
    if output is not None:
        require_free(output, force=force)
    settings = read_settings(folder)
    seed = stage_config(TrainingConfig, settings).seed
    model_folder = open_model_folder(folder / "model")
    images = _images_to_evaluate(
        model_folder, read_split(folder / "split.csv"), settings, dict(source or {}), progress or SilentProgress()
    )
    rows = images.image_index.rows
    predictions = Predictions.from_logits(
        _logits(model_folder, images.image_store),
        paths=tuple(row.path for row in rows),
        labels=model_folder.task.encode([row.label for row in rows]).numpy(),
        classes=model_folder.classes,
        task=model_folder.task,
        patient_ids=tuple(row.patient_id for row in rows) if images.image_index.has_patients else None,
    )
    evaluation = Evaluation(
        metrics=evaluate(predictions, seed=seed, aggregate=images.aggregate),
        predictions=predictions,
        ignored=images.image_index.ignored,
        num_left_out=images.num_listed - len(rows),
        note=images.note,
        warning=seen_before_note(images.image_store.digests, read_seen_images(folder)),
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
        for file in (output, left_out_file(output)):
            require_new_file(file, force=force)
    model_folder = open_model(folder)
    progress = progress or SilentProgress()
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
    predictions = Predictions.from_logits(
        _logits(model_folder, image_store),
        paths=tuple(row.path for index, row in enumerate(frames.rows) if index not in broken),
        classes=model_folder.classes,
        task=model_folder.task,
    )
    unreadable = (IgnoredFile(path=frames.rows[index].path, reason=reason) for index, reason in broken.items())
    left_out = (*frames.left_out, *unreadable)
    if output is not None:
        write_predictions(output, predictions, logits=logits)
        if left_out:
            write_left_out(left_out_file(output), left_out)
        else:
            left_out_file(output).unlink(missing_ok=True)
    return predictions, left_out


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


def open_model(folder: Path) -> ModelFolder:
    """Open the model of a finished run, or a model folder.

    Raises:
        TwinbudError: There is none, or the run is not finished.
    """
    if (folder / MARKER).exists() or (folder / CONFIG).exists():
        read_settings(folder)
        return open_model_folder(folder / "model")
    return open_model_folder(folder)


def _logits(model_folder: ModelFolder, image_store: ImageStore) -> np.ndarray:
    images = image_store.rows(range(len(image_store)))
    return predict_logits(model_folder.model, images, preprocessing=model_folder.preprocessing)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images to evaluate."""

    image_index: ImageIndex
    image_store: ImageStore
    part: str
    """Name of the set of images, as part of a sentence."""
    num_listed: int
    """How many these are, including those left out."""
    num_unreadable: int
    aggregate: Aggregate
    num_seen: int = 0
    """Left out since the run has seen them, or other images of their patients, in training."""

    @property
    def note(self) -> str:
        if not self.num_unreadable + self.num_seen:
            return f"Evaluated on {self.part}."
        reasons = [f"{self.num_seen} of the run's training images or patients"] if self.num_seen else []
        reasons += [f"{self.num_unreadable} unreadable"] if self.num_unreadable else []
        part = self.part.removeprefix("all of ")
        kept = f"{len(self.image_index.rows):,} of the {self.num_listed:,} images of {part}"
        return f"Evaluated on {kept}; {self.num_unreadable + self.num_seen:,} left out ({', '.join(reasons)})."


def _images_to_evaluate(
    model_folder: ModelFolder,
    split: Sequence[SplitRow],
    settings: dict[str, Any],
    source: dict[str, Any],
    progress: Progress,
) -> _Images:
    is_other = "data" in source
    kept = ("_column", "_columns", "aggregate")
    known = {name: settings[name] for name in settings if name.endswith(kept) or not is_other}
    read = {**known, **source, **model_folder.reading.to_json(), "task": model_folder.task.name}
    data = stage_config(DataConfig, {**read, "patient_salt": source.get("patient_salt", _salt_of(settings, split))})
    image_index = read_index(data, to_train=False, progress=progress)
    for note in image_index.notes:
        progress.note(f"note: {note}")
    if not is_other or has_the_paths(image_index, split):
        images = _decode(model_folder, own_test_part(image_index, split), _own_part(split), data, progress)
        changed = changed_images(images.image_index, images.image_store, split)
        if not changed:
            return images
        if not is_other:
            raise TwinbudError(
                f"{len(changed)} test images have changed since training ({first_few(changed)})",
                where=image_index.source,
                fix="Restore them, or evaluate images in another place with --data",
            )
    image_index, part = _other_part(image_index)
    patients = (row.patient_id for row in image_index.rows)
    require_one_salt((row.patient_id for row in split), patients, where=image_index.source)
    images = _decode(model_folder, image_index, part, data, progress)
    image_index, image_store = never_learned_from(images.image_index, images.image_store, split)
    num_seen = len(images.image_index.rows) - len(image_index.rows)
    return replace(images, image_index=image_index, image_store=image_store, num_seen=num_seen)


def _salt_of(settings: dict[str, Any], split: Sequence[SplitRow]) -> Path | str | None:
    """Return the file with the salt of a run; None if it has hashed no patient."""
    if not any(is_key(row.patient_id) for row in split):
        return None
    return settings.get("patient_salt") or default_salt_file(settings["data"])


def _own_part(split: Sequence[SplitRow]) -> str:
    if any(row.split == "held-out" for row in split):
        return "the fifth of the training part that the run held out"
    return "the test part of the run's own split"


def _other_part(image_index: ImageIndex) -> tuple[ImageIndex, str]:
    if not image_index.has_splits:
        return image_index, f"all of {image_index.source}"
    rows = tuple(row for row in image_index.rows if row.split == "test")
    if not rows:
        raise TwinbudError(
            "the images have train or val splits but no test split",
            where=image_index.source,
            fix="Add a test split, or remove the splits to evaluate all images",
        )
    return replace(image_index, rows=rows), f"the test part of {image_index.source}"


def _decode(
    model_folder: ModelFolder, image_index: ImageIndex, part: str, data: DataConfig, progress: Progress
) -> _Images:
    """Decode every image, after a check that the model has its class."""
    if unknown := unknown_labels(image_index.rows, model_folder.classes):
        raise TwinbudError(
            f"unknown classes: {first_few(unknown)}; the model knows {first_few(model_folder.classes, 20)}",
            where=image_index.source,
            fix="Rename the class as the model spells it, or leave its images out",
        )
    with progress.bar("decoding", len(image_index.rows)) as advance:
        readable, image_store = load_image_store(
            image_index,
            image_size=model_folder.preprocessing.image_size,
            max_megapixels=data.max_megapixels,
            skip_broken=data.skip_broken,
            on_progress=advance,
        )
    num_listed = len(image_index.rows)
    return _Images(
        image_index=readable,
        image_store=image_store,
        part=part,
        num_listed=num_listed,
        num_unreadable=num_listed - len(readable.rows),
        aggregate=data.aggregate,
    )
