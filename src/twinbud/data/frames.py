"""From files to images: one row for each frame of a file that holds several, none for a file that holds no image.

Files that are recognized by content are opened here, for their headers alone. What their headers say decides which
images are of one patient, unless a CSV says it:

- The key of the patient, if the header has one. If any row of a CSV has a patient, headers decide for none of its rows.
- Otherwise all frames of a file, and all files of a series, are of one patient, who is named after the first file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twinbud.config.data_config import DataConfig
from twinbud.config.reading import ALL_FRAMES, DICOM_WINDOW, Plane, Reading
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.progress import Progress
from twinbud.data.formats.base import FileSurvey, NoPixels
from twinbud.data.formats.decoding import survey, surveyor_of, without_warnings
from twinbud.data.identity import same_path_key, visible_text
from twinbud.data.index import IgnoredFile, ImageIndex, ImageRow, frame_name, split_frame_name
from twinbud.data.mixed_series import mixed_notes
from twinbud.data.patient_salt import PatientSalt
from twinbud.data.repetitions import without_repetitions

_Surveys = Mapping[int, FileSurvey | NoPixels]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Images of files.

    Attributes:
        rows: One an image.
        left_out: Files that hold no image, and files of a series that ``--frames`` does not take.
        notes: Sentences about what was found in the files.
        without_effect: Sentences about settings that change nothing for these files.
    """

    rows: tuple[ImageRow, ...]
    left_out: tuple[IgnoredFile, ...]
    notes: tuple[str, ...]
    without_effect: tuple[str, ...]


def with_frames(image_index: ImageIndex, config: DataConfig, progress: Progress) -> ImageIndex:
    """Return an index of files as an index of images.

    Raises:
        TwinbudError: See ``list_frames``; no image is left, or rows of a CSV contradict each other about a frame.
    """
    salt = PatientSalt(config.patient_salt, config.data)
    frames = list_frames(image_index.rows, config.reading, salt, progress)
    if image_index.rows and not frames.rows:
        problem = f"none of the {len(image_index.rows)} files holds an image ({frames.left_out[0].reason})"
        raise TwinbudError(problem, where=image_index.source, fix="Give files with pixels")
    rows: Sequence[ImageRow] = frames.rows
    repeated: list[IgnoredFile] = []
    if any(row.image.frame is not None for row in image_index.rows):  # beside a row for all frames of the same file
        in_order = sorted(rows, key=lambda row: row.row_number or 0)
        rows, repeated = without_repetitions(image_index.source, in_order, of_images=True)
    return replace(
        image_index,
        rows=tuple(rows),
        ignored=(*image_index.ignored, *frames.left_out, *repeated),
        notes=(*image_index.notes, *frames.notes, *frames.without_effect),
    )


def list_frames(rows: Sequence[ImageRow], reading: Reading, salt: PatientSalt | None, progress: Progress) -> Frames:
    """List the images in files.

    Args:
        rows: One a file, or one a frame where its source names frames.
        reading: The window, and which frames to take.
        salt: Hashes the ids of patients; None where nobody asks for patients.
        progress: Shows how many headers are read.

    Raises:
        TwinbudError: A package is missing that a format needs, the salt cannot be read, or two images get one name.
    """
    surveys = _survey(rows, reading.plane, salt, progress)
    by_csv = any(row.patient_id is not None for row in rows)
    found: list[ImageRow] = []
    left_out: list[IgnoredFile] = []
    skipped = _not_chosen(rows, surveys, reading)
    groups = _group_names(rows, surveys)
    for index, row in enumerate(rows):
        row = replace(row, image=replace(row.image, window=reading.window_or_none, plane=reading.plane))
        known = surveys.get(index)
        if isinstance(known, NoPixels) or index in skipped:
            reason = known.problem if isinstance(known, NoPixels) else skipped[index]
            left_out.append(IgnoredFile(path=row.path, reason=reason))
        elif known is None:
            found.append(row)
        else:
            patient_id = row.patient_id or (None if by_csv else known.patient) or groups.get(index)
            found += _frames_of(replace(row, patient_id=patient_id), known.num_frames, reading)
    if skipped and not found:  # a number that no series reaches
        raise _too_large(rows, surveys, reading)
    _refuse_equal_names(found)
    empty = [row.path for index, row in enumerate(rows) if isinstance(surveys.get(index), NoPixels)]
    notes = [_note(len(empty), "file", f"without an image, left out: {first_few(map(visible_text, empty), 3)}")]
    of_files = {rows[index].image.file: known for index, known in surveys.items()}
    warnings = Counter(text for known in of_files.values() if isinstance(known, FileSurvey) for text in known.warnings)
    notes += [_note(count, "file", text) for text, count in sorted(warnings.items())]
    notes += mixed_notes({row.path: surveys[index] for index, row in enumerate(rows) if index in surveys})
    return Frames(
        rows=tuple(found),
        left_out=tuple(left_out),
        notes=tuple(filter(None, notes)),
        without_effect=tuple(_without_effect(rows, surveys, reading)),
    )


