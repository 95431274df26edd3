"""Calibrate a calibrated run for another place, on labelled images from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.config.loading import stage_config
from twinbud.config.schema import TrainingConfig
from twinbud.core.errors import TwinbudError, first_few, writes_to
from twinbud.core.progress import Progress, SilentProgress
from twinbud.core.rng import stream_seed
from twinbud.data.cross_fitting import assign_folds
from twinbud.data.duplicates import blank_digests, find_groups
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.predict import predict_outputs
from twinbud.evaluation.predictions import Predictions
from twinbud.runs.calibrate import CalibratedRun, found_shifts, save_trust
from twinbud.runs.classifier import open_classifier
from twinbud.runs.evaluated_images import EvaluatedImages, images_to_evaluate
from twinbud.runs.report import read_run_summary
from twinbud.runs.run_dir import locked, read_settings
from twinbud.runs.run_split import read_run_split
from twinbud.trust.fit import Wanted, fit_trust
from twinbud.trust.record import TrustedModel
from twinbud.trust.report import measure_trust


@nothing_left_out()
@writes_to(None)
def recalibrate_run(
    folder: Path, source: Mapping[str, Any], wanted: Wanted, progress: Progress | None = None
) -> CalibratedRun:
    """Choose temperature, prediction sets, operating points and novelty again, for the images of another place.

    Half of the images, in whole patients and sets of copies, choose; the other half measures.

    Args:
        folder: Folder of a calibrated run.
        source: Settings of DataConfig for labelled images, see ``evaluate_run``; those that the run has learned from
            are left out.
        wanted: What is asked of prediction sets.
        progress: Receives progress; silent by default.

    Raises:
        TwinbudError: The run is not calibrated; or the images cannot be used, are too few, or are its own test images.
    """
    settings = read_settings(folder)
    seed = stage_config(TrainingConfig, settings).seed
    classifier = open_classifier(folder)
    read_run_summary(folder)  # a damaged one is refused before images are decoded
    if classifier.trusted is None:
        fix = f"Run 'twinbud calibrate {folder}' first, without --data"
        raise TwinbudError("the run is not calibrated", where=str(folder), fix=fix)
    model_folder, before = classifier.model_folder, classifier.trusted
    with locked(folder):
        split = read_run_split(folder)
        images = images_to_evaluate(model_folder, split, settings, dict(source), progress or SilentProgress())
        _refuse_own_test_images(images, split)
        store, rows = images.image_store, images.image_index.rows
        everything = tuple(range(len(store)))
        outputs = predict_outputs(model_folder.model, store.rows(everything), preprocessing=model_folder.preprocessing)
        predictions = Predictions.from_logits(
            outputs.logits_NK,
            paths=tuple(row.path for row in rows),
            classes=model_folder.classes,
            labels=model_folder.task.encode([row.label for row in rows]).numpy(),
            patient_ids=tuple(row.patient_id for row in rows) if images.image_index.has_patients else None,
            task=model_folder.task,
        )
        chooses_N = _half(images, seed)
        examples, others = (_part(predictions, part) for part in (chooses_N, ~chooses_N))
        scores_N = before.novelty.scores(outputs.features_ND)
        trust = fit_trust(
            examples,
            scores_N[chooses_N],
            wanted,
            source="data",
            num_folds=None,
            weights_sha256=before.trust.weights_sha256,
        )
        trusted = TrustedModel(trust=trust, novelty=before.novelty)
        measured = tuple(np.flatnonzero(~chooses_N).tolist())
        trust = replace(trust, shifts=found_shifts(store, measured, model_folder, trusted))
        report = measure_trust(trust, others, trusted.apply(others, outputs.features_ND[~chooses_N]), seed=seed)
        report = save_trust(folder, trusted, report)
    return CalibratedRun(folder=folder, report=report)


def _refuse_own_test_images(images: EvaluatedImages, split: Sequence[SplitRow]) -> None:
    """Refuse test images of the run: they measure it."""
    tested = {row.digest for row in split if row.split in ("test", "held-out")}
    own = [
        row.path
        for row, digest in zip(images.image_index.rows, images.image_store.digests, strict=True)
        if digest in tested
    ]
    if own:
        raise TwinbudError(
            f"{len(own)} of the given images are test images of the run ({first_few(own)});"
            " calibration must not use them",
            where=images.image_index.source,
            fix="Give images of another place, or leave out --data",
        )


def _half(images: EvaluatedImages, seed: int) -> np.ndarray:
    """Return which images choose, (N,) bool; an image that no fold may lack chooses, too."""
    rows, store = images.image_index.rows, images.image_store
    groups = find_groups(rows, store.digests, blank=blank_digests(store), keep_duplicates_together=True).numbers
    names = ["" if images.image_index.task == "multi-label" else row.label for row in rows]
    if max(len(set(groups[[name == label for name in names]].tolist())) for label in set(names)) < 2:
        raise TwinbudError(
            "every class has images of only one patient (or picture);"
            " calibration needs two, one to calibrate with and one to check",
            where=images.image_index.source,
            fix="Give more labelled images",
        )
    return assign_folds(np.array(names), groups, 2, stream_seed("trust", seed, "half")) != 2


def _part(predictions: Predictions, chosen_N: np.ndarray) -> Predictions:
    places = np.flatnonzero(chosen_N)
    assert predictions.labels is not None
    assert predictions.logits is not None
    ids = predictions.patient_ids
    return Predictions.from_logits(
        predictions.logits[places],
        paths=tuple(predictions.paths[place] for place in places),
        classes=predictions.classes,
        labels=predictions.labels[places],
        patient_ids=None if ids is None else tuple(ids[place] for place in places),
        task=predictions.task,
    )
