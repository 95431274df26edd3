"""Which images a finished run may be measured on: those that it never learned from, as its split.csv tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split import SplitRow


def own_test_part(image_index: ImageIndex, split: Sequence[SplitRow]) -> ImageIndex:
    """The rows of the run's own source that it held out.

    Raises:
        TwinbudError: Some of them are missing.
    """
    held_out = {row.image_path for row in split if row.split == "test"}
    rows = tuple(row for row in image_index.rows if row.path in held_out)
    missing = sorted(held_out - {row.path for row in rows})
    if missing:
        raise TwinbudError(
            "the images that the run was tested on",
            got=f"none at {first_few(missing)}",
            where=image_index.source,
            fix="Give their place with --data",
        )
    return replace(image_index, rows=rows)


def has_the_paths(image_index: ImageIndex, split: Sequence[SplitRow]) -> bool:
    """Whether a source holds what the run's own source held, by path: it may be the same set in another place."""
    return {row.path for row in image_index.rows} == {row.image_path for row in split}


def changed_images(image_index: ImageIndex, image_store: ImageStore, split: Sequence[SplitRow]) -> list[str]:
    """The images, by path, whose pixels are not those that the run saw."""
    digests = {row.image_path: row.digest for row in split if row.digest is not None}
    pairs = zip(image_index.rows, image_store.digests, strict=True)
    return [row.path for row, digest in pairs if digests.get(row.path, digest) != digest]


def never_learned_from(
    image_index: ImageIndex, image_store: ImageStore, split: Sequence[SplitRow]
) -> tuple[ImageIndex, ImageStore]:
    """Leave out, and list, images that the run may have learned from, and other images of the patients it learned from.

    Whether the labels of the training part were used does not count; patients are told apart by their ids alone.

    Raises:
        TwinbudError: Nothing is left.
    """
    digests = {row.digest for row in split if row.split == "train"}
    patients = {row.patient_id for row in split if row.split == "train"} - {None}
    seen: dict[int, str] = {}
    for index, (row, digest) in enumerate(zip(image_index.rows, image_store.digests, strict=True)):
        if digest in digests:
            seen[index] = "identical to a training image of the run"
        elif row.patient_id in patients:
            seen[index] = f"of patient '{row.patient_id}', whom the run was trained on"
    if len(seen) == len(image_index.rows):
        raise TwinbudError(
            "images that the run was not trained on",
            got="none",
            where=image_index.source,
            fix="Give other images, or evaluate without --data",
        )
    return (image_index.without(seen), image_store.without(seen)) if seen else (image_index, image_store)