def _survey(rows: Sequence[ImageRow], plane: Plane, salt: PatientSalt | None, progress: Progress) -> _Surveys:
    """Return what each file holds that is recognized by content, by its place in ``rows``; each is read once."""
    files = dict.fromkeys(row.image.file for row in rows)
    readers = {file: reader for file in files if (reader := surveyor_of(file)) is not None}
    known: dict[Path, FileSurvey | NoPixels] = {}
    hashed = salt.hashed if salt is not None else _unsalted
    if not readers:
        return {}
    with progress.bar("reading headers", len(readers)) as advance, without_warnings():
        for done, (file, reader) in enumerate(readers.items(), start=1):
            try:
                found = survey(reader.for_file(plane), file, hashed=hashed)
                if found is not None:
                    known[file] = found
            except NoPixels as error:
                known[file] = error
            advance(done)
    return {index: known[row.image.file] for index, row in enumerate(rows) if row.image.file in known}


def _unsalted(identity: str) -> str:
    """Return a key that tells series apart within this process, and is written nowhere."""
    return str(hash(identity))


def _frames_of(row: ImageRow, num_frames: int, reading: Reading) -> Iterable[ImageRow]:
    if row.image.frame is not None or num_frames == 1:  # the source names a frame, or there is but one
        return [row]
    return [
        replace(row, path=frame_name(row.path, frame), image=replace(row.image, frame=frame))
        for frame in reading.chosen_frames(num_frames)
    ]


def _series(rows: Sequence[ImageRow], surveys: _Surveys) -> list[list[int]]:
    """Return the series of two or more files that have the same label and part, each in its own order."""
    series: dict[tuple[str, str, str | None], list[tuple[tuple[float, ...], str, int]]] = defaultdict(list)
    for index, known in surveys.items():
        if isinstance(known, FileSurvey) and known.series is not None:
            row = rows[index]
            series[known.series, row.label, row.split].append((known.position, row.path, index))
    return [[index for _, _, index in sorted(places)] for places in series.values() if len(places) > 1]


def _not_chosen(rows: Sequence[ImageRow], surveys: _Surveys, reading: Reading) -> dict[int, str]:
    """Return the files of series that ``--frames`` does not take, each with the reason."""
    if reading.frames == ALL_FRAMES:
        return {}
    skipped: dict[int, str] = {}
    for places in _series(rows, surveys):
        (number,) = reading.chosen_frames(len(places))
        reason = f"not image {number} of the {len(places)} of its series (--frames {reading.frames})"
        skipped |= {index: reason for place, index in enumerate(places) if place != number}
    return skipped


def _too_large(rows: Sequence[ImageRow], surveys: _Surveys, reading: Reading) -> TwinbudError:
    """Return the error for ``--frames`` where every series has fewer images."""
    places = max(_series(rows, surveys), key=len)
    name = visible_text(rows[places[0]].path)
    return TwinbudError(
        f"'{reading.frames}' is too large: the series of {name} has {len(places)} images (0 to {len(places) - 1})",
        where="--frames",
        fix=f"Give series of more images, or train with --frames 0 to {len(places) - 1}, middle or all",
    )


def _without_effect(rows: Sequence[ImageRow], surveys: _Surveys, reading: Reading) -> Iterator[str]:
    """Yield a sentence for each setting of ``reading`` that is not the default and applies to none of the files."""
    found = [(rows[index], known) for index, known in surveys.items() if isinstance(known, FileSurvey)]
    has_several = any(known.num_frames > 1 and row.image.frame is None for row, known in found)
    has_volumes = any(known.is_volume for _, known in found)
    for value, default, option, applies, what in (
        (reading.window, DICOM_WINDOW, "--window", found, "no file is DICOM or NIfTI"),
        (reading.frames, ALL_FRAMES, "--frames", has_several or _series(rows, surveys), _NONE_OF_SEVERAL),
        (reading.axis, Plane().axis, "--axis", has_volumes, "no file is NIfTI"),
        (reading.volume, None, "--volume", has_volumes, "no file is NIfTI"),
    ):
        if value != default and not applies:
            yield f"{option} {value} has no effect: {what}"


_NONE_OF_SEVERAL = "no file or series holds several images (only DICOM and NIfTI can)"


def _group_names(rows: Sequence[ImageRow], surveys: _Surveys) -> dict[int, str]:
    """Return, for files of unknown patients, one name for all images that are surely of the same patient."""
    first: dict[object, str] = {}
    names: dict[int, str] = {}
    for index, known in surveys.items():
        if isinstance(known, FileSurvey) and (known.num_frames > 1 or known.series):
            row = rows[index]
            path = row.path if row.image.frame is None else split_frame_name(row.path)[0]
            names[index] = f"of {first.setdefault(known.series or same_path_key(row.image.file), path)}"
    return names


def _refuse_equal_names(rows: Sequence[ImageRow]) -> None:
    """Refuse a file whose name is that of another file's frame."""
    counts = Counter(row.path for row in rows if row.image.frame is not None)
    clash = next((row for row in rows if row.image.frame is None and row.path in counts), None)
    if clash is not None:
        problem = f"the name of the file is also that of a frame of another file, {visible_text(clash.path)}"
        raise TwinbudError(problem, where=clash.place, fix="Rename the file")


def _note(count: int, noun: str, text: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'} {text}" if count else ""
