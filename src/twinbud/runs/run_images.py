"""The images of a finished run, opened again: what models say of them, and their targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError, first_few, images_named
from twinbud.core.progress import Progress
from twinbud.data.identity import patient_key
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.bootstrap import unit_of_each_image
from twinbud.evaluation.predict import Outputs, predict_outputs
from twinbud.evaluation.predictions import Predictions
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.context import open_images
from twinbud.runs.evaluated_images import OWN_IMAGES
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_split import read_run_split


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The images of a finished run, decoded again.

    Attributes:
        image_index: All of them.
        image_store: Their pixels.
        split: A row for each image of the index.
    """

    image_index: ImageIndex
    image_store: ImageStore
    split: tuple[SplitRow, ...]

    def rows(self, part: str, *, labelled: bool | None = None) -> tuple[int, ...]:
        """Return the rows of a part, all or only those whose labels are used in training."""
        return tuple(
            index for index, row in enumerate(self.split) if row.split == part and labelled in (None, row.labelled)
        )

    def outputs(self, model_folder: ModelFolder, rows: Iterable[int]) -> Outputs:
        """Compute what a model says of some images."""
        images = self.image_store.rows(tuple(rows))
        return predict_outputs(model_folder.model, images, preprocessing=model_folder.preprocessing)

    def targets(self, model_folder: ModelFolder, rows: Iterable[int]) -> np.ndarray:
        """Return the targets of some images, see ``Task.encode``."""
        return model_folder.task.encode([self.image_index.rows[row].label for row in rows]).numpy()

    def patients(self, rows: tuple[int, ...]) -> np.ndarray:
        """Return the number of each image's patient, (N,) int; an image without a known one has its own number."""
        return unit_of_each_image([patient_key(self.image_index.rows[row].patient_id) for row in rows], len(rows))

    def predictions(self, model_folder: ModelFolder, rows: tuple[int, ...], logits_NK: np.ndarray) -> Predictions:
        """Return labelled predictions of some images, from (N, K) logits."""
        known = [self.image_index.rows[row] for row in rows]
        return Predictions.from_logits(
            logits_NK,
            paths=tuple(row.path for row in known),
            classes=model_folder.classes,
            labels=self.targets(model_folder, rows),
            patient_ids=tuple(row.patient_id for row in known) if self.image_index.has_patients else None,
            task=model_folder.task,
        )


def open_run_images(config: RunConfig, progress: Progress, resource_cache: ResourceCache) -> RunImages:
    """Decode the images of a finished run, and require that they are those that it read.

    Args:
        config: Its settings.
        progress: Shows the decoding.
        resource_cache: Images that are open already.

    Raises:
        TwinbudError: Images are missing, or have changed.
    """
    fix = "Restore the images and their labels, or train again"
    with images_named(OWN_IMAGES, fix):
        image_index, image_store = open_images(config, progress, resource_cache)
    by_path = {row.image_path: row for row in read_run_split(config.output)}
    split: list[SplitRow] = []
    found = {row.path for row in image_index.rows}
    changed = [path for path in by_path if path not in found]
    for row, digest in zip(image_index.rows, image_store.digests, strict=True):
        known = by_path.get(row.path)
        if known is None or known.digest not in (None, digest) or known.label != row.label:
            changed.append(row.path)
        else:
            split.append(known)
    if changed:
        problem = f"images that are not those of the run: {first_few(changed)}"
        raise TwinbudError(problem, where=image_index.source, fix=fix)
    return RunImages(image_index=image_index, image_store=image_store, split=tuple(split))
