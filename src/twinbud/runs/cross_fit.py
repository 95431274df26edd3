"""Out-of-fold predictions of a run: of each labelled image, by a model that was made like the run's own without it.

For each fold of the labelled images, the whole run is repeated without it, from the fine-tuning of the teacher to the
last epoch, in a folder inside the run folder. So the predictions err as the delivered model errs on new images, which
its own predictions of images that it has learned from do not. They are kept in the run folder, for every command that
needs them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from twinbud.config.schema import Fold, RunConfig
from twinbud.core.cache import reason_of
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_sealed, sealed, write_json
from twinbud.core.progress import Progress
from twinbud.core.typed_json import from_json, to_json
from twinbud.data.split_file import read_split
from twinbud.models.model_folder import open_model_folder
from twinbud.runs.inner_run import finish_inner_run
from twinbud.runs.pipeline import train
from twinbud.runs.resource_cache import ResourceCache
from twinbud.runs.run_dir import FOLDS, MARKER, OUT_OF_FOLD
from twinbud.runs.run_images import RunImages
from twinbud.trust.novelty import fit_novelty
from twinbud.trust.record import hash_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Labelled images, and what models that have not learned from them say.

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
class _Kept:
    """Content of ``out_of_fold.json``.

    Attributes:
        weights_sha256: SHA-256 of the weights of the run that was repeated.
        num_folds: Number of models.
        paths: N paths.
        logits: For each image, K numbers that restore float32 exactly.
        novelty: For each image, see ``Novelty.scores``.

    Raises:
        ValueError: The lengths do not fit together, or a path appears twice.
    """

    weights_sha256: str
    num_folds: int
    paths: tuple[str, ...]
    logits: tuple[tuple[float, ...], ...]
    novelty: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {len(self.paths), len({*self.paths}), len(self.logits), len(self.novelty)}
        if len(counts) != 1 or len({*map(len, self.logits)}) != 1:
            raise ValueError("paths, logits and novelty do not fit together")


def out_of_fold(
    config: RunConfig, images: RunImages, num_folds: int, progress: Progress, resource_cache: ResourceCache
) -> Examples:
    """Repeat a run without each fold of its labelled images, and return what these models say of them.

    The answers are written to ``out_of_fold.json`` in the run folder, and read from there by later calls. Until then
    the models stay in ``folds``, so that a call that was stopped goes on.

    Args:
        config: The settings of the finished run.
        images: Its images.
        num_folds: At least 2.
        progress: Receives progress and notes.
        resource_cache: Images that are open already.

    Raises:
        TwinbudError: See ``assign_folds`` and ``runs.pipeline.train``; the folds in the folder are of other images; or
            the answers there cannot be read.
        Stopped: The process received a signal to stop; the same call goes on.
    """
    weights_sha256 = hash_weights(config.output / "model")
    row_of = {images.image_index.rows[row].path: row for row in images.rows("train", labelled=True)}
    kept = _read_kept(config.output / OUT_OF_FOLD)
    if kept is None or (kept.weights_sha256, kept.num_folds) != (weights_sha256, num_folds):
        examples = _cross_fit(config, images, num_folds, progress, resource_cache)
        kept = _Kept(
            weights_sha256=weights_sha256,
            num_folds=num_folds,
            paths=tuple(images.image_index.rows[row].path for row in examples.rows),
            logits=tuple(map(tuple, examples.logits_NK.tolist())),
            novelty=tuple(examples.novelty_N.tolist()),
        )
        write_json(config.output / OUT_OF_FOLD, sealed(to_json(kept)))
        shutil.rmtree(config.output / FOLDS, ignore_errors=True)
    if not row_of.keys() >= {*kept.paths}:
        raise _unusable(config.output / OUT_OF_FOLD, "they are not of the labelled images in split.csv")
    return Examples(
        rows=tuple(row_of[path] for path in kept.paths),
        logits_NK=np.array(kept.logits, dtype=np.float32),
        novelty_N=np.array(kept.novelty),
        num_folds=num_folds,
    )


def _read_kept(path: Path) -> _Kept | None:
    """Read what an earlier call has found; None where there was none.

    Raises:
        TwinbudError: The file cannot be read.
    """
    try:
        if not os.path.lexists(path):
            return None
        return read_sealed(path, lambda content: from_json(_Kept, content, "predictions"))
    except (OSError, ValueError) as error:
        raise _unusable(path, reason_of(error)) from error


def _unusable(path: Path, reason: str) -> TwinbudError:
    problem = f"the out-of-fold predictions cannot be used ({reason})"
    return TwinbudError(problem, where=str(path), fix="Delete the file, and repeat the command")


def _cross_fit(
    config: RunConfig, images: RunImages, num_folds: int, progress: Progress, resource_cache: ResourceCache
) -> Examples:
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
        fix = "Delete this folder, and repeat the command"
        raise TwinbudError("the fold was made of other images", where=str(folder), fix=fix)
    inside = replace(images, split=split)
    model_folder = open_model_folder(folder / "model")
    learned, rows = inside.rows("train", labelled=True), inside.rows("test")
    novelty = fit_novelty(inside.outputs(model_folder, learned).features_ND, inside.targets(model_folder, learned))
    outputs = inside.outputs(model_folder, rows)
    return rows, outputs.logits_NK, novelty.scores(outputs.features_ND)
