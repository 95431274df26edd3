"""The images of one source: a folder, a CSV, or the embedded phantom set (index.py says what a row holds).

Nothing is opened yet, and nothing is left out in silence: what is not trained on is listed with its reason.
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


def read_index(config: DataConfig, *, to_train: bool = True) -> ImageIndex:
    """List the images of `config.data`, without opening them.

    Args:
        config: Where they are, and the names of the columns.
        to_train: Whether they must do for training; one class, or a test part alone, can only be evaluated.

    Raises:
        TwinbudError: A missing path, an empty or wrongly arranged folder, a CSV with missing columns or wrong
            cells, fewer than two classes, a class with a single image, or a given split that is not one.
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
        raise _no_source(path, f"a {path.suffix or 'plain'} file" if path.exists() else _NOTHING)
    require_unicode([image_index.source, *(row.path for row in image_index.rows)])
    if not to_train:
        return replace(image_index, to_train=False)
    check_classes(image_index.rows, image_index.source)
    if image_index.has_splits and config.split is None:
        check_given_split(image_index.rows, image_index.source)
    return image_index


_NOTHING = "a path where there is nothing"


def _source(data: str) -> Path:
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or an unknown user's home
        shown = data if len(data) < 100 else f"{data[:100]}…"
        raise _no_source(shown, getattr(error, "strerror", None) or _NOTHING) from error
    return path


def _no_source(path: object, got: str) -> TwinbudError:
    return TwinbudError("a folder, a CSV or 'phantom'", got=got, where=f"--data {path}", fix="Check --data")
