"""The runs folder: one immutable record a finished run, one file a failure, claims that die with their process.

- ``study.json`` marks the folder, and says which images each name stands for.
- ``plans/RECIPE.json``: the runs that were asked for under a recipe.
- ``records/IDENTITY.json``: a finished run; written once, whole, with its own checksum.
- ``failures/IDENTITY.json``: why a run failed when it was last tried.
- ``claims/IDENTITY.lock``: held by the process that does the run; the system lets go of it however that process ends.
- ``work/IDENTITY/``: the run folder, see ``twinbud.runs.run_dir``.
- ``set-aside/``: corrupt records.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.core.files import read_json, write_json, write_text
from twinbud.study.run_id import canonical, make_run_id

FORMAT = 1
MARKER = "study.json"
TABLES = "tables"
"""Where ``twinbud tables`` writes if it is not told otherwise."""
_ASKED = ("identity", "profile", "coordinates", "is_default")
_FOLDERS = ("plans", "records", "failures", "claims", "work", "set-aside")


class CorruptRecordError(TwinbudError):
    """A record that is not what was written."""


@dataclass(frozen=True)
class RunStore:
    """What several processes share: each file appears whole or not at all, and a run is done by one that claimed it."""

    path: Path

    def require(self, *, begun: bool = True) -> None:
        """Refuse a folder that holds something else.

        Args:
            begun: Whether it must be there already; else it may also be missing or empty.

        Raises:
            TwinbudError: It is no runs folder.
        """
        if self.path.is_dir():
            held = {path.name for path in self.path.iterdir() if path.suffix != ".draft"}
            if begun or held - {*_FOLDERS, TABLES}:
                self._manifest()
        elif begun or self.path.exists():
            got = "a file" if self.path.exists() else "no such folder"
            raise TwinbudError(
                "the runs folder of 'twinbud study'", got=got, where=str(self.path), fix="Check --runs, or run it first"
            )

    def create(self) -> None:
        """Make the folder, or go on in one that is a runs folder already.

        Raises:
            TwinbudError: Something else is there, or it may not be written.
        """
        self.require(begun=False)
        with explained_writes(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            with self._alone():
                if not (self.path / MARKER).exists():
                    write_json(self.path / MARKER, {"format": FORMAT, "data": {}})

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MARKER
        try:
            content = read_json(path)
            data, known = dict(content["data"]), content["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TwinbudError(
                "the runs folder of 'twinbud study'",
                got=f"a folder without a readable {MARKER}",
                where=str(self.path),
                fix="Choose another --runs",
            ) from error
        if not known:
            raise TwinbudError(f"runs of format {FORMAT}", got="others", where=str(path), fix="Choose another --runs")
        return data

    def images(self) -> dict[str, dict[str, Any]]:
        """Of each named set: ``fingerprint``, ``num_images`` and ``classes``."""
        return self._manifest()

    def check_images(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What the names stand for so far, none of them for other images than now.

        Raises:
            TwinbudError: A name stood for other images when the folder's runs were made.
        """
        known = self._manifest() if (self.path / MARKER).exists() else {}
        for name, description in found.items():
            if name in known and known[name]["fingerprint"] != description["fingerprint"]:
                raise TwinbudError(
                    f"the images that the records of '{name}' were made with",
                    got="others (an image, a label or their order has changed)",
                    where=f"--data {name}",
                    fix="Give the same images, or another --runs",
                )
        return known

    def agree_on_images(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down which images each name stands for.

        Raises:
            TwinbudError: See ``check_images``.
        """
        with self._alone():
            write_json(self.path / MARKER, {"format": FORMAT, "data": {**self.check_images(found), **found}})

    @contextmanager
    def claim(self, run_id: str) -> Iterator[bool]:
        """Whether the run is this process's to do, for as long as the context lasts.

        A process that dies loses its claims, so nothing has to be tidied up after it.
        """
        lock = FileLock(self.path / "claims" / f"{run_id}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def work(self, run_id: str) -> Path:
        """The run folder."""
        return self.path / "work" / run_id

    def is_done(self, run_id: str) -> bool:
        """Whether there is a record, unread."""
        return self._record(run_id).exists()

    def read(self, run_id: str) -> dict[str, Any]:
        """A finished run's record.

        Raises:
            CorruptRecordError: It is not what was written.
            TwinbudError: It is the record of another run, such as one on other images.
        """
        path = self._record(run_id)
        try:
            sealed = read_json(path)
            record = sealed["record"]
            whole = sealed["sha256"] == hashlib.sha256(canonical(record).encode()).hexdigest()
            facts = record["facts"] if whole else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._corrupt(path, "a file that cannot be read") from error
        if not whole:
            raise self._corrupt(path, "one that was changed")
        if make_run_id(facts) != run_id:
            raise TwinbudError(
                "the record of the run that its name says",
                got="one made with other images or settings",
                where=str(path),
                fix="Move it away, and run the study again",
            )
        return record

    def write(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Keep a finished run's record; to be called by the claim's holder alone."""
        checksum = hashlib.sha256(canonical(record).encode()).hexdigest()
        write_json(self._record(run_id), {"sha256": checksum, "record": record})
        self._failure(run_id).unlink(missing_ok=True)

    def set_aside(self, run_id: str) -> Path | None:
        """Move a corrupt record out of the way, and its run folder with it, unless another process has done so.

        Returns:
            Where the record now lies.
        """
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        place = self.path / "set-aside" / f"{run_id}-{now}.json"
        with self.claim(run_id) as is_mine, explained_writes(place):
            if not is_mine or not self.is_done(run_id):
                return None
            shutil.rmtree(self.work(run_id), ignore_errors=True)
            self._record(run_id).replace(place)
            return place

    def fail(self, run_id: str, reason: str, traceback: str = "") -> None:
        """Write down why a run failed."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        write_json(self._failure(run_id), {"reason": reason, "time": now, "traceback": traceback})

    def failure(self, run_id: str) -> tuple[str, str] | None:
        """When and why the run last failed, if it did and has not been done since."""
        try:
            content = read_json(self._failure(run_id))
            return str(content["time"]), str(content["reason"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "", "the file that says why cannot be read"

    def ask_for(self, name: str, digest: str, runs: Sequence[Mapping[str, Any]]) -> None:
        """Add runs to those asked for under a recipe; another recipe of that name begins anew.

        Args:
            name: The recipe's.
            digest: That of what the recipe says.
            runs: Each with its ``run_id``, ``profile``, ``coordinates`` and ``is_default``; one asked for again takes
                the place of the earlier one.
        """
        with self._alone():
            earlier = self.read_plan(name)
            kept = earlier["runs"] if earlier and earlier["digest"] == digest else []
            by_place = {canonical([run["profile"], run["coordinates"]]): run for run in [*kept, *runs]}
            plan = {"digest": digest, "runs": list(by_place.values())}
            write_text(self.path / "plans" / f"{name}.json", canonical(plan) + "\n")

    def read_plan(self, name: str) -> dict[str, Any] | None:
        """What was asked for under a recipe, or None.

        Raises:
            TwinbudError: The file is damaged.
        """
        path = self.path / "plans" / f"{name}.json"
        try:
            plan = read_json(path)
            runs = [{name: run[name] for name in _ASKED} for run in plan["runs"]]
            return {"digest": str(plan["digest"]), "runs": runs}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TwinbudError(
                "the plan of a study", got="a file that cannot be read", where=str(path), fix="Delete it, and run again"
            ) from error

    def _alone(self) -> FileLock:
        """Held while a file is changed that several processes change."""
        return FileLock(self.path / "claims" / "study.lock")

    def _record(self, run_id: str) -> Path:
        return self.path / "records" / f"{run_id}.json"

    def _failure(self, run_id: str) -> Path:
        return self.path / "failures" / f"{run_id}.json"

    def _corrupt(self, path: Path, got: str) -> CorruptRecordError:
        return CorruptRecordError("a record as it was written", got=got, where=str(path), fix="Run the study again")
