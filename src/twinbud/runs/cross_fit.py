"""Out-of-fold predictions of a run: of each labelled image, by a model that was made like the run's own without it.

For each fold of the labelled images, the whole run is repeated without it, from the fine-tuning of the teacher to the
last epoch, in a folder inside the run folder. So the predictions err as the delivered model errs on new images, which
its own predictions of images that it has learned from do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from twinbud.config.schema import Fold, RunConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import Progress
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split_file import SplitRow, read_split
from twinbud.evaluation.predict import Outputs, predict_outputs
from twinbud.models.model_folder import ModelFolder, open_model_folder
from twinbud.runs.inner_run import finish_inner_run
from twinbud.runs.pipeline import train
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_dir import FOLDS, MARKER
from twinbud.trust.novelty import fit_novelty


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images with labels, and what models that have not learned from them say.

    Attributes:
        rows: N rows of the index.
        logits_NK: (N, K) float32.
        novelty_N: (N,) float64, see ``Novelty.scores``.
        num_folds: Number of models; None if the delivered one has made all predictions.
    """

    rows: tuple[int, ...]
    logits_NK: np.ndarray
    novelty_N: np.ndarray
    num_folds: int | None


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


def cross_fit(
    config: RunConfig, images: RunImages, num_folds: int, progress: Progress, resource_cache: ResourceCache
) -> Examples:
    """Repeat a run without each fold of its labelled images, and return what these models say of them.

    Folds that an earlier call has finished are not repeated; the caller removes their folders.

    Args:
        config: The settings of the finished run.
        images: Its images.
        num_folds: At least 2.
        progress: Receives progress and notes.
        resource_cache: Images that are open already.

    Raises:
        TwinbudError: See ``assign_folds`` and ``runs.pipeline.train``; or the folds in the folder are of other images.
        Stopped: The process received a signal to stop; the same call goes on.
    """
    parts: list[tuple[tuple[int, ...], np.ndarray, np.ndarray]] = []
    for number in range(1, num_folds + 1):
        fold = _fold_config(config, number, num_folds)
        progress.note(f"fold {number} of {num_folds}")
        execute = partial(train, progress=progress, resource_cache=resource_cache)
        finish_inner_run(fold, execute, option=f"fold {number} of {num_folds}")
        parts.append(_read_fold(fold.output, images))
    rows, logits, novelty = zip(*parts, strict=True)
    return Examples(
        rows=tuple(row for part in rows for row in part),
        logits_NK=np.concatenate(logits),
        novelty_N=np.concatenate(novelty),
        num_folds=num_folds,
    )


def _fold_config(config: RunConfig, number: int, num_folds: int) -> RunConfig:
    folder = config.output / FOLDS / f"{number}-of-{num_folds}"
    return replace(
        config,
        output=folder,
        fold=Fold(number=number, count=num_folds),
        force=False,
        resume=(folder / MARKER).exists(),
        measure_leak=False,
    )


def _read_fold(folder: Path, images: RunImages) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Return the rows of the fold, and logits and novelty of its images."""
    split = read_split(folder / "split.csv")
    if [(row.image_path, row.digest) for row in split] != [(row.image_path, row.digest) for row in images.split]:
        fix = "Delete this folder, and calibrate again"
        raise TwinbudError("the fold was made of other images", where=str(folder), fix=fix)
    inside = replace(images, split=split)
    model_folder = open_model_folder(folder / "model")
    learned, rows = inside.rows("train", labelled=True), inside.rows("test")
    novelty = fit_novelty(inside.outputs(model_folder, learned).features_ND, inside.targets(model_folder, learned))
    outputs = inside.outputs(model_folder, rows)
    return rows, outputs.logits_NK, novelty.scores(outputs.features_ND)
