"""Which images a finished run may be evaluated on: those that it did not learn from, according to its split.csv.

And which of them its teacher has seen before, without labels, according to the list beside the teacher's weights.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.identity import patient_key, visible_text
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex
from twinbud.data.split_file import SplitRow


def own_test_part(image_index: ImageIndex, split: Sequence[SplitRow]) -> ImageIndex:
    """Return the rows of the run's own source that it held out.

    Raises:
        TwinbudError: Some of them are missing.
    """
    held_out = {row.image_path for row in split if row.split == "test"}
    rows = tuple(row for row in image_index.rows if row.path in held_out)
    missing = sorted(held_out - {row.path for row in rows})
    if missing:
        raise TwinbudError(
            f"test images of the run are missing: {first_few(map(visible_text, missing), 3)}",
            where=image_index.source,
            fix="Restore them, or name the folder or CSV that has them with --data",
        )
    return replace(image_index, rows=rows)


def has_the_paths(image_index: ImageIndex, split: Sequence[SplitRow]) -> bool:
    """Return whether a source has exactly the paths of the run's own, which may be the same set elsewhere."""
    return {row.path for row in image_index.rows} == {row.image_path for row in split}


def changed_images(image_index: ImageIndex, image_store: ImageStore, split: Sequence[SplitRow]) -> list[str]:
    """Return the paths of the images whose pixels differ from those that the run read.

    An image without a checksum counts as unchanged.
    """
    digests = {row.image_path: row.digest for row in split if row.digest is not None}
    pairs = zip(image_index.rows, image_store.digests, strict=True)
    return [row.path for row, digest in pairs if digests.get(row.path, digest) != digest]


def never_learned_from(
    image_index: ImageIndex, image_store: ImageStore, split: Sequence[SplitRow]
) -> tuple[ImageIndex, ImageStore]:
    """Leave out, and list, the images of the run's training part and all images of its patients.

    Whether the labels of the training part were used makes no difference. Patients are compared by ``patient_key``,
    so that ``1`` and ``1.0`` are training patients where the run knew ``001``.

    Raises:
        TwinbudError: No image is left.
    """
    digests = {row.digest for row in split if row.split == "train"} - {None}
    patients = {patient_key(row.patient_id): row.patient_id for row in split if row.split == "train"}
    seen: dict[int, str] = {}
    num_identical = 0
    for index, (row, digest) in enumerate(zip(image_index.rows, image_store.digests, strict=True)):
        key = patient_key(row.patient_id)
        if digest in digests:
            seen[index] = "identical to a training image of the run"
            num_identical += 1
        elif key is not None and key in patients:
            seen[index] = f"of training patient {visible_text(row.patient_id or '')}"
            if row.patient_id != patients[key]:
                seen[index] += f", spelled {visible_text(patients[key] or '')} in the run"
    if len(seen) == len(image_index.rows):
        counts = f"{num_identical} identical to training images, {len(seen) - num_identical} of training patients"
        raise TwinbudError(
            f"all {len(seen)} images are excluded: {counts}",
            where=image_index.source,
            fix="Give images of other patients, or leave out --data to evaluate on the run's own test part",
        )
    return (image_index.without(seen), image_store.without(seen)) if seen else (image_index, image_store)


def seen_before_note(digests: Sequence[str], seen: Collection[str]) -> str | None:
    """Return a warning about test images that the network's teacher has learned from; None if there are none.

    Args:
        digests: SHA-256 of the pixels of each test image.
        seen: Those of the images that the teacher has learned from without labels (``data.seen_images``).
    """
    count = sum(digest in seen for digest in digests)
    if not count:
        return None
    which = f"{count:,} of the {len(digests):,} test images {'was' if count == 1 else 'were'} among the images"
    return f"{which} that the teacher learned from, without labels: these figures may be optimistic"
