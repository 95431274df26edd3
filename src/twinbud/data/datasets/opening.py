"""From the name of a public set to its index: found or downloaded, listed, and compared with what is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import MEDMNIST_PREFIX, DataSpec
from twinbud.core.errors import TwinbudError, images_place
from twinbud.core.progress import Progress
from twinbud.data.datasets import hub, medmnist
from twinbud.data.datasets.image_folder import INDEX_FILE, read_rows
from twinbud.data.datasets.kaggle import open_copy
from twinbud.data.datasets.registry import DatasetEntry, KaggleSource, entry_of
from twinbud.data.identity import sort_classes
from twinbud.data.index import SPLIT_NAMES, ImageIndex, ImageRow


def open_set(spec: DataSpec, config: DataConfig, progress: Progress) -> ImageIndex:
    """List the images of a set by name.

    Args:
        spec: The set; not a path.
        config: ``data_root`` and, for sets of the hub, the columns.
        progress: Shows a download, and the writing of images.

    Returns:
        The index. Its notes name the copy, counts that differ from the published ones, and what was left out.

    Raises:
        TwinbudError: The set cannot be used yet, is not here and cannot be downloaded, or has another layout.
    """
    if spec.kind == "hub":
        found = hub.as_folder(spec, config, progress)
        index = _of_folder(hub.set_text(spec), found.folder)
        return _with_notes(index, (*found.notes, f"images are read from {found.folder}"), config)
    entry = entry_of(MEDMNIST_PREFIX + spec.name if spec.kind == "medmnist" else spec.name)
    if entry.unsupported:
        raise TwinbudError(entry.unsupported, where=images_place(entry.name), fix="Choose another: twinbud datasets")
    if entry.kaggle is None:
        index = _of_medmnist(entry, spec, config, progress)
    else:
        index = _of_kaggle(entry, entry.kaggle, spec, config, progress)
    return _with_notes(index, (*index.notes, *count_notes(entry, index.rows)), config)


def count_notes(entry: DatasetEntry, rows: Sequence[ImageRow]) -> list[str]:
    """Return one warning where the numbers of images differ from the published ones, with both; else nothing."""
    classes = Counter(row.label for row in rows)
    parts = Counter(row.split for row in rows if row.split is not None)
    differing = _differences(classes, entry.class_counts)
    if parts:
        differing += _differences(parts, {str(part): count for part, count in entry.part_counts.items()})
    if not differing:
        return []
    found = ", ".join(differing)
    return [f"not the published numbers of images, so another version of {entry.origin} or a part of it: {found}"]


def _differences(found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    return [
        f"{name} {found.get(name, 0):,} (published {count:,})"
        for name, count in published.items()
        if found.get(name, 0) != count
    ]


def _of_kaggle(
    entry: DatasetEntry, source: KaggleSource, spec: DataSpec, config: DataConfig, progress: Progress
) -> ImageIndex:
    folder = open_copy(entry, source, config.data_root, progress)
    listed = (source.variants[spec.variant] if spec.variant else source.layout)(folder, source.folders)
    return ImageIndex(
        source=str(folder),
        rows=listed.rows,
        classes=sort_classes(row.label for row in listed.rows),
        ignored=listed.ignored,
        notes=listed.notes,
    )


def _of_medmnist(entry: DatasetEntry, spec: DataSpec, config: DataConfig, progress: Progress) -> ImageIndex:
    file = medmnist.open_file(entry, spec, config.data_root, progress)
    index = _of_folder(f"{entry.name}@{spec.variant}", medmnist.as_folder(entry, spec, file, progress))
    note = f"the set's own split; its val part is reported and never trained on ({_parts(index.rows)})"
    return replace(index, notes=(note,))


def _parts(rows: Sequence[ImageRow]) -> str:
    counts = Counter(row.split for row in rows)
    return ", ".join(f"{part} {counts[part]:,}" for part in SPLIT_NAMES)


def _of_folder(source: str, folder: Path) -> ImageIndex:
    rows = read_rows(folder)
    return ImageIndex(source=f"{source}, {folder / INDEX_FILE}", rows=rows, classes=sort_classes(r.label for r in rows))


def _with_notes(index: ImageIndex, notes: Sequence[str], config: DataConfig) -> ImageIndex:
    here = Path(config.data)
    shadowed = [f"'{config.data}' is the set of that name; the folder ./{here} is not used"] if here.exists() else []
    return replace(index, notes=(*shadowed, *notes))
