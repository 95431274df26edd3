"""Image-classification sets of the Hugging Face hub, or of a local copy of one, through the package ``datasets``.

The files are written once into the cache, byte by byte as the set holds them. A set of the hub is then read from there
without the network; a local copy is written again when its files change.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import HUB_PREFIX, DataSpec
from twinbud.core.cache import temporary_folder
from twinbud.core.errors import TwinbudError, first_few, first_line, images_place
from twinbud.core.extras import import_extra
from twinbud.core.files import read_json, write_json
from twinbud.core.progress import Progress
from twinbud.data.datasets.image_folder import NewImage, image_folder, is_complete, write_once
from twinbud.data.index import SPLIT_WORDS, SplitName

EXTRA = "datasets"
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
_OFFLINE = "give a local copy of it with --data-root FOLDER"


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A set of the hub as a folder of the cache.

    Attributes:
        folder: What ``write_once`` has written.
        notes: What was left out, and which columns were taken, as sentences.
    """

    folder: Path
    notes: tuple[str, ...]


def set_text(spec: DataSpec) -> str:
    """Return the name as ``--data`` spells it."""
    return f"{HUB_PREFIX}{spec.name}" + (f"@{spec.variant}" if spec.variant else "")


def as_folder(spec: DataSpec, config: DataConfig, progress: Progress) -> HubFolder:
    """Return a folder with the images of a set, downloaded and written once.

    Args:
        spec: The set and its configuration.
        config: ``data_root`` has a local copy; columns other than the usual names are taken as given.
        progress: Shows the writing.

    Raises:
        TwinbudError: The package is not installed, there is no network or no such set, or the set has no image column,
            no label column or several labels an image.
    """
    name = _cache_name(spec, config)
    notes_file = image_folder(f"{name}.json")
    if is_complete(image_folder(name)) and (notes := _read_notes(notes_file)) is not None:
        return HubFolder(folder=image_folder(name), notes=notes)
    parts = _load(spec, config)
    columns = _Columns.of(next(iter(parts.values())), config, images_place(set_text(spec)))
    divided, notes = _divide(parts)
    notes = [f"images are in column '{columns.image}', classes in column '{columns.label}'", *notes]
    unlabelled = sum(columns.num_unlabelled(part) for _, _, part in divided)
    if unlabelled:
        notes.append(f"{unlabelled:,} images have no label: left out")
    folder = write_once(
        name,
        lambda: _images(divided, columns),
        num_images=sum(len(part) for _, _, part in divided) - unlabelled,
        progress=progress,
        label=set_text(spec),
    )
    if folder == image_folder(name):
        write_json(notes_file, {"notes": notes})
    return HubFolder(folder=folder, notes=tuple(notes))


