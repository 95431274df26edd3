"""The runs folder: one immutable record for each finished run, and locks that end with their process.

- ``study.json`` marks the folder; it holds the format version and the fingerprint of each image set.
- ``plans/RECIPE.json``: the runs requested with a recipe.
- ``records/RUN_ID.json``: a finished run, written once, with a checksum.
- ``failures/RUN_ID.json``: why the last attempt of a run failed.
- ``claims/RUN_ID.lock``: locked by the process that executes the run; the system unlocks it when the process ends.
- ``work/RUN_ID/``: the run folder, see ``twinbud.runs.run_dir``.
- ``teachers/``: fine-tuned teachers, see ``twinbud.runs.tuning``.
- ``set-aside/``: corrupt records.
- ``jobs/``: scripts, logs and events of Slurm jobs; may be deleted when none is running.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.core.files import read_json, write_json, write_text
from twinbud.study.requests import RequestedRun
from twinbud.study.run_id import canonical, make_run_id

FORMAT_VERSION = 2
"""Raised when the files of the folder change; a folder of another version is refused."""
MARKER = "study.json"
TABLES = "tables"
"""The default output folder of ``twinbud tables``, inside the runs folder."""
_FOLDERS = ("plans", "records", "failures", "claims", "work", "set-aside")
_OTHER_FOLDER = "Choose another --runs"


class CorruptRecordError(TwinbudError):
    """A record is damaged."""


class Failure(NamedTuple):
    """Time, reason and traceback of a failed attempt."""

    time: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class StudyPlan:
    """The runs requested with a recipe.

    Attributes:
        digest: The recipe's digest.
        runs: The requests, in order.
    """

    digest: str
    runs: tuple[RequestedRun, ...]


@dataclass(frozen=True)
class RunStore:
    """The runs folder, which several processes can use at the same time.

    Each file appears whole or not at all. A run is executed only by the process that has claimed it.
    """

    path: Path

    def require(self, *, must_exist: bool = True) -> None:
        """Refuse a folder that is not a runs folder.

        Args:
            must_exist: Whether a missing or an empty folder is refused too.

        Raises:
            TwinbudError: The folder has other contents or another format version.
        """
        if not self.path.exists():  # asked first: another process may create the folder meanwhile
            if must_exist:
                fix = "Check --runs, or run 'twinbud study' first"
                raise TwinbudError("the runs folder does not exist", where=str(self.path), fix=fix)
        elif not self.path.is_dir():
            raise TwinbudError("the path is a file, not a runs folder", where=str(self.path), fix=_OTHER_FOLDER)
        else:
            entries = {path.name for path in self.path.iterdir() if path.suffix != ".draft"}
            if must_exist or entries - {*_FOLDERS, TABLES}:
                self.image_sets()

    def create(self) -> None:
        """Create the folder, or do nothing if it is a runs folder.

        Raises:
            TwinbudError: The folder has other contents, or cannot be written.
        """
        self.require(must_exist=False)
        with explained_writes(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            with self._lock():
                if not (self.path / MARKER).exists():
                    self._write_image_sets({})

    def image_sets(self) -> dict[str, dict[str, Any]]:
        """Read ``fingerprint``, ``num_images`` and ``classes`` of each image set.

        Raises:
            TwinbudError: The folder is not a runs folder, or has another format version.
        """
        try:
            content = read_json(self.path / MARKER)
            version = content.get("format_version", content.get("format"))
            image_sets = dict(content["image_sets"]) if version == FORMAT_VERSION else {}
            for each in image_sets.values():
                names = each["classes"]
                is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
                if type(each["num_images"]) is not int or not is_list:
                    raise TypeError("a number of images, or a class, of another type")
                _ = each["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TwinbudError(
                f"the folder is not a runs folder: it has no readable {MARKER}", where=str(self.path), fix=_OTHER_FOLDER
            ) from error
        if version != FORMAT_VERSION:
            problem = f"the runs folder has format version {version}, but this twinbud reads version {FORMAT_VERSION}"
            raise TwinbudError(problem, where=str(self.path), fix=_OTHER_FOLDER)
        return image_sets

    def check_images(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Compare image sets with those of the existing records.

        Returns:
            The image sets that the folder knows.

        Raises:
            TwinbudError: A set has the name of a known one, but other images.
        """
        known = self.image_sets() if (self.path / MARKER).exists() else {}
        for name, description in found.items():
            if name in known and known[name]["fingerprint"] != description["fingerprint"]:
                raise TwinbudError(
                    f"the images, labels or their order differ from those of the existing records of '{name}'",
                    where=f"--data {name}",
                    fix="Give the same images, or another --runs",
                )
        return known

    def register_images(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Add image sets to the folder.

        Raises:
            TwinbudError: See ``check_images``.
        """
        with self._lock():
            self._write_image_sets({**self.check_images(found), **found})

    def _write_image_sets(self, image_sets: Mapping[str, Any]) -> None:
        write_json(self.path / MARKER, {"format_version": FORMAT_VERSION, "image_sets": dict(image_sets)})

    @contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Claim a run while the context is open, and yield whether that succeeded.

        The claim of a process that dies is released by the system.
        """
        lock = FileLock(self.path / "claims" / f"{run_id}.lock")
        try:
            with explained_writes(lock.lock_file):
                lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def run_dir(self, run_id: str) -> Path:
        """Return the run folder."""
        return self.path / "work" / run_id

    @property
    def teachers(self) -> Path:
        """The folder of the fine-tuned teachers, which runs share; may be deleted once the study is complete."""
        return self.path / "teachers"

    def is_done(self, run_id: str) -> bool:
        """Return whether the run has a record, which may be corrupt."""
        return self._record_path(run_id).exists()

    def done_ids(self) -> set[str]:
        """Return the ids of all runs that have a record."""
        return {path.stem for path in (self.path / "records").glob("[!.]*.json")}

    def failed_ids(self) -> set[str]:
        """Return the ids of all runs whose last attempt failed."""
        return {path.stem for path in (self.path / "failures").glob("[!.]*.json")}

    def read(self, run_id: str) -> dict[str, Any]:
        """Read the record of a finished run.

        Raises:
            CorruptRecordError: The file is damaged.
            TwinbudError: The file holds the record of another run, such as one on other images.
        """
        path = self._record_path(run_id)
        try:
            content = read_json(path)
            record = content["record"]
            is_intact = content["sha256"] == _checksum(record)
            facts = record["facts"] if is_intact else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _corrupt(path, "the record cannot be read") from error
        if not is_intact:
            raise _corrupt(path, "the record was changed after it was written")
        if make_run_id(facts) != run_id:
            raise TwinbudError(
                "the record belongs to another run, with other images or settings",
                where=str(path),
                fix=f"Move the file to {self.path / 'set-aside'}, and run the study again",
            )
        return record

    def write(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Write the record of a finished run; the caller holds its claim."""
        write_json(self._record_path(run_id), {"sha256": _checksum(record), "record": record})
        self._failure_path(run_id).unlink(missing_ok=True)

    def delete(self, run_id: str) -> None:
        """Delete the record of a run, which another store holds now; the caller is the only one to execute the run."""
        self._record_path(run_id).unlink(missing_ok=True)

    def set_aside(self, run_id: str) -> Path | None:
        """Move a corrupt record away and delete the run folder, unless another process does so or has done so.

        Returns:
            The new path of the record, or None.
        """
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        target = self.path / "set-aside" / f"{run_id}-{now}.json"
        with self.claim(run_id) as is_claimed, explained_writes(target):
            if not is_claimed or not self.is_done(run_id):
                return None
            shutil.rmtree(self.run_dir(run_id), ignore_errors=True)
            self._record_path(run_id).replace(target)
            return target

    def record_failure(self, run_id: str, reason: str, traceback: str = "") -> None:
        """Write why an attempt failed."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        write_json(self._failure_path(run_id), {"reason": reason, "time": now, "traceback": traceback})

    def read_failure(self, run_id: str) -> Failure | None:
        """Read why the last attempt failed; None if it did not fail, or the run has a record since."""
        path = self._failure_path(run_id)
        try:
            content = read_json(path)
            return Failure(str(content["time"]), str(content["reason"]), str(content.get("traceback", "")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return Failure("", f"the reason cannot be read from {path}")

    def add_requests(self, name: str, digest: str, runs: Sequence[RequestedRun]) -> None:
        """Add runs to the plan of a recipe; if the recipe has changed, the plan is replaced.

        Args:
            name: The recipe's name.
            digest: The recipe's digest.
            runs: The requests. One with the profile and coordinates of an earlier request replaces it.
        """
        with self._lock():
            earlier = self.read_plan(name)
            kept = earlier.runs if earlier and earlier.digest == digest else ()
            requests = {canonical([run.profile, dict(run.coordinates)]): run for run in (*kept, *runs)}
            content = {"digest": digest, "runs": [run.to_json() for run in requests.values()]}
            write_text(self.plan_path(name), canonical(content) + "\n")

    def read_plan(self, name: str) -> StudyPlan | None:
        """Read the runs requested with a recipe, or None if there are none.

        Raises:
            TwinbudError: The file is damaged, or no study has written it.
        """
        path = self.plan_path(name)
        try:
            content = read_json(path)
            plan = StudyPlan(str(content["digest"]), tuple(map(RequestedRun.from_json, content["runs"])))
            if len({frozenset(run.coordinates) for run in plan.runs}) > 1:
                raise ValueError("the runs have different axes")
            return plan
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TwinbudError(
                "the plan of the study cannot be read", where=str(path), fix="Delete it, and run the study again"
            ) from error

    def _lock(self) -> FileLock:
        """Return the lock for files that several processes change."""
        return FileLock(self.path / "claims" / "study.lock")

    def _record_path(self, run_id: str) -> Path:
        return self.path / "records" / f"{run_id}.json"

    def _failure_path(self, run_id: str) -> Path:
        return self.path / "failures" / f"{run_id}.json"

    def plan_path(self, name: str) -> Path:
        """Return the file with the runs requested with a recipe."""
        return self.path / "plans" / f"{name}.json"


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(record).encode()).hexdigest()


def _corrupt(path: Path, problem: str) -> CorruptRecordError:
    return CorruptRecordError(problem, where=str(path), fix="Run the study again")
