"""Which images are explained: those that are given, or right and wrong answers of a run's own test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from twinbud.core.csv_files import read_cells
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.progress import Progress
from twinbud.data.image_store import load_images
from twinbud.data.index import IgnoredFile, ImageRow
from twinbud.data.split_file import read_split
from twinbud.evaluation.leakage import changed_images, own_test_part
from twinbud.explaining.compute import Chosen
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.evaluated_images import images_of_run
from twinbud.runs.inference import frames_to_predict
from twinbud.runs.run_dir import read_settings

MAX_WRONG = 6
"""Wrong answers of the test part that are explained, the most confident ones."""
MAX_RIGHT = 6
"""Right answers of the test part that are explained, of the classes in turn."""


def given_images(
    paths: Sequence[Path], model_folder: ModelFolder, *, skip_broken: bool, max_megapixels: float, progress: Progress
) -> tuple[Chosen, list[ImageRow], tuple[IgnoredFile, ...]]:
    """Read image files, and folders of them.

    Returns:
        The images, their rows, and the files that were left out.

    Raises:
        TwinbudError: There is no image, or one cannot be read and ``skip_broken`` is off.
    """
    frames = frames_to_predict(paths, model_folder.reading, progress)
    with progress.bar("decoding", len(frames.rows)) as advance:
        image_store, broken = load_images(
            [row.image for row in frames.rows],
            names=[row.path for row in frames.rows],
            image_size=model_folder.preprocessing.image_size,
            max_megapixels=max_megapixels,
            skip_broken=skip_broken,
            on_progress=advance,
        )
    rows = [row for index, row in enumerate(frames.rows) if index not in broken]
    unreadable = (IgnoredFile(path=frames.rows[index].path, reason=reason) for index, reason in broken.items())
    chosen = Chosen(paths=tuple(row.path for row in rows), image_store=image_store)
    return chosen, rows, (*frames.left_out, *unreadable)


def own_images(run: Path, model_folder: ModelFolder, progress: Progress) -> tuple[Chosen, list[ImageRow]]:
    """Read some right and the most confident wrong answers of a run's test part; see ``chosen_paths``.

    Raises:
        TwinbudError: The run is not finished, or these images are missing or have changed.
    """
    settings, split = read_settings(run), read_split(run / "split.csv")
    chosen = set(chosen_paths(run / "predictions.csv", model_folder))
    data, image_index = images_of_run(model_folder, split, settings, {}, progress)
    fix = "Restore them, or give images to explain"
    try:
        image_index = own_test_part(image_index, split)
    except TwinbudError as error:  # its own advice is an option of evaluate
        raise TwinbudError(error.problem, where=error.where, fix=fix) from error
    image_index = replace(image_index, rows=tuple(row for row in image_index.rows if row.path in chosen))
    rows = list(image_index.rows)
    image_store, _ = load_images(
        [row.image for row in rows],
        names=[row.path for row in rows],
        image_size=model_folder.preprocessing.image_size,
        max_megapixels=data.max_megapixels,
        skip_broken=False,
    )
    if changed := changed_images(image_index, image_store, split):
        problem = f"{len(changed)} test images have changed since training ({first_few(changed)})"
        raise TwinbudError(problem, where=image_index.source, fix=fix)
    paths, labels = tuple(row.path for row in rows), tuple(row.label for row in rows)
    return Chosen(paths=paths, image_store=image_store, true_labels=labels), rows


def chosen_paths(predictions_file: Path, model_folder: ModelFolder) -> list[str]:
    """Choose images by a run's ``predictions.csv``: ``MAX_WRONG`` and ``MAX_RIGHT`` of its answers.

    Raises:
        TwinbudError: The file is missing or is not of this model.
    """
    task = model_folder.task
    columns = [f"probability_{name}" for name in model_folder.classes]
    cells = [row for _, row in read_cells(predictions_file, ("path", "label", *columns), exact=("path", "label"))]
    labels = [row["label"] for row in cells]
    try:
        probabilities_NC = np.array([[float(row[name]) for name in columns] for row in cells])
        mistakes_N = task.mistakes(probabilities_NC, task.encode(labels).numpy())
    except ValueError as error:
        fix = "Give images to explain, or the run as 'twinbud train' wrote it"
        raise TwinbudError(f"the predictions cannot be read ({error})", where=str(predictions_file), fix=fix) from error
    is_wrong_N = ~np.isnan(mistakes_N)
    wrong = np.flatnonzero(is_wrong_N)
    wrong = wrong[np.argsort(-mistakes_N[wrong], kind="stable")][:MAX_WRONG]
    by_label: dict[str, list[int]] = {}
    for row in np.flatnonzero(~is_wrong_N):
        by_label.setdefault(labels[row], []).append(int(row))
    in_turn = [row for rows in zip_longest(*by_label.values()) for row in rows if row is not None]
    return [cells[row]["path"] for row in (*wrong, *in_turn[:MAX_RIGHT])]
