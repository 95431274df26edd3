"""Use a finished model: evaluate it on labelled images, or predict unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.config import DataConfig
from twinbud.data.catalog import find_images, read_catalog
from twinbud.data.pixels import Pixels, load_images, load_pixels
from twinbud.data.rows import Catalog, IgnoredFile
from twinbud.data.split import read_split
from twinbud.errors import TwinbudError, first_few
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predict import predict_probabilities
from twinbud.evaluation.predictions import Predictions, write_predictions
from twinbud.files import new_folder, require_free
from twinbud.models.bundle import Bundle, open_bundle
from twinbud.progress import Progress, SilentProgress
from twinbud.run_folder import CONFIG, MARKER, METRICS, read_settings, write_json
from twinbud.settings import stage_config


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
    seed: int = 0,
) -> Evaluation:
    """Measure a finished run's model.

    Args:
        folder: The run.
        source: Settings of DataConfig. With ``data`` among them, other labelled images are used: their test part
            if they come divided, else all of them; classes are matched by name, and an image that is identical
            to one of the run's training part is left out and listed. Without it, the run's own test part is used
            again.
        output: Folder to make for ``metrics.json`` and ``predictions.csv``; none: nothing is written.
        force: Replace that folder.
        progress: Where to report.
        seed: Of the bootstrap.

    Raises:
        TwinbudError: Not a finished run, images that are missing, or classes the model does not know.
    """
    if output is not None:
        require_free(output, force=force)
    settings = read_settings(folder)
    bundle = open_bundle(folder / "model")
    source = dict(source or {})
    if "data" in source:
        data = stage_config(DataConfig, source)
        catalog, note = _other_images(data)
    else:
        data = stage_config(DataConfig, {**settings, **source})
        catalog, note = _own_test_part(folder, data)
    unknown = sorted({row.label for row in catalog.rows} - set(bundle.classes))
    if unknown:
        raise TwinbudError(
            f"classes the model knows ({', '.join(bundle.classes)})",
            got=first_few(unknown),
            where=data.data,
            fix="Rename or leave out the others",
        )
    progress = progress or SilentProgress()
    with progress.bar("decoding", len(catalog.rows)) as advance:
        catalog, pixels = load_pixels(
            catalog,
            image_size=bundle.image_size,
            max_megapixels=data.max_megapixels,
            skip_broken=data.skip_broken,
            on_progress=advance,
        )
    if "data" in source:
        catalog, pixels = _without_trained(catalog, pixels, folder)
    predictions = Predictions(
        paths=tuple(row.path for row in catalog.rows),
        labels=np.array([bundle.classes.index(row.label) for row in catalog.rows], dtype=np.int64),
        probabilities=_probabilities(bundle, pixels),
        classes=bundle.classes,
        patient_ids=tuple(row.patient_id for row in catalog.rows) if catalog.has_patients else None,
    )
    evaluation = Evaluation(
        metrics=evaluate(predictions, seed=seed),
        predictions=predictions,
        ignored=catalog.ignored,
        note=note,
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
    progress: Progress | None = None,
) -> tuple[Predictions, tuple[IgnoredFile, ...]]:
    """Classify image files.

    Args:
        folder: A finished run, or a model folder.
        paths: Images, or folders that are searched for them.
        skip_broken: Leave unreadable images out and list them.
        max_megapixels: Refuse an image with more pixels.
        progress: Where to report.

    Returns:
        One row an image, without truth; and the files left out, with the reason.

    Raises:
        TwinbudError: No model there, no images, or one that cannot be read.
    """
    bundle = open_model(folder)
    files, ignored = find_images(paths)
    progress = progress or SilentProgress()
    with progress.bar("decoding", len(files)) as advance:
        pixels, broken = load_images(
            files,
            image_size=bundle.image_size,
            max_megapixels=max_megapixels,
            skip_broken=skip_broken,
            on_progress=advance,
        )
    predictions = Predictions(
        paths=tuple(str(file) for index, file in enumerate(files) if index not in broken),
        labels=None,
        probabilities=_probabilities(bundle, pixels),
        classes=bundle.classes,
    )
    left_out = [IgnoredFile(path=str(files[index]), reason=reason) for index, reason in broken.items()]
    return predictions, (*ignored, *left_out)


def open_model(folder: Path) -> Bundle:
    """The model of a finished run, or of a model folder.

    Raises:
        TwinbudError: There is none, or the run did not finish.
    """
    if (folder / MARKER).exists() or (folder / CONFIG).exists():
        read_settings(folder)
        return open_bundle(folder / "model")
    return open_bundle(folder)


def _probabilities(bundle: Bundle, pixels: Pixels) -> np.ndarray:
    images = pixels.rows(range(len(pixels)))
    return predict_probabilities(bundle.model, images, mean=bundle.mean, std=bundle.std)


def _write(evaluation: Evaluation, folder: Path, *, force: bool) -> None:
    """Write ``metrics.json`` and ``predictions.csv`` into a new folder, whole or not at all."""
    with new_folder(folder, force=force) as draft:
        write_json(draft / METRICS, evaluation.metrics)
        write_predictions(draft / "predictions.csv", evaluation.predictions)


def _other_images(data: DataConfig) -> tuple[Catalog, str]:
    catalog = read_catalog(data, to_train=False)
    if catalog.has_splits:
        rows = tuple(row for row in catalog.rows if row.split == "test")
        if not rows:
            raise TwinbudError(
                "a test part in images that come divided", got="none", where=data.data, fix="Add one, or join the parts"
            )
        return replace(catalog, rows=rows), f"Evaluated on the test part of {data.data}."
    return catalog, f"Evaluated on all of {data.data}."


def _without_trained(catalog: Catalog, pixels: Pixels, folder: Path) -> tuple[Catalog, Pixels]:
    """Leave out images that the run may have learned from, wherever they lie now."""
    trained = {row.digest for row in read_split(folder / "split.csv") if row.split == "train"}
    seen = {i: "identical to a training image of the run" for i, d in enumerate(pixels.digests) if d in trained}
    if len(seen) == len(catalog.rows):
        raise TwinbudError(
            "images that the run was not trained on",
            got="none",
            where=catalog.source,
            fix="Give other images, or evaluate without --data",
        )
    return (catalog.without(seen), pixels.without(seen)) if seen else (catalog, pixels)


def _own_test_part(folder: Path, data: DataConfig) -> tuple[Catalog, str]:
    """The rows that the run held out, as its split.csv lists them."""
    held_out = {row.image_path for row in read_split(folder / "split.csv") if row.split == "test"}
    catalog = read_catalog(data, to_train=False)
    rows = tuple(row for row in catalog.rows if row.path in held_out)
    missing = sorted(held_out - {row.path for row in rows})
    if missing:
        raise TwinbudError(
            "the images that the run was tested on",
            got=f"none at {first_few(missing)}",
            where=data.data,
            fix="Give their place with --data",
        )
    return replace(catalog, rows=rows), "Evaluated on the test part of the run's own split."
