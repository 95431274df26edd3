"""Calibrate a finished run: probabilities, prediction sets, operating points, and which images it is not made for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from twinbud.config.calibration import MIN_VALIDATION_IMAGES, NUM_FOLDS, CalibrationSource
from twinbud.config.loading import run_config
from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError, first_few, writes_to
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.identity import patient_key
from twinbud.data.image_store import ImageStore
from twinbud.data.index import evenly
from twinbud.data.split_file import SplitRow, read_split
from twinbud.evaluation.bootstrap import unit_of_each_image
from twinbud.evaluation.predict import predict_outputs
from twinbud.evaluation.predictions import Predictions
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.report.model import RunSummary, read_summary, write_summary
from twinbud.runs.context import open_images
from twinbud.runs.cross_fit import Examples, RunImages, cross_fit
from twinbud.runs.report import rebuild_report
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_dir import FOLDS, SUMMARY, locked, read_settings
from twinbud.training.amp import cpu_threads
from twinbud.trust.conformal import require_reachable
from twinbud.trust.fit import Wanted, fit_trust
from twinbud.trust.novelty import Novelty, fit_novelty
from twinbud.trust.record import TRUST_FILE, TrustedModel, hash_weights, write_trust
from twinbud.trust.report import TrustReport, measure_trust
from twinbud.trust.shifts import MAX_SHIFTED_IMAGES, SHIFTS


@dataclass(frozen=True, kw_only=True)
class CalibratedRun:
    """The result of ``calibrate_run``."""

    folder: Path
    report: TrustReport
    """Measured on the test part of the run."""


@nothing_left_out()
@writes_to(None)
def calibrate_run(
    folder: Path,
    *,
    wanted: Wanted,
    on: CalibrationSource = "auto",
    num_folds: int = NUM_FOLDS,
    force: bool = False,
    progress: Progress | None = None,
) -> CalibratedRun:
    """Find out how far the answers of a finished run can be trusted, without using its test part for it.

    Writes ``trust.json`` and ``trust.safetensors`` into the model folder, and the report of the run again.

    Args:
        folder: Run folder.
        wanted: What is asked of prediction sets.
        on: The images to calibrate on. ``val``: the validation part. ``folds``: the labelled images, each by a model
            that is trained like that of the run without the fold that the image is in. ``auto``: the validation part if
            it has at least 100 images.
        num_folds: Number of folds, at least 2; so many runs are executed.
        force: Calibrate a calibrated run again.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: The run is not finished, is calibrated, or its images have changed; or there are too few images.
        Stopped: The process received a signal to stop; the same call goes on.
    """
    progress = progress or SilentProgress()
    settings = read_settings(folder)
    config = run_config(settings, output=folder)
    if (folder / "model" / TRUST_FILE).exists() and not force:
        fix = "Calibrate it again with --force"
        raise TwinbudError("the run is calibrated already", where=str(folder), fix=fix)
    summary = read_summary(folder / SUMMARY)
    with locked(folder), cpu_threads(config.training.threads):
        resource_cache = ResourceCache()
        images = _open_images(config, progress, resource_cache)
        model_folder = open_model_folder(folder / "model")
        uses_validation = _uses_validation(on, images)
        rows = images.rows("val") if uses_validation else images.rows("train", labelled=True)
        if model_folder.task.is_exclusive:  # before models are trained for it
            labels, patients = images.targets(model_folder, rows), _patients(images, rows)
            require_reachable(labels, patients, classes=model_folder.classes, **vars(wanted))
        if uses_validation:
            examples = _validation_examples(images, model_folder)
        else:
            examples = cross_fit(config, images, num_folds, progress, resource_cache)
        trust = fit_trust(
            _predictions(images, model_folder, examples.rows, examples.logits_NK),
            examples.novelty_N,
            wanted,
            source="val" if uses_validation else "folds",
            num_folds=examples.num_folds,
            weights_sha256=hash_weights(folder / "model"),
        )
        trusted = TrustedModel(trust=trust, novelty=_novelty_of(images, model_folder))
        report = _measure(images, model_folder, trusted, seed=config.training.seed)
        save_trust(folder, summary, trusted, report)
        shutil.rmtree(folder / FOLDS, ignore_errors=True)
    return CalibratedRun(folder=folder, report=report)


def save_trust(folder: Path, summary: RunSummary, trusted: TrustedModel, report: TrustReport) -> None:
    """Write the trust into the model folder of a run, and its report again."""
    write_trust(folder / "model", replace(trusted, trust=report.trust))
    write_summary(folder / SUMMARY, replace(summary, trust=report))
    rebuild_report(folder)


def _open_images(config: RunConfig, progress: Progress, resource_cache: ResourceCache) -> RunImages:
    """Decode the images of the run, and require that they are those that it read.

    Raises:
        TwinbudError: Images are missing, or have changed.
    """
    image_index, image_store = open_images(config, progress, resource_cache)
    by_path = {row.image_path: row for row in read_split(config.output / "split.csv")}
    split: list[SplitRow] = []
    changed = [path for path in by_path if path not in {row.path for row in image_index.rows}]
    for row, digest in zip(image_index.rows, image_store.digests, strict=True):
        known = by_path.get(row.path)
        if known is None or known.digest not in (None, digest) or known.label != row.label:
            changed.append(row.path)
        else:
            split.append(known)
    if changed:
        raise TwinbudError(
            f"{len(changed)} images are not those of the run ({first_few(changed)})",
            where=image_index.source,
            fix="Restore the images and their labels, or train again",
        )
    return RunImages(image_index=image_index, image_store=image_store, split=tuple(split))


def _uses_validation(on: CalibrationSource, images: RunImages) -> bool:
    num_validation = len(images.rows("val"))
    if on == "val" and not num_validation:
        fix = "Give --on folds, or train with a validation part"
        raise TwinbudError("the run has no validation part", where="--on val", fix=fix)
    return on == "val" or (on == "auto" and num_validation >= MIN_VALIDATION_IMAGES)


def _validation_examples(images: RunImages, model_folder: ModelFolder) -> Examples:
    rows = images.rows("val")
    outputs = images.outputs(model_folder, rows)
    novelty = _novelty_of(images, model_folder)
    return Examples(
        rows=rows, logits_NK=outputs.logits_NK, novelty_N=novelty.scores(outputs.features_ND), num_folds=None
    )


def _novelty_of(images: RunImages, model_folder: ModelFolder) -> Novelty:
    learned = images.rows("train", labelled=True)
    return fit_novelty(images.outputs(model_folder, learned).features_ND, images.targets(model_folder, learned))


def _measure(images: RunImages, model_folder: ModelFolder, trusted: TrustedModel, *, seed: int) -> TrustReport:
    """Open the test part once, and measure what was chosen."""
    rows = images.rows("test")
    outputs = images.outputs(model_folder, rows)
    before = _predictions(images, model_folder, rows, outputs.logits_NK)
    after = trusted.apply(before, outputs.features_ND)
    trust = replace(trusted.trust, shifts=found_shifts(images.image_store, rows, model_folder, trusted))
    return measure_trust(trust, before, after, seed=seed)


def found_shifts(
    image_store: ImageStore, rows: tuple[int, ...], model_folder: ModelFolder, trusted: TrustedModel
) -> dict[str, float]:
    """Return the share of changed images that the threshold of novelty finds, by the change."""
    rows = evenly(rows, MAX_SHIFTED_IMAGES)
    pixels_NCSS = image_store.rows(rows)[torch.arange(len(rows))]
    found: dict[str, float] = {}
    for name, shift in {"none": lambda same: same, **SHIFTS}.items():
        outputs = predict_outputs(model_folder.model, shift(pixels_NCSS), preprocessing=model_folder.preprocessing)
        scores_N = trusted.novelty.scores(outputs.features_ND)
        found[name] = float((scores_N > trusted.trust.novelty_threshold).mean())
    return found


def _predictions(
    images: RunImages, model_folder: ModelFolder, rows: tuple[int, ...], logits_NK: np.ndarray
) -> Predictions:
    known = [images.image_index.rows[row] for row in rows]
    return Predictions.from_logits(
        logits_NK,
        paths=tuple(row.path for row in known),
        classes=model_folder.classes,
        labels=images.targets(model_folder, rows),
        patient_ids=tuple(row.patient_id for row in known) if images.image_index.has_patients else None,
        task=model_folder.task,
    )


def _patients(images: RunImages, rows: tuple[int, ...]) -> np.ndarray:
    """Return the number of each image's patient; an image without a known one has a number of its own."""
    return unit_of_each_image([patient_key(images.image_index.rows[row].patient_id) for row in rows], len(rows))
