"""List the images of one source: a folder, a CSV, or the embedded phantom set.

No image is opened yet, and none is skipped silently: each file that is not used is listed with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from twinbud.config.schema import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.files import require_unicode
from twinbud.data.csv_source import read_csv_source
from twinbud.data.folder import find_images, read_folder
from twinbud.data.index import ImageIndex, check_classes, check_given_split

__all__ = ["find_images", "read_index"]

_FIX = "Give a folder of class folders, a CSV, or 'phantom'"


def read_index(config: DataConfig, *, to_train: bool = True) -> ImageIndex:
    """List the images of ``config.data`` without opening them.

    Args:
        config: Source of the images, and names of the CSV columns.
        to_train: Check that the images can be trained on. A single class, or a test part alone, can be evaluated only.

    Raises:
        TwinbudError: A missing path, an empty or wrongly arranged folder, a CSV with missing columns or wrong cells,
            labels that differ only in spelling, fewer than two classes, a class with a single image, or a given split
            without a train part or with a patient in two parts.
    """
    if config.data == "phantom":
        from twinbud.data.phantom import phantom_folder

        return replace(read_csv_source(phantom_folder() / "labels.csv", DataConfig()), source="phantom")
    path = _source(config.data)
    if path.is_dir():
        image_index = read_folder(path)
    elif path.is_file() and path.suffix.lower() in {".csv", ".tsv", ".txt"}:
        image_index = read_csv_source(path, config)
    else:
        kind = f"'{path.suffix}' files" if path.suffix else "files without a suffix"
        problem = f"{kind} are not supported as a list of images" if path.exists() else _NOTHING
        raise TwinbudError(problem, where=f"--data {path}", fix=_FIX)
    require_unicode([image_index.source, *(row.path for row in image_index.rows)])
    if not to_train:
        return replace(image_index, to_train=False)
    check_classes(image_index.rows, image_index.source)
    if image_index.has_splits and config.split is None:
        way_out = "remove the split column" if path.is_file() else "move the images out of the split folders"
        check_given_split(image_index.rows, image_index.source, way_out=way_out)
    return image_index


_NOTHING = "there is no such file or folder"


def _source(data: str) -> Path:
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or an unknown user's home
        shown = data if len(data) < 100 else f"{data[:100]}…"
        problem = (getattr(error, "strerror", None) or _NOTHING).lower()
        raise TwinbudError(problem, where=f"--data {shown}", fix=_FIX) from error
    return path
