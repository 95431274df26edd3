"""Which public sets there are, and which of them are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbud.config.data_spec import MEDMNIST_SIZES, parse_data
from twinbud.core.errors import TwinbudError
from twinbud.data.datasets.kaggle import find_copy
from twinbud.data.datasets.medmnist import find_file
from twinbud.data.datasets.registry import DATASETS, DatasetEntry


@dataclass(frozen=True, kw_only=True)
class DatasetStatus:
    """A public set, and where it is on this machine.

    Attributes:
        entry: What its authors publish.
        copies: For each name that ``--data`` takes and that is here, the folder or file.
    """

    entry: DatasetEntry
    copies: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """Return all facts in plain types."""
        entry = self.entry
        return {
            "name": entry.name,
            "modality": entry.modality,
            "task": entry.task,
            "num_images": entry.num_images,
            "classes": list(entry.classes),
            "class_counts": dict(entry.class_counts) or None,
            "part_counts": dict(entry.part_counts) or None,
            "license": entry.license,
            "origin": entry.origin,
            "extra": entry.extra,
            "unsupported": entry.unsupported,
            "copies": {name: str(path) for name, path in self.copies.items()},
        }


def list_datasets(root: Path | None = None) -> tuple[DatasetStatus, ...]:
    """Return all sets that are known by name; nothing is downloaded.

    Args:
        root: Folder with copies, as ``--data-root`` takes it; None: where they are downloaded to.

    Raises:
        TwinbudError: There is no such folder.
    """
    if root is not None and not root.is_dir():
        problem = "there is no such folder"
        raise TwinbudError(problem, where=f"--data-root {root}", fix="Give a folder that holds copies of sets")
    return tuple(DatasetStatus(entry=entry, copies=_copies(entry, root)) for entry in DATASETS)


def _copies(entry: DatasetEntry, root: Path | None) -> dict[str, Path]:
    names = [entry.name] if entry.kaggle else [f"{entry.name}@{size}" for size in MEDMNIST_SIZES]
    found = {}
    for name in names:
        try:
            path = find_copy(entry, entry.kaggle, root) if entry.kaggle else find_file(entry, parse_data(name), root)
        except TwinbudError:  # another layout, or another set
            continue
        if path is not None:
            found[name] = path
    return found
