"""What a run knows before its first step, and how its images are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from twinbud.config.data_config import DataConfig
from twinbud.config.schema import INHERITING_METHODS, WHOLE_METHODS, RunConfig
from twinbud.config.teaching import TeachConfig
from twinbud.core.cache import cache_folder
from twinbud.core.progress import Progress
from twinbud.data.cross_fitting import take_fold
from twinbud.data.duplicates import blank_digests
from twinbud.data.image_store import ImageStore, load_image_store
from twinbud.data.index import ImageIndex
from twinbud.data.near_duplicates import THUMBNAIL_SIZE, NearDuplicate, find_near_duplicates, load_thumbnails
from twinbud.data.pixel_cache import PixelCache
from twinbud.data.seen_images import images_seen_by, read_seen_images, write_seen_images
from twinbud.data.source import read_index
from twinbud.data.split import Split, make_split
from twinbud.evaluation.leakage import seen_before_note
from twinbud.evaluation.predict import predict_logits
from twinbud.evaluation.predictions import Predictions
from twinbud.models.initialization import Initialization
from twinbud.models.student_pair import StudentPair
from twinbud.models.teacher import TeacherInfo
from twinbud.runs.resource_cache import ResourceCache, images_key, source_key
from twinbud.tasks.base import Task
from twinbud.training.amp import PrecisionChoice
from twinbud.training.compile import Compilation
from twinbud.training.fit import LabelledImages
from twinbud.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is known before the first step: resolved settings, images, split, student and auxiliary."""

    config: RunConfig
    image_index: ImageIndex
    image_store: ImageStore
    split: Split
    task: Task
    initialization: Initialization
    teacher: TeacherInfo | None
    """To recover from or to learn from, if that is asked for (``RunConfig.teacher_use``)."""
    student_pair: StudentPair
    device: torch.device
    precision: PrecisionChoice
    compilation: Compilation
    processes: Processes | None = None
    """Those that share the batches of training; None where this one is alone."""

    @property
    def bf16(self) -> bool:
        """Whether the student computes in bf16 autocast: where the run may, and its family gains from it."""
        family = self.initialization.student_spec.family
        return self.precision.bf16 and family.gains_from_bf16(self.student_pair.student, self.device)


def list_images(config: RunConfig, progress: Progress, resource_cache: ResourceCache) -> ImageIndex:
    """Return the images of the run's source, not opened yet."""
    return resource_cache.get_or_create("index", source_key(config), lambda: read_index(config.data, progress=progress))


def open_images(config: RunConfig, progress: Progress, resource_cache: ResourceCache) -> tuple[ImageIndex, ImageStore]:
    """Return the images that can be read, and their pixels."""
    return resource_cache.get_or_create(
        "images",
        images_key(config),
        lambda: decode_images(list_images(config, progress, resource_cache), config, progress),
    )


def decode_images(
    image_index: ImageIndex, config: RunConfig | TeachConfig, progress: Progress
) -> tuple[ImageIndex, ImageStore]:
    """Decode every image once, under a bar, after a note of what is known of their source."""
    for note in image_index.notes:
        progress.note(f"note: {note}")
    size = config.training.image_size
    cache = PixelCache(cache_folder() / "pixels", size) if config.pixel_cache else None
    with progress.bar("decoding", len(image_index.rows)) as advance:
        decoded = load_image_store(
            image_index,
            image_size=size,
            max_megapixels=config.data.max_megapixels,
            skip_broken=config.data.skip_broken,
            cache=cache,
            on_progress=advance,
        )
    for note in decoded[0].notes[len(image_index.notes) :]:
        progress.note(f"note: {note}")
    if cache is not None and cache.trouble is not None:
        progress.note(cache.trouble)
    return decoded


def open_near_pairs(
    config: RunConfig,
    image_index: ImageIndex,
    digests: Sequence[str],
    progress: Progress,
    resource_cache: ResourceCache,
) -> tuple[tuple[int, int], ...]:
    """Return the pairs of near-duplicates among the images of a run; none where the run ignores them."""
    if not config.data.groups_near_duplicates:
        return ()
    return resource_cache.get_or_create(
        "near_duplicates",
        source_key(config),
        lambda: tuple(
            (pair.first, pair.second)
            for pair in look_for_near_duplicates(image_index, digests, config.data, progress, config.pixel_cache)
        ),
    )


def look_for_near_duplicates(
    image_index: ImageIndex, digests: Sequence[str], config: DataConfig, progress: Progress, pixel_cache: bool
) -> tuple[NearDuplicate, ...]:
    """Decode thumbnails of the images, under a bar, and return their near-duplicates.

    Args:
        image_index: The images.
        digests: For each of them, the SHA-256 of its pixels.
        config: Its ``max_megapixels`` limits the images.
        progress: Shows the decoding.
        pixel_cache: Keep thumbnails in the cache folder and read them from there.
    """
    thumbnails = open_thumbnails(image_index, config, progress, pixel_cache=pixel_cache)
    return find_near_duplicates(thumbnails, digests)


