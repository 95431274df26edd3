"""A run folder holds the files of one run, is used by one process at a time, and keeps the files of others."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers.run_holder import hold
from twinbud.core.errors import TwinbudError
from twinbud.core.files import new_folder
from twinbud.runs.run_dir import read_settings, require_run_output, started_run


def finished_run(folder: Path) -> Path:
    with started_run(folder, force=False) as run:
        for name in ("config.yaml", "metrics.json", "events.out.tfevents.1", "model/config.json"):
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text("{}")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["thesis.tex", "model/notes.txt", "evaluation/metrics.json", "checkpoints/mine.pt"])
@pytest.mark.parametrize("unfinished", [True, False])
def test_a_folder_with_files_that_are_not_of_a_run_is_never_replaced(
    name: str, unfinished: bool, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "run")
    if unfinished:
        (run / "UNFINISHED").touch()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("years of work")
    before = contents(run)
    foreign = name if name.startswith(("thesis", "model", "checkpoints")) else "evaluation"
    for resume in (True, False) if unfinished else (False,):
        with pytest.raises(TwinbudError) as caught, started_run(run, force=not resume, resume=resume):
            pass
        assert f"the folder holds files that are not of a run ({foreign})." in str(caught.value)
        assert "or move these files." in str(caught.value)
    assert contents(run) == before


def test_force_replaces_a_run_and_its_leftovers(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    (run / ".split.csv.123.draft").touch()
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / ".step-00000002.draft").mkdir()
    with started_run(run, force=True):
        assert {path.name for path in run.iterdir()} == {"UNFINISHED", ".lock"}
    assert list(run.iterdir()) == []


def test_a_process_that_dies_while_it_replaces_a_run_leaves_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        unlink = Path.unlink

        def die_after(path: Path, **words: bool) -> None:
            unlink(path, **words)
            if path.name == "metrics.json":
                raise KeyboardInterrupt  # stands for SIGKILL

        patch.setattr(Path, "unlink", die_after)
        with pytest.raises(KeyboardInterrupt), started_run(run, force=True):
            pass
    with pytest.raises(TwinbudError, match="the run has not finished"):
        read_settings(run)
    with started_run(run, force=True):
        pass
    assert list(run.iterdir()) == []


def test_an_unfinished_run_names_the_ways_to_continue(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError), started_run(run, force=False):
        raise RuntimeError
    with pytest.raises(TwinbudError, match=r"Repeat it with --resume, or replace it with --force"):
        require_run_output(run, force=False)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(TwinbudError, match=r"Continue it with --resume, or replace it with --force"):
        require_run_output(run, force=False)
    # what other commands are told, which have no --resume
    with pytest.raises(TwinbudError, match=r"Finish it: repeat its 'twinbud train' command with --resume"):
        read_settings(run)


@pytest.mark.parametrize("fill", [started_run, new_folder])
def test_an_error_inside_the_context_is_not_reported_as_an_error_of_the_output_folder(
    fill: Callable[..., AbstractContextManager[Path]], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="an image that vanished"), fill(tmp_path / "folder", force=False):
        raise FileNotFoundError(2, "an image that vanished")


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[tuple[Path, SpawnProcess]]:
    """A run folder that another process works in."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
    process.start()
    assert ours.recv() == "started"
    yield tmp_path / "run", process
    process.kill()
    process.join()


@pytest.mark.parametrize("words", [{"force": True}, {"force": False}, {"force": False, "resume": True}], ids=str)
def test_a_run_folder_with_a_process_at_work_is_refused_unchanged(
    words: dict[str, Any], live_run: tuple[Path, SpawnProcess]
) -> None:
    run, process = live_run
    (run / "history.csv").write_text("epoch\n1\n")
    before = contents(run)
    for refused in (require_run_output, started_run):
        with pytest.raises(TwinbudError) as caught, refused(run, **words) or nullcontext():
            pass
        assert f"{run}: process {process.pid} on " in str(caught.value)
        assert "works in this run folder. Wait for it or stop it" in str(caught.value)
    assert contents(run) == before


def test_a_run_that_starts_meanwhile_is_not_called_a_folder_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Path.iterdir

    def start_and_look(path: Path) -> Iterator[Path]:
        (path / "UNFINISHED").touch()
        return look(path)

    monkeypatch.setattr(Path, "iterdir", start_and_look)
    require_run_output(tmp_path, force=True)


def test_a_killed_process_leaves_no_lock(live_run: tuple[Path, SpawnProcess]) -> None:
    run, process = live_run
    process.kill()
    process.join()
    with started_run(run, force=False, resume=True):
        assert (run / "UNFINISHED").exists()
    assert list(run.iterdir()) == []


def test_two_threads_cannot_work_in_one_run_folder(tmp_path: Path) -> None:
    with (
        started_run(tmp_path / "run", force=False),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(TwinbudError, match=f"process {os.getpid()} on"),
    ):
        pool.submit(require_run_output, tmp_path / "run", force=True).result()


def test_a_folder_with_a_lock_file_alone_is_an_empty_one(tmp_path: Path) -> None:
    """A process killed just after it had made the lock file left it."""
    (tmp_path / ".lock").touch()
    with started_run(tmp_path, force=False):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    with started_run(tmp_path / "run", force=False):
        pass
    assert "cannot be locked" in caplog.text
