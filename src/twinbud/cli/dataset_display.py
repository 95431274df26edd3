"""What ``twinbud datasets`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from twinbud.data.datasets.listing import DatasetStatus
from twinbud.data.split_notes import counted

_FOOTER = (
    "phantom: generated images, always here. hf:OWNER/NAME[@CONFIG]: any image-classification set of the Hugging Face"
    " hub, with twinbud[datasets]."
)


def show_datasets(statuses: Sequence[DatasetStatus], *, as_json: bool) -> None:
    """Print a paragraph for each set, or one JSON list."""
    if as_json:
        lines: Iterable[str] = [json.dumps([status.to_json() for status in statuses], indent=2, ensure_ascii=False)]
    else:
        lines = [*("\n".join(_paragraph(status)) + "\n" for status in statuses), _FOOTER]
    sys.stdout.write("\n".join(lines) + "\n")


def _paragraph(status: DatasetStatus) -> list[str]:
    entry = status.entry
    is_sized = entry.kaggle is None
    counts = entry.class_counts or dict.fromkeys(entry.classes)
    classes = "; ".join(f"{name} {count:,}" if count else name for name, count in counts.items())
    parts = ", ".join(f"{part} {count:,}" for part, count in entry.part_counts.items())
    images = counted(entry.num_images, "image") + (f" ({parts})" if parts else "")
    lines = [
        f"{entry.name}{'[@SIZE]' if is_sized else ''}: {entry.modality}; {entry.task}",
        f"  {images}, {len(entry.classes)} classes: {classes}",
        f"  license: {entry.license}; origin: {entry.origin}",
    ]
    if entry.unsupported:
        lines.append(f"  not supported: {entry.unsupported}")
    lines += [f"  here: {path}{f' ({name})' if is_sized else ''}" for name, path in status.copies.items()]
    if not status.copies:
        lines.append(f"  not here: downloaded on use with twinbud[{entry.extra}], or give --data-root")
    return lines
