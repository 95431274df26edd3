"""Which task the labels of a source are for, and in which order its classes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.identity import visible_text
from twinbud.data.index import ImageIndex

_MANY_NUMBERS = 5
"""So many numbers as labels are more often grades than names; twinbud then asks."""


def with_task(image_index: ImageIndex, config: DataConfig, *, asks: bool) -> ImageIndex:
    """Return the index with the task and the order of classes that ``config`` gives.

    Args:
        image_index: Images to train on.
        config: ``task`` and ``classes``.
        asks: Whether labels that look like grades need ``task``; not for sets whose classes are known.

    Raises:
        TwinbudError: ``classes`` are not those of the images, the labels could be grades or names of classes, or an
            ordinal set has no order.
    """
    classes, is_several = image_index.classes, image_index.task == "multi-label"
    if not is_several and "multi-label" in (config.task, config.label_columns and "multi-label"):
        raise TwinbudError(
            "each image has one class: only a CSV can give several labels",
            where=f"{image_index.source} with --task multi-label",
            fix="Give a CSV with a column a label (--label-columns A,B), or with labels as a|b",
        )
    if is_several and config.label_columns is None and all(len(row.shown) < 2 for row in image_index.rows):
        raise TwinbudError(
            f"no image has several labels: column '{config.label_column}' holds one class a row, never a|b",
            where=f"{image_index.source} with --task multi-label",
            fix="Give a column a label with --label-columns A,B, or --task single",
        )
    if config.class_names is not None:
        _check_names(config.class_names, image_index)
        classes = config.class_names
    numbers = None if is_several else _numbers(classes)
    if asks and config.task == "auto" and numbers and len(numbers) >= _MANY_NUMBERS:
        raise TwinbudError(
            f"the {len(classes)} labels are numbers ({first_few(classes, 3)}): they may be grades or class names",
            where=image_index.source,
            fix="Give --task ordinal for grades, or --task single for classes without an order",
        )
    if config.task != "ordinal":
        return replace(image_index, classes=classes)
    if config.class_names is None:
        if numbers is None:
            _refuse_commas(classes, "--task ordinal", fix="Rename the class")
            raise TwinbudError(
                f"the grades have no order: {first_few(map(visible_text, classes))} are not numbers",
                where="--task ordinal",
                fix=f"Give them from the lowest to the highest, such as --classes {','.join(classes)}",
            )
        classes = tuple(sorted(classes, key=numbers.__getitem__))
    return replace(image_index, task="ordinal", classes=classes)


def _check_names(names: Sequence[str], image_index: ImageIndex) -> None:
    """Raise TwinbudError unless ``names`` are exactly the classes of the images."""
    where = f"--classes {','.join(names)}"
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problem = f"a class is named twice: {first_few(map(visible_text, repeated))}"
        raise TwinbudError(problem, where=where, fix="Name each class once")
    _refuse_commas(image_index.classes, where, fix="Rename the class, or leave out --classes")
    unknown, missing = set(names) - set(image_index.classes), set(image_index.classes) - set(names)
    if unknown or missing:
        problems = [f"no image is of class {first_few(map(visible_text, sorted(unknown)))}"] if unknown else []
        problems += [f"images of class {first_few(map(visible_text, sorted(missing)))} exist"] if missing else []
        known = ",".join(image_index.classes)
        raise TwinbudError(" and ".join(problems), where=where, fix=f"Name all classes in their order: {known}")


def _refuse_commas(classes: Sequence[str], where: str, *, fix: str) -> None:
    if unnamable := [name for name in classes if "," in name]:
        problem = f"{visible_text(unnamable[0])} has a comma, so that --classes cannot name it"
        raise TwinbudError(problem, where=where, fix=fix)


def _numbers(classes: Sequence[str]) -> dict[str, float] | None:
    """Return the value of each label; None unless all of them are numbers."""
    try:
        values = {name: float(name) for name in classes}
    except ValueError:
        return None
    return values if all(map(math.isfinite, values.values())) else None
