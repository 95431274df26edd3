"""The images that a finished run is evaluated on: its own test part, or other labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import columns_of, parse_data
from twinbud.config.fields import option_of
from twinbud.config.loading import stage_config
from twinbud.config.task import Aggregate
from twinbud.core.errors import TwinbudError, first_few, images_named
from twinbud.core.progress import Progress
from twinbud.data.image_store import ImageStore, load_image_store
from twinbud.data.index import ImageIndex, unknown_labels
from twinbud.data.patient_salt import default_salt_file, is_key, require_one_salt
from twinbud.data.source import read_index
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.leakage import (
    changed_images,
    has_the_paths,
    never_learned_from,
    own_test_part,
)
from twinbud.models.model_folder import ModelFolder

OWN_IMAGES = "images of the run,"
"""What stands in errors before the place that a run has saved; no option gives it."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedImages:
    """The images to evaluate."""

    image_index: ImageIndex
    image_store: ImageStore
    part: str
    """Name of the set of images, as part of a sentence."""
    num_listed: int
    """How many these are, including those left out."""
    num_unreadable: int
    aggregate: Aggregate
    num_seen: int = 0
    """Left out since the run has seen them, or other images of their patients, in training."""

    @property
    def note(self) -> str:
        """A sentence that states which images were evaluated, and how many were left out."""
        if not self.num_unreadable + self.num_seen:
            return f"Evaluated on {self.part}."
        reasons = [f"{self.num_seen} of the run's training images or patients"] if self.num_seen else []
        reasons += [f"{self.num_unreadable} unreadable"] if self.num_unreadable else []
        part = self.part.removeprefix("all of ")
        kept = f"{len(self.image_index.rows):,} of the {self.num_listed:,} images of {part}"
        return f"Evaluated on {kept}; {self.num_unreadable + self.num_seen:,} left out ({', '.join(reasons)})."


def images_to_evaluate(
    model_folder: ModelFolder,
    split: Sequence[SplitRow],
    settings: dict[str, Any],
    source: dict[str, Any],
    progress: Progress,
) -> EvaluatedImages:
    """Decode the images to evaluate a finished run on.

    Args:
        model_folder: Its model.
        split: Content of its split.csv.
        settings: Its settings.
        source: Settings of DataConfig, see ``evaluate_run``.
        progress: Receives progress and notes.

    Raises:
        TwinbudError: Images are missing or have changed, all of them were seen in training, no label of the others is
            known, or the model does not have one of their classes.
    """
    is_other = "data" in source
    data, image_index = images_of_run(model_folder, split, settings, source, progress)
    for note in image_index.notes:
        progress.note(f"note: {note}")
    if not is_other or has_the_paths(image_index, split):
        images = _decode(model_folder, own_test_part(image_index, split), _own_part(split), data, progress)
        changed = changed_images(images.image_index, images.image_store, split)
        if not changed:
            return images
        if not is_other:
            raise TwinbudError(
                f"test images that have changed since training: {first_few(changed)}",
                where=image_index.source,
                fix="Restore them, or evaluate images in another place with --data",
            )
    image_index, part = _other_part(image_index)
    patients = (row.patient_id for row in image_index.rows)
    require_one_salt((row.patient_id for row in split), patients, where=image_index.source)
    images = _decode(model_folder, image_index, part, data, progress)
    image_index, image_store = never_learned_from(images.image_index, images.image_store, split)
    if model_folder.task.encode([row.label for row in image_index.rows]).isnan().all():
        fix = "Give images of which at least one label is known"
        raise TwinbudError("no label of any image is known", where=image_index.source, fix=fix)
    num_seen = len(images.image_index.rows) - len(image_index.rows)
    return replace(images, image_index=image_index, image_store=image_store, num_seen=num_seen)


def images_of_run(
    model_folder: ModelFolder,
    split: Sequence[SplitRow],
    settings: dict[str, Any],
    source: dict[str, Any],
    progress: Progress,
) -> tuple[DataConfig, ImageIndex]:
    """List the images of a run, or those that ``source`` names, to be read as the run read its own."""
    shared = {**model_folder.reading.to_json(), "task": model_folder.task.name}
    shared["patient_salt"] = source.get("patient_salt", _salt_of(settings, split))
    if "data" not in source:
        data = stage_config(DataConfig, {**settings, **source, **shared})
        with images_named(OWN_IMAGES, fix="Restore them, or name the folder or CSV that has them with --data"):
            return data, read_index(data, to_train=False, progress=progress)
    saved = _saved_columns(settings, source)
    data = stage_config(DataConfig, {**saved, **source, **shared})
    try:
        return data, read_index(data, to_train=False, progress=progress)
    except TwinbudError as error:
        options = {option_of(name): name for name in saved if name.endswith("_column") and name not in source}
        if error.where not in options:
            raise
        fix = f"Name the one of this CSV with {error.where}"  # the name is the run's: no option can be left out
        if options[error.where] in ("patient_column", "split_column"):
            fix += f" ({error.where} {getattr(DataConfig(), options[error.where])} if it has none)"
        raise TwinbudError(f"{error.problem}; it is one of the run's", where=error.where, fix=fix) from error


def _saved_columns(settings: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Return what a run knows of other images: ``aggregate``, and its columns where these can have the same."""
    names = ["aggregate"]
    if parse_data(str(source["data"])).kind == parse_data(str(settings.get("data"))).kind:
        names += columns_of(str(source["data"]))
    if "label_column" in source:  # which the run's label_columns would replace
        names = [name for name in names if name != "label_columns"]
    return {name: settings[name] for name in names if name in settings}


def _salt_of(settings: dict[str, Any], split: Sequence[SplitRow]) -> Path | str | None:
    """Return the file with the salt of a run; None if it has hashed no patient."""
    if not any(is_key(row.patient_id) for row in split):
        return None
    return settings.get("patient_salt") or default_salt_file(settings["data"])


def _own_part(split: Sequence[SplitRow]) -> str:
    if any(row.split == "held-out" for row in split):
        return "the fifth of the training part that the run held out"
    return "the test part of the run's own split"


def _other_part(image_index: ImageIndex) -> tuple[ImageIndex, str]:
    if not image_index.has_splits:
        return image_index, f"all of {image_index.source}"
    rows = tuple(row for row in image_index.rows if row.split == "test")
    if not rows:
        raise TwinbudError(
            "the images have train or val splits but no test split",
            where=image_index.source,
            fix="Add a test split, or remove the splits to evaluate all images",
        )
    return replace(image_index, rows=rows), f"the test part of {image_index.source}"


def _decode(
    model_folder: ModelFolder, image_index: ImageIndex, part: str, data: DataConfig, progress: Progress
) -> EvaluatedImages:
    """Decode every image, after a check that the model has its class."""
    if unknown := unknown_labels(image_index.rows, model_folder.classes):
        raise TwinbudError(
            f"unknown classes: {first_few(unknown)}; the model knows {first_few(model_folder.classes, 20)}",
            where=image_index.source,
            fix="Rename the class as the model spells it, or leave its images out",
        )
    with progress.bar("decoding", len(image_index.rows)) as advance:
        readable, image_store = load_image_store(
            image_index,
            image_size=model_folder.preprocessing.image_size,
            max_megapixels=data.max_megapixels,
            skip_broken=data.skip_broken,
            on_progress=advance,
        )
    num_listed = len(image_index.rows)
    return EvaluatedImages(
        image_index=readable,
        image_store=image_store,
        part=part,
        num_listed=num_listed,
        num_unreadable=num_listed - len(readable.rows),
        aggregate=data.aggregate,
    )
