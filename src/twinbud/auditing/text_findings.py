"""Which images of a set hold text-like marks, and whether these depend on the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from twinbud.auditing.facts import FileFacts
from twinbud.auditing.text_marks import Box, text_boxes
from twinbud.core.progress import Progress
from twinbud.core.rng import numpy_stream
from twinbud.data.formats.decoding import ImageFile, read_file, without_warnings
from twinbud.data.image_loading import load_in_threads
from twinbud.data.index import ImageRef, ImageRow

NUM_DRAWS = 9999
"""Random tables that the shares of the classes are compared with: the least p-value is 1 in 10,000."""


@dataclass(frozen=True, kw_only=True)
class TextFindings:
    """Text-like marks in the pixels of a set.

    Attributes:
        boxes: The lines of marks of each image that has some, by its index, in pixels of the image.
        num_by_class: For each class, how many images have marks.
        p_value: How often shares as unequal as these come about where marks do not depend on the class; of patients or
            groups of images. None where there is nothing to compare: no marks, marks in all images, or one class.
        undeclared: Images with marks whose DICOM header says that there are none (BurnedInAnnotation is NO).
    """

    boxes: Mapping[int, tuple[Box, ...]]
    num_by_class: Mapping[str, int]
    p_value: float | None
    undeclared: tuple[int, ...]


def find_text(
    rows: Sequence[ImageRow],
    facts: Sequence[FileFacts],
    groups: np.ndarray,
    *,
    max_megapixels: float,
    progress: Progress,
) -> TextFindings:
    """Decode every image at full resolution and look for text-like marks. No text is read.

    Args:
        rows: The images, all of which can be read.
        facts: Those of each image's file.
        groups: (N,) int; images of one patient, and copies, have one number.
        max_megapixels: Largest image to decode, in millions of pixels.
        progress: Shows how many images were read.

    Raises:
        BrokenImageError: An image cannot be read any more.
    """
    load = partial(_boxes_of_file, max_megapixels=max_megapixels)
    found: dict[int, tuple[Box, ...]] = {}
    with progress.bar("looking for text in the pixels", len(rows)) as advance, without_warnings():
        images, names = [row.image for row in rows], [row.path for row in rows]
        for index, boxes in enumerate(load_in_threads(load, images, names)):
            if boxes:
                found[index] = boxes
            advance(index + 1)
    labels = [row.label for row in rows]
    marked = np.zeros(len(rows), bool)
    marked[list(found)] = True
    return TextFindings(
        boxes=found,
        num_by_class={label: sum(labels[index] == label for index in found) for label in sorted(set(labels))},
        p_value=dependence(marked, labels, groups),
        undeclared=tuple(index for index in found if facts[index].burned_in == "NO"),
    )


def dependence(marked: np.ndarray, labels: Sequence[str], groups: np.ndarray) -> float | None:
    """Return the p-value of the hypothesis that marks do not depend on the class.

    The test is exact but for sampling: with the margins given, the marked groups of each class are distributed
    multivariate hypergeometrically, and Pearson's chi-squared says how unequal a table is.

    Args:
        marked: (N,) bool.
        labels: The class of each image.
        groups: (N,) int; a group counts once, as marked if one of its images is, in the class of its first image.

    Returns:
        From ``1 / (1 + NUM_DRAWS)`` to 1; None if all groups are marked, none is, or there is one class.
    """
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    is_marked = np.bincount(numbers, marked) > 0
    classes = np.unique(np.asarray(labels)[first], return_inverse=True)[1]
    sizes, found = np.bincount(classes), np.bincount(classes, is_marked).astype(int)
    if len(sizes) < 2 or found.sum() in (0, sizes.sum()):
        return None
    draws = numpy_stream("audit", 0, "text").multivariate_hypergeometric(sizes, found.sum(), size=NUM_DRAWS)
    expected = sizes * (found.sum() / sizes.sum())
    # with fixed margins, chi-squared is a constant times this sum
    reached, drawn = (((counts - expected) ** 2 / expected).sum(-1) for counts in (found, draws))
    return float((1 + (drawn >= reached - 1e-9).sum()) / (1 + NUM_DRAWS))


def _boxes_of_file(images: Sequence[ImageRef], names: Sequence[str], *, max_megapixels: float) -> list[tuple[Box, ...]]:
    file = ImageFile(read_file(images[0].file, names[0]), max_megapixels=max_megapixels, plane=images[0].plane)
    return [
        text_boxes(file.decode(image.frame, image.window, name=name)) for image, name in zip(images, names, strict=True)
    ]
