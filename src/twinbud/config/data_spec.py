"""The one parser of what ``--data`` names: a path, or an image set by name.

================================= =====================================================================
``phantom``                       the generated set
``brain-tumor-mri`` and others    a public set of ``data.datasets.registry``
``medmnist:NAME[@SIZE]``          a two-dimensional MedMNIST set at 28, 64, 128 or 224 pixels
``hf:[OWNER/]NAME[@CONFIG]``      an image-classification set of the Hugging Face hub
anything else                     a folder or a CSV file
================================= =====================================================================

A name wins over a folder of the same name; ``./NAME`` is the folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from twinbud.core.errors import TwinbudError, images_place, images_setting, unknown_choice

COLUMNS = ("image_column", "label_column", "label_columns", "patient_column", "split_column")
"""The settings that name columns."""
PHANTOM = "phantom"
KAGGLE_SETS: dict[str, tuple[str, ...]] = {
    "brain-tumor-mri": ("given",),
    "covid-ct-slices": (),
    "covid19-radiography": (),
}
"""Public sets with a name of their own, and their variants; ``data.datasets.registry`` describes them."""
MEDMNIST_SETS = (
    "bloodmnist",
    "breastmnist",
    "chestmnist",
    "dermamnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
    "pathmnist",
    "pneumoniamnist",
    "retinamnist",
    "tissuemnist",
)
MEDMNIST_SIZES = ("28", "64", "128", "224")
MEDMNIST_PREFIX, HUB_PREFIX = "medmnist:", "hf:"
_HUB_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Images as the user names them.

    Attributes:
        kind: Where they come from.
        name: The path, the name of the set, or the repository of the hub.
        variant: What stands behind ``@``: a variant, the size in pixels or the configuration; None for none.
    """

    kind: Literal["path", "phantom", "kaggle", "medmnist", "hub"]
    name: str
    variant: str | None = None

    @property
    def is_path(self) -> bool:
        """Whether it is a folder or a CSV file, not a set by name."""
        return self.kind == "path"

    @property
    def has_root(self) -> bool:
        """Whether ``--data-root`` can say where a local copy is."""
        return self.kind not in ("path", "phantom")


def parse_data(text: str) -> DataSpec:
    """Parse the name of an image set; nothing is opened.

    >>> parse_data("medmnist:breastmnist@64")
    DataSpec(kind='medmnist', name='breastmnist', variant='64')
    >>> parse_data("images/brain").kind
    'path'

    Args:
        text: The name.

    Raises:
        TwinbudError: An unknown MedMNIST set or size, an unknown variant, or an incomplete name of the hub.
    """
    if text == PHANTOM:
        return DataSpec(kind="phantom", name=text)
    name, at, variant = text.partition("@")
    if name in KAGGLE_SETS:
        if at and variant not in KAGGLE_SETS[name]:
            raise unknown_choice(images_setting(), text, [name, *(f"{name}@{known}" for known in KAGGLE_SETS[name])])
        return DataSpec(kind="kaggle", name=name, variant=variant or None)
    if name.startswith(MEDMNIST_PREFIX):
        name = name.removeprefix(MEDMNIST_PREFIX)
        if name not in MEDMNIST_SETS:
            raise unknown_choice(images_place(text), name, MEDMNIST_SETS)
        if at and variant not in MEDMNIST_SIZES:
            raise unknown_choice(images_place(text), variant, MEDMNIST_SIZES)
        return DataSpec(kind="medmnist", name=name, variant=variant or MEDMNIST_SIZES[0])
    if name.startswith(HUB_PREFIX):
        name = name.removeprefix(HUB_PREFIX)
        if not _HUB_NAME.fullmatch(name) or (at and not variant):
            fix = "Write hf:OWNER/NAME or hf:OWNER/NAME@CONFIG"
            raise TwinbudError(f"'{text}' is not a complete name of the hub", where=images_setting(), fix=fix)
        return DataSpec(kind="hub", name=name, variant=variant or None)
    return DataSpec(kind="path", name=text)


def columns_of(data: str) -> tuple[str, ...]:
    """Return the settings that name a column of ``data``; none where it has no columns, as in a folder."""
    spec = parse_data(data)
    if spec.kind == "hub":
        return "image_column", "label_column", "patient_column"
    is_folder = os.path.isdir(os.path.expanduser(data))  # noqa: PTH111, PTH112 - Path raises for a name too long
    return COLUMNS if spec.is_path and not is_folder else ()


def set_names() -> tuple[str, ...]:
    """Return every name that ``--data`` takes as it is, for suggestions; those of the hub cannot be listed."""
    variants = (f"{name}@{variant}" for name, known in KAGGLE_SETS.items() for variant in known)
    return (PHANTOM, *KAGGLE_SETS, *variants, *(f"{MEDMNIST_PREFIX}{name}" for name in MEDMNIST_SETS))