def _cache_name(spec: DataSpec, config: DataConfig) -> str:
    """Return a name that tells the set, its configuration, the given columns and, of a local copy, its files."""
    usual = DataConfig()
    columns = [config.image_column, config.label_column, config.patient_column]
    text = repr(columns) if columns != [usual.image_column, usual.label_column, usual.patient_column] else ""
    if config.data_root is not None:
        files = sorted(path for path in _existing(spec, config.data_root).rglob("*") if path.is_file())
        text += repr([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    suffix = f"-{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else ""
    return f"hf-{spec.name.replace('/', '--')}@{spec.variant or ''}{suffix}"


def _existing(spec: DataSpec, root: Path) -> Path:
    if not root.is_dir():
        problem = "the path is a file, not a folder" if root.exists() else "there is no such folder"
        fix = "Give the folder that holds the files of the set"
        raise TwinbudError(problem, where=images_place(f"{set_text(spec)} --data-root {root}"), fix=fix)
    return root


def _read_notes(file: Path) -> tuple[str, ...] | None:
    try:
        return tuple(map(str, read_json(file)["notes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load(spec: DataSpec, config: DataConfig) -> Mapping[str, Any]:
    """Return the parts of a set by name, each a ``datasets.Dataset``."""
    where = images_place(set_text(spec))
    if config.data_root is not None:
        where += f" --data-root {config.data_root}"
    datasets = import_extra("datasets", EXTRA, where=where, otherwise="convert the set to class folders")
    try:
        if config.data_root is None:
            parts = datasets.load_dataset(spec.name, name=spec.variant)
        else:  # its own cache is not needed again
            cache = str(temporary_folder() / "datasets")
            parts = datasets.load_dataset(str(config.data_root.absolute()), name=spec.variant, cache_dir=cache)
    except ConnectionError as error:
        raise TwinbudError(
            f"the Hugging Face hub cannot be reached ({first_line(error)})",
            where=where,
            fix=f"Check the network; or {_OFFLINE}",
        ) from error
    except Exception as error:  # of datasets, of its readers, or of the file system
        fix = f"Check the name and the configuration; or {_OFFLINE}" if config.data_root is None else "Check the files"
        raise TwinbudError(f"the set cannot be read ({first_line(error)})", where=where, fix=fix) from error
    return dict(parts)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a set that hold image, label and patient, and the names of numbered classes."""

    image: str
    label: str
    patient: str | None
    names: tuple[str, ...] | None

    @classmethod
    def of(cls, part: Any, config: DataConfig, where: str) -> _Columns:
        features: Mapping[str, Any] = part.features
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        image = _choose("image", config.image_column, DataConfig().image_column, kinds, {"Image"}, where)
        label = _choose("label", config.label_column, DataConfig().label_column, kinds, {"ClassLabel"}, where)
        feature = features[label]
        if kinds[label] not in ("ClassLabel", "Value"):
            problem = f"column '{label}' does not hold one label an image ({kinds[label]})"
            raise TwinbudError(problem, where=where, fix="Name another column with --label-column")
        if kinds[label] == "Value" and not str(feature.dtype).startswith(("int", "uint", "bool", "string", "large_s")):
            problem = f"column '{label}' holds {feature.dtype}, not classes"
            raise TwinbudError(problem, where=where, fix="Name another column with --label-column")
        patient, usual = config.patient_column, DataConfig().patient_column
        if patient not in kinds and patient != usual:
            raise _no_column(patient, kinds, "patient")
        return cls(
            image=image,
            label=label,
            patient=patient if patient in kinds else None,
            names=tuple(feature.names) if kinds[label] == "ClassLabel" else None,
        )

    def class_of(self, value: Any) -> str | None:
        """Return the class of a value of the label column; None for an image without a label."""
        if value is None or (self.names is not None and value < 0):
            return None
        return self.names[value] if self.names is not None else str(value)

    def num_unlabelled(self, part: Any) -> int:
        """Return the number of images without a label."""
        return sum(self.class_of(value) is None for value in part[self.label])


def _choose(kind: str, given: str, usual: str, kinds: Mapping[str, str], fitting: set[str], where: str) -> str:
    """Return the column that is given, else the only one of a fitting type, else the one of the usual name."""
    if given != usual:
        if given not in kinds:
            raise _no_column(given, kinds, kind)
        found = [given]
    else:
        found = [name for name, type_name in kinds.items() if type_name in fitting]
        if kind == "label" and len(found) != 1:
            found = [name for name in ("label", "labels") if name in kinds] or found
    if len(found) != 1:
        several = f"several columns may hold the {kind}: {first_few(found)}"
        problem = f"{several if found else f'no column holds the {kind}'}; the set has {_listed(kinds)}"
        raise TwinbudError(problem, where=where, fix=f"Name it with --{kind}-column")
    if kind == "image" and kinds[found[0]] not in fitting:
        problem = f"column '{given}' holds no images; the set has {_listed(kinds)}"
        raise TwinbudError(problem, where="--image-column", fix="Give another of these")
    return found[0]


def _no_column(name: str, kinds: Mapping[str, str], kind: str) -> TwinbudError:
    problem = f"the set has no column '{name}', only {_listed(kinds)}"
    return TwinbudError(problem, where=f"--{kind}-column", fix="Give one of these")


def _listed(kinds: Mapping[str, str]) -> str:
    return first_few((f"'{name}' ({type_name})" for name, type_name in kinds.items()), 8)


_Divided = list[tuple[str, SplitName | None, Any]]
"""Parts of a set to use: name, the part of twinbud's split, and the ``datasets.Dataset``."""


def _divide(parts: Mapping[str, Any]) -> tuple[_Divided, list[str]]:
    """Return the parts to use; a set with a single part is not divided."""
    known = [name for name in parts if name.lower() in SPLIT_WORDS] or list(parts)
    notes = [
        f"part '{name}' ({len(parts[name]):,} images) is not train, validation or test: left out"
        for name in parts
        if name not in known
    ]
    if len(known) == 1 or not any(name.lower() in SPLIT_WORDS for name in known):
        return [(name, None, parts[name]) for name in known], notes
    return [(name, SPLIT_WORDS[name.lower()], parts[name]) for name in known], notes


def _images(divided: _Divided, columns: _Columns) -> Iterator[NewImage]:
    for name, split, part in divided:
        kind = type(part.features[columns.image])
        used = [name for name in (columns.image, columns.label, columns.patient) if name is not None]
        encoded = part.select_columns(list(dict.fromkeys(used))).cast_column(columns.image, kind(decode=False))
        for number, row in enumerate(encoded):
            label = columns.class_of(row[columns.label])
            if label is None:
                continue
            contents = row[columns.image]["bytes"]
            if contents is None:
                contents = Path(row[columns.image]["path"]).read_bytes()
            patient = row[columns.patient] if columns.patient else None
            yield NewImage(
                path=f"{name}/{number:06d}{_suffix(contents)}",
                encode=partial(bytes, contents),
                label=label,
                patient_id=None if patient is None else str(patient),
                split=split,
            )


def _suffix(contents: bytes) -> str:
    """Return the suffix of an image's format; of another file, one that the folder reader still lists."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            return _SUFFIXES.get(image.format or "", ".png")
    except Exception:  # a damaged image is reported with its name when it is decoded
        return ".png"
