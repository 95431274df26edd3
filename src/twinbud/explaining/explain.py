"""Explain given images, or answers of a run's own test part, which the run's report then shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twinbud.core.errors import TwinbudError
from twinbud.core.files import require_new_folder
from twinbud.core.progress import Progress
from twinbud.explaining.compute import Chosen, compute_explanations, require_explainable
from twinbud.explaining.explanation import Explanations, MapKind
from twinbud.explaining.images import own_images
from twinbud.explaining.output import write_explanations
from twinbud.report.model import write_summary
from twinbud.runs.classifier import open_classifier
from twinbud.runs.inference import read_given_images
from twinbud.runs.report import read_run_summary, rebuild_report
from twinbud.runs.run_dir import CONFIG, EXPLANATIONS, SUMMARY

_MAX_MEGAPIXELS = 1e6
"""No limit, for images that were decoded within one before."""


def explain_images(
    folder: Path,
    paths: Sequence[Path],
    *,
    output: Path | None,
    label: str | None,
    kind: MapKind,
    skip_broken: bool,
    max_megapixels: float,
    force: bool,
    progress: Progress,
) -> Explanations:
    """Explain image files with a finished run or a model folder; see ``twinbud.explain``."""
    if output is not None:
        require_new_folder(output, force=force)
    classifier = open_classifier(folder)
    model_folder = classifier.model_folder
    require_explainable(model_folder, label, kind)
    given = read_given_images(
        paths, model_folder, skip_broken=skip_broken, max_megapixels=max_megapixels, progress=progress
    )
    chosen = Chosen(paths=tuple(row.path for row in given.rows), image_store=given.image_store)
    found, check = compute_explanations(classifier, chosen, label=label, kind=kind, progress=progress)
    explained = Explanations(explanations=found, kind=kind, weight_check=check, ignored=given.left_out, folder=output)
    if output is not None:
        write_explanations(output, explained, given.rows, max_megapixels=max_megapixels, force=force, progress=progress)
    return explained


def explain_run(
    run: Path, *, output: Path | None, label: str | None, kind: MapKind, force: bool, progress: Progress
) -> Explanations:
    """Explain answers of a run's own test part; see ``twinbud.explain``.

    Without ``output``, the maps are written into the run, and its summary and its page get them.
    """
    folder = output or run / EXPLANATIONS
    if (run / "config.json").exists() and not (run / CONFIG).exists():
        fix = "Give images to explain, or the run folder itself"
        raise TwinbudError("a model folder has no test images", where=str(run), fix=fix)
    classifier = open_classifier(run)
    model_folder = classifier.model_folder
    require_new_folder(folder, force=force)
    if output is None:
        read_run_summary(run)  # a damaged one is refused before maps are computed
    require_explainable(model_folder, label, kind)
    chosen, rows = own_images(run, model_folder, progress)
    found, check = compute_explanations(classifier, chosen, label=label, kind=kind, progress=progress)
    explained = Explanations(explanations=found, kind=kind, weight_check=check, folder=folder)
    shown = write_explanations(folder, explained, rows, max_megapixels=_MAX_MEGAPIXELS, force=force, progress=progress)
    if output is None:
        wrong_first = tuple(sorted(shown.images, key=lambda image: image.prediction == image.label))
        summary = read_run_summary(run)  # to which ``twinbud calibrate`` may have added in the meantime
        write_summary(run / SUMMARY, replace(summary, explained=replace(shown, images=wrong_first)))
        rebuild_report(run)
    return explained
