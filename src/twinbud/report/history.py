"""The training history of a run: ``history.csv`` and TensorBoard events, extended after each epoch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from twinbud.core.csv_files import format_csv
from twinbud.core.errors import TwinbudError, explained_writes
from twinbud.training.checkpoint import EpochRecord

_CURVES = ("loss", "loss_ce", "loss_skd", "accuracy", "test_accuracy", "learning_rate", "seconds")


class HistoryWriter:
    """Writes each epoch's record immediately, so that a stopped run keeps its history.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / "history.csv").open("w", encoding="utf-8", newline="")
        self.events = EventFile(folder)
        self.file.write(format_csv([[field.name for field in fields(EpochRecord)]]))

    def __call__(self, record: EpochRecord) -> None:
        """Add one epoch.

        Raises:
            TwinbudError: The disk is full, or the run folder no longer exists.
        """
        if not self.folder.is_dir():  # writing to the open file would succeed, but nobody could read it
            problem = "the run folder no longer exists; it was moved or removed during the run"
            fix = "Start the run again, and leave its folder in place"
            raise TwinbudError(problem, where=str(self.folder), fix=fix)
        row = asdict(record)
        with explained_writes(self.folder):
            self.file.write(format_csv([row.values()]))
            self.file.flush()
            parts = {name: "test" if name.startswith("test") else "train" for name in _CURVES if row[name] is not None}
            self.events.write(
                {f"{part}/{name.removeprefix('test_')}": row[name] for name, part in parts.items()}, record.epoch
            )

    def close(self) -> None:
        """Close both files."""
        self.file.close()
        self.events.close()


class EventFile:
    """A TensorBoard file of scalars, written immediately and in the calling thread.

    ``torch.utils.tensorboard`` writes from another thread, whose errors (a full disk, a removed folder) cannot be
    caught.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event: Any = event_pb2  # generated modules, which type checkers cannot analyze
        self.summary: Any = summary_pb2
        now = time.time()
        self.file = (folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}").open("wb")
        self.records = RecordWriter(self.file)
        self._add(self.event.Event(wall_time=now, file_version="brain.Event:2"))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Add one point to each curve."""
        values = [self.summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        summary = self.summary.Summary(value=values)
        self._add(self.event.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _add(self, event: Any) -> None:
        self.records.write(event.SerializeToString())
        self.file.flush()


@contextmanager
def history_writer(folder: Path, records: Iterable[EpochRecord] = ()) -> Iterator[HistoryWriter]:
    """Open a HistoryWriter that starts with ``records``, and close it when the context ends."""
    with explained_writes(folder):
        writer = HistoryWriter(folder)
    for record in records:
        writer(record)
    try:
        yield writer
    finally:
        with explained_writes(folder):
            writer.close()
