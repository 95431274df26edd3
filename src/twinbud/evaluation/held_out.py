"""Which images a finished run may be measured on: those that it never learned from, as its split.csv tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinbud.data.pixels import Pixels
from twinbud.data.rows import Catalog
from twinbud.data.split import SplitRow
from twinbud.errors import TwinbudError, first_few


def own_test_part(catalog: Catalog, split: Sequence[SplitRow]) -> Catalog:
    """The rows of the run's own source that it held out.

    Raises:
        TwinbudError: Some of them are missing.
    """
    held_out = {row.image_path for row in split if row.split == "test"}
    rows = tuple(row for row in catalog.rows if row.path in held_out)
    missing = sorted(held_out - {row.path for row in rows})
    if missing:
        raise TwinbudError(
            "the images that the run was tested on",
            got=f"none at {first_few(missing)}",
            where=catalog.source,
            fix="Give their place with --data",
        )
    return replace(catalog, rows=rows)


def has_the_paths(catalog: Catalog, split: Sequence[SplitRow]) -> bool:
    """Whether a source holds what the run's own source held, by path: it may be the same set in another place."""
    return {row.path for row in catalog.rows} == {row.image_path for row in split}


def changed_images(catalog: Catalog, pixels: Pixels, split: Sequence[SplitRow]) -> list[str]:
    """The images, by path, whose pixels are not those that the run saw."""
    digests = {row.image_path: row.digest for row in split if row.digest is not None}
    pairs = zip(catalog.rows, pixels.digests, strict=True)
    return [row.path for row, digest in pairs if digests.get(row.path, digest) != digest]


def never_learned_from(catalog: Catalog, pixels: Pixels, split: Sequence[SplitRow]) -> tuple[Catalog, Pixels]:
    """Leave out, and list, images that the run may have learned from, and other images of the patients it learned from.

    Whether the labels of the training part were used does not count; patients are told apart by their ids alone.

    Raises:
        TwinbudError: Nothing is left.
    """
    digests = {row.digest for row in split if row.split == "train"}
    patients = {row.patient_id for row in split if row.split == "train"} - {None}
    seen: dict[int, str] = {}
    for index, (row, digest) in enumerate(zip(catalog.rows, pixels.digests, strict=True)):
        if digest in digests:
            seen[index] = "identical to a training image of the run"
        elif row.patient_id in patients:
            seen[index] = f"of patient '{row.patient_id}', whom the run was trained on"
    if len(seen) == len(catalog.rows):
        raise TwinbudError(
            "images that the run was not trained on",
            got="none",
            where=catalog.source,
            fix="Give other images, or evaluate without --data",
        )
    return (catalog.without(seen), pixels.without(seen)) if seen else (catalog, pixels)
