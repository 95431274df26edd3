"""The images that an exported file is compared on: the test part of its run, or generated ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from twinbud.core.errors import TwinbudError
from twinbud.core.progress import Progress
from twinbud.data.formats.base import nothing_left_out
from twinbud.data.formats.decoding import digest, without_warnings
from twinbud.data.image_loading import decode_row
from twinbud.data.image_store import load_images
from twinbud.data.index import ImageRow, evenly
from twinbud.data.phantom import CLASSES, phantom_slice
from twinbud.data.preprocessing import resize
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.leakage import own_test_part
from twinbud.models.model_folder import ModelFolder
from twinbud.runs.evaluated_images import images_of_run
from twinbud.runs.run_dir import read_settings
from twinbud.runs.run_split import read_run_split

MAX_TEST_IMAGES = 2000
"""Test images that are compared; of more, as many at equal distances."""
MAX_CALIBRATION_IMAGES = 256
"""Training images from which int8 takes the ranges of the activations."""
FROM_RUN = "export RUN/model, which is checked on generated images"


class TestPartImages:
    """The test images of a run at full resolution, decoded anew each time, and its training images."""

    def __init__(
        self,
        rows: Sequence[ImageRow],
        labels: np.ndarray,
        training: Sequence[ImageRow],
        digests: Mapping[str, str | None],
        max_megapixels: float,
        progress: Progress,
        note: str,
    ) -> None:
        self.labels, self.note = labels, note
        self._rows, self._training, self._digests = rows, training, digests
        self._max_megapixels, self._progress = max_megapixels, progress

    @classmethod
    def of(cls, folder: Path, model_folder: ModelFolder, progress: Progress) -> TestPartImages:
        """List the images of a run, and check that all of its test part are there."""
        split, settings = read_run_split(folder), read_settings(folder)
        try:
            data, index = images_of_run(model_folder, split, settings, {}, progress)
            rows = own_test_part(index, split).rows
        except TwinbudError as error:  # its own advice is an option of evaluate
            raise TwinbudError(error.problem, where=error.where, fix=f"Restore them, or {FROM_RUN}") from error
        chosen = evenly(rows, MAX_TEST_IMAGES)
        which = "all" if len(chosen) == len(rows) else f"{len(chosen):,} of the"
        trained_on = {row.image_path for row in split if row.split == "train"}
        return cls(
            chosen,
            model_folder.task.encode([row.label for row in chosen]).numpy(),
            evenly([row for row in index.rows if row.path in trained_on], MAX_CALIBRATION_IMAGES),
            _digests(split),
            data.max_megapixels,
            progress,
            f"Compared with torch on {which} {len(rows):,} test images of the run, and on noise of other sizes.",
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._progress.bar("comparing with torch", len(self._rows)) as advance:
            for number, row in enumerate(self._rows, start=1):
                yield self._decode(row)
                advance(number)

    def _decode(self, row: ImageRow) -> np.ndarray:
        with nothing_left_out(), without_warnings():
            image = decode_row(row, self._max_megapixels)
        if self._digests.get(row.path) not in (None, digest(image)):
            fix = f"Restore it, or {FROM_RUN}"
            raise TwinbudError("the test image has changed since training", where=row.path, fix=fix)
        return image

    def calibration(self, image_size: int) -> np.ndarray:
        """Return training images of the run, uint8 (N, 3, S, S)."""
        image_store, _ = load_images(
            [row.image for row in self._training],
            image_size=image_size,
            max_megapixels=self._max_megapixels,
            skip_broken=True,
        )
        return image_store.tensor(range(len(image_store))).numpy()


class GeneratedImages:
    """Slices of the phantom set, whole, cut and reduced, for a model folder whose own images are not known."""

    labels = None
    note = "Compared with torch on generated images, since a model folder has no images of its own."

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, name in enumerate(CLASSES):
            image = np.repeat(phantom_slice(number, 0, name)[:, :, None], 3, axis=2)
            yield from (image, image[:, 40 * number :], image[20 : 50 + 30 * number], resize(image, 64))


def _digests(split: Iterable[SplitRow]) -> dict[str, str | None]:
    return {row.image_path: row.digest for row in split}
