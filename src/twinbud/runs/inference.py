"""Use a finished model: evaluate it on labelled images, or predict unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.config.loading import stage_config
from twinbud.config.schema import DataConfig, TrainingConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import new_folder, require_free, require_new_file, write_json
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.image_store import ImageStore, load_image_store, load_images
from twinbud.data.index import IgnoredFile, ImageIndex, ImageRef, unknown_labels
from twinbud.data.source import find_images, read_index
from twinbud.data.split_file import SplitRow, read_split
from twinbud.evaluation.leakage import changed_images, has_the_paths, never_learned_from, own_test_part
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_probabilities
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.runs.run_dir import CONFIG, MARKER, METRICS, read_settings


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scored on labelled images.

    Attributes:
        metrics: As ``twinbud.evaluation.metrics.evaluate`` gives them.
        predictions: One row an image.
        ignored: Files that were left out, with the reason.
        note: Which images these were.
    """

    metrics: dict[str, Any]
    predictions: Predictions
    ignored: tuple[IgnoredFile, ...]
    note: str


def evaluate_run(
    folder: Path,
    source: Mapping[str, Any] | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a finished run's model; the bootstrap takes the run's own seed.

    Args:
        folder: The run.
        source: Settings of DataConfig; columns that are not named are the run's. Without ``data`` among them the
            run's own test part is used again, and likewise where ``data`` is the run's own set in another place.
            Other labelled images are used as they come: their test part if they come divided, else all of them;
            classes are matched by name, and images that the run may have learned from, or whose patients it was
            trained on, are left out and listed.
        output: Folder to make for ``metrics.json`` and ``predictions.csv``; none: nothing is written.
        force: Replace that folder.
        progress: Where to report.

    Raises:
        TwinbudError: Not a finished run, images that are missing or not those of the run, or classes the model does
            not know.
    """
    if output is not None:
        require_free(output, force=force)
    settings = read_settings(folder)
    seed = stage_config(TrainingConfig, settings).seed
    model_folder = open_model_folder(folder / "model")
    split = read_split(folder / "split.csv")
    image_index, image_store, note = _images(
        model_folder, split, settings, dict(source or {}), progress or SilentProgress()
    )
    predictions = Predictions(
        paths=tuple(row.path for row in image_index.rows),
        labels=np.array([model_folder.classes.index(row.label) for row in image_index.rows], dtype=np.int64),
        probabilities=_probabilities(model_folder, image_store),
        classes=model_folder.classes,
        patient_ids=tuple(row.patient_id for row in image_index.rows) if image_index.has_patients else None,
    )
    evaluation = Evaluation(
        metrics=evaluate(predictions, seed=seed), predictions=predictions, ignored=image_index.ignored, note=note
    )
    if output is not None:
        _write(evaluation, output, force=force)
    return evaluation


def predict(
    folder: Path,
    paths: Sequence[Path],
    *,
    skip_broken: bool = False,
    max_megapixels: float = 36.0,
    output: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Predictions, tuple[IgnoredFile, ...]]:
    """Classify image files.

    Args:
        folder: A finished run, or a model folder.
        paths: Images, or folders that are searched for them.
        skip_broken: Leave unreadable images out and list them.
        max_megapixels: Refuse an image with more pixels.
        output: CSV to write; none: nothing is written.
        force: Replace that file.
        progress: Where to report.

    Returns:
        One row an image, without truth; and the files left out, with the reason.

    Raises:
        TwinbudError: No model there, no images, one that cannot be read, or an output that stands in the way.
    """
    if output is not None:
        require_new_file(output, force=force)
    model_folder = open_model(folder)
    files, ignored = find_images(paths)
    progress = progress or SilentProgress()
    with progress.bar("decoding", len(files)) as advance:
        image_store, broken = load_images(
            [ImageRef(file) for file in files],
            image_size=model_folder.image_size,
            max_megapixels=max_megapixels,
            skip_broken=skip_broken,
            on_progress=advance,
        )
    predictions = Predictions(
        paths=tuple(str(file) for index, file in enumerate(files) if index not in broken),
        labels=None,
        probabilities=_probabilities(model_folder, image_store),
        classes=model_folder.classes,
    )
    if output is not None:
        write_predictions(output, predictions)
    left_out = [IgnoredFile(path=str(files[index]), reason=reason) for index, reason in broken.items()]
    return predictions, (*ignored, *left_out)


def open_model(folder: Path) -> ModelFolder:
    """The model of a finished run, or of a model folder.

    Raises:
        TwinbudError: There is none, or the run did not finish.
    """
    if (folder / MARKER).exists() or (folder / CONFIG).exists():
        read_settings(folder)
        return open_model_folder(folder / "model")
    return open_model_folder(folder)


def _probabilities(model_folder: ModelFolder, image_store: ImageStore) -> np.ndarray:
    images = image_store.rows(range(len(image_store)))
    return predict_probabilities(model_folder.model, images, mean=model_folder.mean, std=model_folder.std)


def _write(evaluation: Evaluation, folder: Path, *, force: bool) -> None:
    """Write ``metrics.json`` and ``predictions.csv`` into a new folder, whole or not at all."""
    with new_folder(folder, force=force) as draft:
        write_json(draft / METRICS, evaluation.metrics)
        write_predictions(draft / "predictions.csv", evaluation.predictions)


def _images(
    model_folder: ModelFolder,
    split: Sequence[SplitRow],
    settings: dict[str, Any],
    source: dict[str, Any],
    progress: Progress,
) -> tuple[ImageIndex, ImageStore, str]:
    """What to measure on, and which images these are."""
    others = "data" in source
    known = {name: settings[name] for name in settings if name.endswith("_column") or not others}
    data = stage_config(DataConfig, {**known, **source})
    image_index = read_index(data, to_train=False)
    if not others or has_the_paths(image_index, split):
        own, image_store = _decode(model_folder, own_test_part(image_index, split), data, progress)
        changed = changed_images(own, image_store, split)
        if not changed:
            developing = any(row.split == "closed" for row in split)
            part = (
                "fifth of the training part that the run held out" if developing else "test part of the run's own split"
            )
            return own, image_store, f"Evaluated on the {part}."
        if not others:
            raise TwinbudError(
                "the images that the run was tested on",
                got=f"other pixels in {first_few(changed)}",
                where=image_index.source,
                fix="Restore them, or evaluate on images of another place with --data",
            )
    image_index, note = _other_images(image_index)
    image_index, image_store = _decode(model_folder, image_index, data, progress)
    return *never_learned_from(image_index, image_store, split), note


def _other_images(image_index: ImageIndex) -> tuple[ImageIndex, str]:
    if not image_index.has_splits:
        return image_index, f"Evaluated on all of {image_index.source}."
    rows = tuple(row for row in image_index.rows if row.split == "test")
    if not rows:
        raise TwinbudError(
            "a test part in images that come divided",
            got="none",
            where=image_index.source,
            fix="Add one, or join the parts",
        )
    return replace(image_index, rows=rows), f"Evaluated on the test part of {image_index.source}."


def _decode(
    model_folder: ModelFolder, image_index: ImageIndex, data: DataConfig, progress: Progress
) -> tuple[ImageIndex, ImageStore]:
    """Decode every image, once the model is known to know its class."""
    if unknown := unknown_labels(image_index.rows, model_folder.classes):
        raise TwinbudError(
            f"unknown classes: {first_few(unknown)}; the model knows {first_few(model_folder.classes, 20)}",
            where=image_index.source,
            fix="Rename the class as the model spells it, or leave its images out",
        )
    with progress.bar("decoding", len(image_index.rows)) as advance:
        return load_image_store(
            image_index,
            image_size=model_folder.image_size,
            max_megapixels=data.max_megapixels,
            skip_broken=data.skip_broken,
            on_progress=advance,
        )