def open_thumbnails(
    image_index: ImageIndex, config: DataConfig, progress: Progress, *, pixel_cache: bool
) -> np.ndarray:
    """Return thumbnails of the images, uint8 (N, 64, 64); see ``load_thumbnails``."""
    cache = PixelCache(cache_folder() / "pixels", THUMBNAIL_SIZE) if pixel_cache else None
    with progress.bar("looking for near-duplicates", len(image_index.rows)) as advance:
        return load_thumbnails(image_index, max_megapixels=config.max_megapixels, cache=cache, on_progress=advance)


def images_seen_before(config: RunConfig) -> frozenset[str]:
    """Return the checksums of the images that the networks which a run starts from have learned from without labels.

    A teacher that only gives a random student its architecture does not count.

    Raises:
        TwinbudError: A list of such images cannot be read.
    """
    model = config.model
    inherits = model.method in INHERITING_METHODS
    names = {model.teacher} if config.teacher_use or (inherits and model.selected is None) else set[str | None]()
    if model.method in WHOLE_METHODS:
        names.add(model.pretrained)
    seen = read_seen_images(model.selected) if inherits and model.selected is not None else frozenset[str]()
    return seen.union(*(images_seen_by(name) for name in names if name is not None))


def save_seen_images(folder: Path, config: RunConfig) -> None:
    """Write the list of ``images_seen_before``, unless it is empty, for evaluations on other machines."""
    if seen := images_seen_before(config):
        write_seen_images(folder, seen)


def split_images(
    config: RunConfig,
    image_index: ImageIndex,
    image_store: ImageStore,
    *,
    near_pairs: tuple[tuple[int, int], ...] = (),
    progress: Progress | None = None,
) -> Split:
    """Split the images of a run; warn, now and in the notes of the split, of test images that its teacher has seen.

    Args:
        config: The settings.
        image_index: The images.
        image_store: Their pixels.
        near_pairs: The near-duplicates among them, where they count (``open_near_pairs``).
        progress: Receives the warning; None to leave it to the notes.

    Raises:
        TwinbudError: See ``make_split`` and ``images_seen_before``.
    """
    digests, blank = image_store.digests, blank_digests(image_store)
    split = make_split(image_index, digests, config.data, seed=config.training.seed, blank=blank, near_pairs=near_pairs)
    if config.fold is not None:
        split = take_fold(split, image_index, digests, blank=blank, fold=config.fold, split_seed=config.data.split_seed)
    warning = seen_before_note([image_store.digests[row] for row in split.test], images_seen_before(config))
    if warning is None:
        return split
    if progress is not None:
        progress.note(f"warning: {warning}")
    return replace(split, notes=(*split.notes, warning))


def targets_of(job: Job, rows: tuple[int, ...]) -> torch.Tensor:
    """Return the targets of the given rows, see ``Task``."""
    return job.task.encode([job.image_index.rows[row].label for row in rows])


def with_decisions(job: Job) -> Job:
    """Return the job with a task that decides as suits the validation part or, without one, the labelled images."""

    def examples() -> tuple[np.ndarray, np.ndarray]:
        predictions = predict_rows(job, job.split.val or job.split.labelled)
        assert predictions.labels is not None
        return predictions.probabilities, predictions.labels

    return replace(job, task=job.task.decided_by(examples))


def labelled_images(job: Job) -> LabelledImages:
    """Return the labelled images of a run, on its device where they fit."""
    return LabelledImages(
        images_NCSS=job.image_store.rows(job.split.labelled).fitting(job.device),
        labels_N=targets_of(job, job.split.labelled).to(job.device),
        preprocessing=job.initialization.student_spec.preprocessing(job.config.training.image_size),
        task=job.task,
    )


def predict_rows(job: Job, rows: tuple[int, ...]) -> Predictions:
    """Predict the given rows of the image index with the student."""
    image_index, student_spec = job.image_index, job.initialization.student_spec
    logits = predict_logits(
        job.student_pair.student,
        job.image_store.rows(rows),
        preprocessing=student_spec.preprocessing(job.config.training.image_size),
    )
    return Predictions.from_logits(
        logits,
        paths=tuple(image_index.rows[row].path for row in rows),
        classes=image_index.classes,
        labels=targets_of(job, rows).numpy(),
        patient_ids=tuple(image_index.rows[row].patient_id for row in rows) if image_index.has_patients else None,
        task=job.task,
    )
