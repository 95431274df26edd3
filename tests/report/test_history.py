"""The history is on the disk after each epoch, or the run says that it is not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from twinbud.errors import TwinbudError
from twinbud.report.history import history_writer
from twinbud.training.checkpoint import EpochRecord


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch, step=epoch, learning_rate=0.1, loss=1.0, loss_ce=1.0, loss_skd=None, accuracy=0.5, seconds=1.0
    )


def test_each_epoch_is_on_the_disk_before_the_next(tmp_path: Path) -> None:
    with history_writer(tmp_path, [record(1)]) as write:
        write(record(2))
        with (tmp_path / "history.csv").open(newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_run_folder_that_vanishes_is_named_at_the_next_epoch(tmp_path: Path) -> None:
    """And TensorBoard's thread, which would end in a traceback, is not asked to write there."""
    folder = tmp_path / "run"
    folder.mkdir()
    with history_writer(folder) as write:
        write(record(1))
        shutil.rmtree(folder)
        with pytest.raises(TwinbudError, match=r"run: expected the run folder, got none \(was it moved or removed\?\)"):
            write(record(2))
