"""List the images of one source: a folder, a CSV, the embedded phantom set, or a public set by name.

No pixel is decoded yet, and no file is skipped silently: each that is not used is listed with its reason.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import COLUMNS, columns_of, parse_data, set_names
from twinbud.config.fields import option_of
from twinbud.core.errors import TwinbudError, images_fix, images_place
from twinbud.core.files import require_unicode
from twinbud.core.progress import Progress, SilentProgress
from twinbud.data.csv_source import read_csv_source
from twinbud.data.folder import find_images, is_flat, read_flat_folder, read_folder
from twinbud.data.frames import with_frames
from twinbud.data.index import ImageIndex, check_classes, check_given_split
from twinbud.data.task_choice import with_task

__all__ = ["find_images", "read_index", "read_unlabelled_index"]

_FIX = "Give a folder of class folders, a CSV, or a set by name ('twinbud datasets' lists them)"


def read_index(config: DataConfig, *, to_train: bool = True, progress: Progress | None = None) -> ImageIndex:
    """List the images of ``config.data`` without decoding them.

    Args:
        config: Source of the images, names of the CSV columns, and how files are read.
        to_train: Check that the images can be trained on. A single class, or a test part alone, can be evaluated only.
        progress: Shows the download of a set by name, and the reading of headers; silent by default.

    Raises:
        TwinbudError: A missing path, an empty or wrongly arranged folder, a CSV with missing columns or wrong cells,
            labels that differ only in spelling, fewer than two classes, a class with a single image, a given split
            without a train part or with a patient in two parts, a set by name that is not here and cannot be had, a
            column that would have no effect, or a task that the labels do not fit (``with_task``).
    """
    spec, progress = parse_data(config.data), progress or SilentProgress()
    _refuse_columns(config)
    if config.data_root is not None and not spec.has_root:
        problem = f"'{config.data_root}' has no effect: '{config.data}' is not a public set by name"
        raise TwinbudError(
            problem, where="--data-root", fix="Leave it out, or name a set that 'twinbud datasets' lists"
        )
    if spec.kind == "phantom":
        from twinbud.data.phantom import phantom_folder

        image_index = read_csv_source(phantom_folder() / "labels.csv", DataConfig())
        image_index, way_out = replace(image_index, source="phantom"), ""
    elif spec.is_path:
        image_index, way_out = _read_path(config)
    else:
        from twinbud.data.datasets.opening import open_set

        image_index = open_set(spec, config, progress)
        way_out = "leave the part out, as a CSV of your own without a split column"
    require_unicode([image_index.source, *(row.path for row in image_index.rows)])
    image_index = with_frames(image_index, config, progress)
    if not to_train:
        return replace(image_index, to_train=False)
    check_classes(image_index.rows, image_index.source, classes=image_index.classes)
    if image_index.has_splits and config.split is None:
        check_given_split(image_index.rows, image_index.source, way_out=way_out)
    return with_task(image_index, config, asks=spec.is_path)


def _refuse_columns(config: DataConfig) -> None:
    """Raise TwinbudError for the name of a column that would have no effect."""
    usual, known = DataConfig(), columns_of(config.data)
    for name in COLUMNS:
        value = getattr(config, name)
        if name not in known and value != getattr(usual, name):
            why = "is a set of the hub, for which it is not used" if known else "is not a CSV and has no columns"
            problem = f"'{value}' has no effect: '{config.data}' {why}"
            raise TwinbudError(problem, where=option_of(name), fix="Leave the option out")


def _read_path(config: DataConfig) -> tuple[ImageIndex, str]:
    """Return the images of a folder or CSV, and how to let twinbud split them where it has a split."""
    path = _source(config.data)
    if path.is_dir():
        return read_folder(path), "move the images out of the split folders"
    if _is_list(path):
        return read_csv_source(path, config), "remove the split column"
    kind = f"'{path.suffix}' files" if path.suffix else "files without a suffix"
    problem = f"{kind} are not supported as a list of images" if path.exists() else _NOTHING
    near = [] if path.exists() else difflib.get_close_matches(config.data, set_names(), n=1, cutoff=0.75)
    fix = f"Did you mean '{near[0]}'? {_FIX}" if near else _FIX
    raise TwinbudError(problem, where=images_place(path), fix=images_fix(fix))


def read_unlabelled_index(config: DataConfig, progress: Progress | None = None) -> ImageIndex:
    """List the images of ``config.data``, whose labels may be missing (""), without decoding them.

    Beside the sources of ``read_index``, a folder of nothing but images and a CSV without labels are taken.

    Args:
        config: See ``read_index``, and likewise ``progress``.
        progress: See there.

    Raises:
        TwinbudError: See ``read_index``; labels are not checked.
    """
    _refuse_columns(config)
    path = _source(config.data) if parse_data(config.data).is_path and config.data_root is None else None
    if path is not None and path.is_dir() and is_flat(path):
        image_index = read_flat_folder(path)
    elif path is not None and _is_list(path):
        image_index = read_csv_source(path, config, with_labels=False)
    else:
        return read_index(config, to_train=False, progress=progress)
    require_unicode([image_index.source, *(row.path for row in image_index.rows)])
    return replace(with_frames(image_index, config, progress or SilentProgress()), to_train=False)


_NOTHING = "there is no such file or folder"


def _is_list(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in {".csv", ".tsv", ".txt"}


def _source(data: str) -> Path:
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or an unknown user's home
        shown = data if len(data) < 100 else f"{data[:100]}…"
        problem = (getattr(error, "strerror", None) or _NOTHING).lower()
        raise TwinbudError(problem, where=images_place(shown), fix=images_fix(_FIX)) from error
    return path
