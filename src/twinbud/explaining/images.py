"""Which images of a run's own test part are explained: right and wrong answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.progress import Progress
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.image_store import load_images
from twinbud.data.index import ImageRow
from twinbud.evaluation.leakage import changed_images, own_test_part
from twinbud.evaluation.predictions import Predictions, read_predictions
from twinbud.explaining.compute import Chosen
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.evaluated_images import images_of_run
from twinbud.runs.run_dir import read_settings
from twinbud.runs.run_split import read_run_split

MAX_WRONG = 6
"""Wrong answers of the test part that are explained, the most confident ones."""
MAX_RIGHT = 6
"""Right answers of the test part that are explained, of the classes in turn."""


@nothing_left_out()
def own_images(run: Path, model_folder: ModelFolder, progress: Progress) -> tuple[Chosen, list[ImageRow]]:
    """Read some right and the most confident wrong answers of a run's test part; see ``chosen_paths``.

    Raises:
        TwinbudError: The run is not finished, or these images are missing or have changed.
    """
    settings, split = read_settings(run), read_run_split(run)
    predictions = read_predictions(run / "predictions.csv", model_folder.task)
    chosen = set(chosen_paths(predictions))
    fix = "Restore them, or give images to explain"
    try:
        data, image_index = images_of_run(model_folder, split, settings, {}, progress)
        image_index = own_test_part(image_index, split)
    except TwinbudError as error:  # its own advice is an option of evaluate
        raise TwinbudError(error.problem, where=error.where, fix=fix) from error
    if sorted(predictions.paths) != sorted(row.path for row in image_index.rows):
        problem = "the predictions are not those of the test images in split.csv"
        raise TwinbudError(problem, where=str(run / "predictions.csv"), fix="Restore both files, or give images")
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
        problem = f"test images that have changed since training: {first_few(changed)}"
        raise TwinbudError(problem, where=image_index.source, fix=fix)
    paths, labels = tuple(row.path for row in rows), tuple(row.label for row in rows)
    return Chosen(paths=paths, image_store=image_store, true_labels=labels), rows


def chosen_paths(predictions: Predictions) -> list[str]:
    """Choose images of labelled predictions: ``MAX_WRONG`` and ``MAX_RIGHT`` of the answers."""
    wrong = predictions.most_confident_mistakes(MAX_WRONG)
    assert predictions.labels is not None
    labels = predictions.asked.texts(predictions.labels)
    by_label: dict[str, list[int]] = {}
    for row in np.flatnonzero(np.isnan(predictions.mistakes)):
        by_label.setdefault(labels[row], []).append(int(row))
    in_turn = [row for rows in zip_longest(*by_label.values()) for row in rows if row is not None]
    return [predictions.paths[row] for row in (*wrong, *in_turn[:MAX_RIGHT])]
