"""The history of a run as it grows: ``history.csv`` and TensorBoard events, a row an epoch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from twinbud.errors import explained_writes
from twinbud.training.checkpoint import EpochRecord


class HistoryWriter:
    """Writes each epoch's record at once, so that a run that stops keeps what it did.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = folder
        self.events = SummaryWriter(str(folder))
        self.file = (folder / "history.csv").open("w", encoding="utf-8", newline="")
        self.rows = csv.DictWriter(self.file, [field.name for field in fields(EpochRecord)])
        self.rows.writeheader()

    def __call__(self, record: EpochRecord) -> None:
        """Add one epoch."""
        row = asdict(record)
        with explained_writes(self.folder):
            self.rows.writerow(row)
            self.file.flush()
            for name in ("loss", "loss_ce", "loss_skd", "accuracy", "test_accuracy", "learning_rate", "seconds"):
                if row[name] is not None:
                    part = "test" if name.startswith("test") else "train"
                    self.events.add_scalar(f"{part}/{name.removeprefix('test_')}", row[name], record.epoch)

    def close(self) -> None:
        """Flush and close both files."""
        self.file.close()
        self.events.close()


@contextmanager
def history_writer(folder: Path, records: Iterable[EpochRecord] = ()) -> Iterator[HistoryWriter]:
    """A HistoryWriter that already holds ``records`` and is closed when the context ends."""
    with explained_writes(folder):
        writer = HistoryWriter(folder)
    for record in records:
        writer(record)
    try:
        yield writer
    finally:
        with explained_writes(folder):
            writer.close()
