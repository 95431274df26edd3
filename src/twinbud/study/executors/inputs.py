"""Files that the settings of a run name: their paths, their copies for other machines, and how two sets differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from twinbud.config.data_spec import parse_data
from twinbud.config.loading import run_config
from twinbud.config.teacher_spec import parse_teacher
from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.folder import walk
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index

_PATHS = ("data_root", "split", "selected")
_NETWORKS = ("teacher", "student")
_SHARE = "put them on a file system that all nodes see at the same path"


def input_paths(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Return the absolute path of each setting that names a file or folder of this machine.

    >>> sorted(input_paths({"data": "medmnist:breastmnist", "teacher": "dinov2-small", "student": "half"}))
    []
    """
    paths = {name: Path(settings[name]) for name in _PATHS if settings.get(name) is not None}
    if parse_data(settings["data"]).is_path:
        paths["data"] = Path(settings["data"])
    for name in _NETWORKS:
        spec = parse_teacher(settings[name]) if settings.get(name) else None
        if spec is not None and spec.path is not None:
            paths[name] = spec.path
    return {name: path.expanduser().absolute() for name, path in paths.items()}


def settings_with_paths(settings: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the settings of ``input_paths`` as they are spelled with other paths, and no others."""
    return {
        name: str(replace(parse_teacher(settings[name]), path=path) if name in _NETWORKS else path)
        for name, path in paths.items()
    }


class InputFiles(NamedTuple):
    """The files of one input, for ``file_transfer.pack``.

    Attributes:
        base: A folder that all files are in.
        files: The files.
    """

    base: Path
    files: tuple[Path, ...]


def input_files(name: str, path: Path, settings: Mapping[str, Any]) -> InputFiles:
    """List the files that a copy of an input needs.

    Args:
        name: A key of ``input_paths``.
        path: Its value.
        settings: The settings of the run, which name the columns of a CSV.

    Raises:
        TwinbudError: The files cannot be read, or a CSV names an image by an absolute path.
    """
    if path.is_dir():
        return InputFiles(path, tuple(file for file in walk(path) if not file.is_dir()))
    files = [path]
    if name == "data":
        image_index = read_index(replace(run_config(settings, output=Path("-")).data, data=str(path)))
        if absolute := [row.place for row in image_index.rows if Path(row.path).is_absolute()]:
            raise TwinbudError(
                f"{first_few(absolute, 3)} names an image by an absolute path, which a copy on a worker does not have",
                where=str(path),
                fix=f"Write paths relative to the CSV, or {_SHARE}",
            )
        files += sorted({Path(os.path.abspath(row.image.file)) for row in image_index.rows})  # noqa: PTH100 - no links
    return InputFiles(Path(os.path.commonpath([file.parent for file in files])), tuple(files))


class DecodedRow(NamedTuple):
    """What the fingerprint of a set of images holds of each image, and its path."""

    path: str
    digest: str
    label: str
    patient_id: str | None
    split: str | None


def decoded_rows(image_index: ImageIndex, digests: Sequence[str]) -> tuple[DecodedRow, ...]:
    """Return one row an image, in order."""
    return tuple(
        DecodedRow(row.path, digest, row.label, row.patient_id, row.split)
        for row, digest in zip(image_index.rows, digests, strict=True)
    )


def describe_difference(planned: Iterable[DecodedRow], found: Iterable[DecodedRow]) -> str:
    """Return in a few words which images differ between the study and a worker; paths may be relative to any folder."""
    here, there = ({row.path: row for row in rows} for rows in (planned, found))
    shared = here.keys() & there.keys()
    is_other: list[tuple[str, Callable[[str], bool]]] = [
        ("has other pixels", lambda path: here[path].digest != there[path].digest),
        ("has another label, patient or part", lambda path: here[path][2:] != there[path][2:]),
    ]
    groups = [
        ("is missing", sorted(here.keys() - there.keys())),
        ("is not part of the study", sorted(there.keys() - here.keys())),
        *((text, sorted(filter(test, shared))) for text, test in is_other),
    ]
    parts = []
    for text, paths in groups:
        if paths:
            others = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            parts.append(f"{paths[0]}{others} {text}")
    return "; ".join(parts) or "the images are in another order"
