"""Calibrate a finished run: probabilities, prediction sets, operating points, and which images it is not made for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from twinbud.config.calibration import MIN_VALIDATION_IMAGES, NUM_FOLDS, CalibrationSource
from twinbud.core.errors import TwinbudError, writes_to
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.image_store import ImageStore
from twinbud.data.index import evenly
from twinbud.evaluation.predict import predict_outputs
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.report.model import write_summary
from twinbud.runs.cross_fit import Examples, out_of_fold
from twinbud.runs.report import read_run_summary, rebuild_report
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_dir import SUMMARY, locked, read_run_config
from twinbud.runs.run_images import RunImages, open_run_images
from twinbud.training.amp import cpu_threads
from twinbud.trust.conformal import require_reachable
from twinbud.trust.fit import Wanted, fit_trust
from twinbud.trust.novelty import Novelty, fit_novelty
from twinbud.trust.record import TRUST_FILE, TrustedModel, hash_weights, new_trust
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
        num_folds: Number of folds, at least 2; so many runs are executed, unless they were before.
        force: Calibrate a calibrated run again.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: The run is not finished, is calibrated, or its images have changed; or there are too few images.
        Stopped: The process received a signal to stop; the same call goes on.
    """
    progress = progress or SilentProgress()
    config = read_run_config(folder)
    if (folder / "model" / TRUST_FILE).exists() and not force:
        fix = "Calibrate it again with --force"
        raise TwinbudError("the run is calibrated already", where=str(folder), fix=fix)
    read_run_summary(folder)  # a damaged one is refused before models are trained
    with locked(folder), cpu_threads(config.training.threads):
        resource_cache = ResourceCache()
        images = open_run_images(config, progress, resource_cache)
        model_folder = open_model_folder(folder / "model")
        uses_validation = _uses_validation(on, images)
        rows = images.rows("val") if uses_validation else images.rows("train", labelled=True)
        if model_folder.task.is_exclusive:  # before models are trained for it
            labels, patients = images.targets(model_folder, rows), images.patients(rows)
            require_reachable(labels, patients, classes=model_folder.classes, **vars(wanted))
        if uses_validation:
            examples = _validation_examples(images, model_folder)
        else:
            examples = out_of_fold(config, images, num_folds, progress, resource_cache)
        trust = fit_trust(
            images.predictions(model_folder, examples.rows, examples.logits_NK),
            examples.novelty_N,
            wanted,
            source="val" if uses_validation else "folds",
            num_folds=examples.num_folds,
            weights_sha256=hash_weights(folder / "model"),
        )
        trusted = TrustedModel(trust=trust, novelty=_novelty_of(images, model_folder))
        report = _measure(images, model_folder, trusted, seed=config.training.seed)
        report = save_trust(folder, trusted, report)
    return CalibratedRun(folder=folder, report=report)


def save_trust(folder: Path, trusted: TrustedModel, report: TrustReport) -> TrustReport:
    """Write the trust into the model folder of a run, and its report again; return the report as it was written.

    The run is calibrated when all of it is written: a call that was stopped before is repeated without ``force``. The
    summary is read only now: ``twinbud explain`` may have added maps to it in the meantime.
    """
    with new_trust(folder / "model", replace(trusted, trust=report.trust)) as trust:
        report = replace(report, trust=trust)
        write_summary(folder / SUMMARY, replace(read_run_summary(folder), trust=report))
        rebuild_report(folder)
    return report


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
    before = images.predictions(model_folder, rows, outputs.logits_NK)
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
