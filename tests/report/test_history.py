"""The history is on the disk after each epoch, or the run says that it is not."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from twinbud.core.errors import TwinbudError
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


def test_a_removed_run_folder_is_named_at_the_next_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with history_writer(folder) as write:
        write(record(1))
        shutil.rmtree(folder)
        with pytest.raises(TwinbudError, match="run: the run folder no longer exists"):
            write(record(2))


def test_tensorboard_reads_every_curve(tmp_path: Path) -> None:
    with history_writer(tmp_path) as write:
        for epoch in (1, 2):
            write(replace(record(epoch), loss=1 / epoch, test_accuracy=0.25 * epoch))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in events.Scalars("test/accuracy")] == [0.25, 0.5]
    assert "train/loss_skd" not in events.Tags()["scalars"]
