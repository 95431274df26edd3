"""What a run knows before its first step, and how its images are opened."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twinbud.config.schema import RunConfig
from twinbud.core.cache import cache_folder
from twinbud.core.progress import Progress
from twinbud.data.image_store import ImageStore, load_image_store
from twinbud.data.index import ImageIndex
from twinbud.data.pixel_cache import PixelCache
from twinbud.data.source import read_index
from twinbud.data.split import Split
from twinbud.models.initialization import Initialization
from twinbud.models.student_pair import StudentPair
from twinbud.models.teacher import TeacherInfo
from twinbud.runs.resource_cache import ResourceCache, images_key, source_key
from twinbud.training.amp import PrecisionChoice
from twinbud.training.compile import Compilation
from twinbud.training.fit import LabelledImages


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is known before the first step: resolved settings, images, split, student and auxiliary."""

    config: RunConfig
    image_index: ImageIndex
    image_store: ImageStore
    split: Split
    initialization: Initialization
    teacher: TeacherInfo | None
    """To recover from or to learn from, if that is asked for (``RunConfig.teacher_use``)."""
    student_pair: StudentPair
    device: torch.device
    precision: PrecisionChoice
    compilation: Compilation

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


def decode_images(image_index: ImageIndex, config: RunConfig, progress: Progress) -> tuple[ImageIndex, ImageStore]:
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
    if cache is not None and cache.trouble is not None:
        progress.note(cache.trouble)
    return decoded


def class_indices(image_index: ImageIndex, rows: tuple[int, ...]) -> torch.Tensor:
    """Return the (N,) int64 class indices of the given rows."""
    return torch.tensor([image_index.classes.index(image_index.rows[row].label) for row in rows], dtype=torch.int64)


def labelled_images(job: Job) -> LabelledImages:
    """Return the labelled images of a run, on its device where they fit."""
    return LabelledImages(
        images_NCSS=job.image_store.rows(job.split.labelled).fitting(job.device),
        labels_N=class_indices(job.image_index, job.split.labelled).to(job.device),
        preprocessing=job.initialization.student_spec.preprocessing(job.config.training.image_size),
    )
