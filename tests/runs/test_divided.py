"""One run in several processes: the results of one process, one line where something is wrong, nothing left behind."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.builders import save_images, save_vit_teacher
from helpers.command import Answer, refusal, twinbud
from helpers.convolutional import save_narrow_teacher
from helpers.killing import finish, results, wait_for
from helpers.processes import started_together, together

PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "0", "WORLD_SIZE": "2"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words, but for ``--output``, of a run with batches of 7, 7, 7 and 1 images, and a checkpoint an epoch."""
    folder = tmp_path_factory.mktemp("divided")
    images = save_images(folder / "images", {"bright": 14, "dark": 14})
    teacher = save_vit_teacher(folder / "teacher")
    words = "--profile paper --image-size 28 --epochs 8 --batch-size 7 --threads 1 --precision float32 --compile off"
    return ["train", "--data", str(images), "--teacher", teacher, *words.split(), "--checkpoint-seconds", "0"]


def same_to_float32(run: Path, other: Path) -> bool:
    """Whether losses, predictions and weights agree to the tolerance of float32, and both folders hold the same files.

    Adam makes more of differences in the last bits of small gradients.
    """

    def numbers(path: Path, names: tuple[str, ...]) -> torch.Tensor:
        with path.open(encoding="utf-8", newline="") as file:
            return torch.tensor([[float(row[name]) for name in names] for row in csv.DictReader(file)])

    for name, columns in (("history.csv", ("loss",)), ("predictions.csv", ("probability_bright", "probability_dark"))):
        torch.testing.assert_close(numbers(run / name, columns), numbers(other / name, columns), rtol=1e-3, atol=1e-3)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=1e-3)
    files = [{path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (run, other)]
    files = [{name for name in names if "tfevents" not in name} for names in files]
    return files[0] == files[1]


def test_a_run_in_two_processes_with_a_tuned_teacher_gives_what_one_process_gives(
    command: list[str], tmp_path: Path
) -> None:
    tuned = "--epochs 2 --recover labelled --recover-epochs 1 --tune-teacher --tune-epochs 1 --tune-min-steps 0"
    words = [*command, *tuned.split(), "--distillation", "skd+teacher"]
    finish(words, tmp_path / "one")
    first, second = together([*words, "--output", str(tmp_path / "two")], tmp_path / "log")
    assert (first.code, second) == (0, Answer(0, "", "")), first.err
    assert same_to_float32(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert ", processes: 2" in (tmp_path / "two" / "report.html").read_text(encoding="utf-8")


def stopped(command: list[str], run: Path, count: int, *signalled: int) -> list[Answer]:
    """Start a run in several processes, and send SIGTERM to some of them after the first checkpoint."""
    with started_together([[*command, "--output", str(run)]] * count, run.with_suffix(".log")) as processes:
        wait_for(run / "checkpoints", processes[0])
        for rank in signalled:
            os.kill(processes[rank].pid, signal.SIGTERM)
        return [process.wait() for process in processes]


def test_a_run_stopped_in_two_processes_goes_on_in_any_number_of_them(command: list[str], tmp_path: Path) -> None:
    whole = together([*command, "--output", str(tmp_path / "whole")], tmp_path / "whole-log")
    assert [answer.code for answer in whole] == [0, 0]
    first, second = stopped(command, tmp_path / "stopped", 2, 1)
    assert (first.code, second) == (75, Answer(75, "", ""))
    assert first.err.splitlines()[-1].endswith("continue with the same command and --resume")
    for count in (2, 3):
        run = Path(shutil.copytree(tmp_path / "stopped", tmp_path / f"in-{count}"))
        answers = together([*command, "--resume", "--output", str(run)], tmp_path / f"log-{count}", count)
        assert [answer.code for answer in answers] == [0] * count
        assert "going on after step" in answers[0].err
    finish([*command, "--resume"], tmp_path / "stopped")
    assert results(tmp_path / "in-2") == results(tmp_path / "whole")
    assert same_to_float32(tmp_path / "in-3", tmp_path / "whole")
    assert same_to_float32(tmp_path / "stopped", tmp_path / "whole")


def test_a_killed_process_ends_the_others_with_one_line(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started_together([[*command, "--output", str(run)]] * 3, tmp_path / "log") as processes:
        wait_for(run / "checkpoints", processes[0])
        processes[1].process.kill()
        first, killed, third = (process.wait() for process in processes)
    assert "the connection to another process was lost" in refusal(first)
    assert killed.code == -signal.SIGKILL
    assert third == Answer(2, "", "")
    assert "the connection to another process was lost" in (run / "UNFINISHED").read_text()


def test_a_process_that_sees_other_images_is_named_before_anything_is_written(
    command: list[str], tmp_path: Path
) -> None:
    images = Path(shutil.copytree(command[2], tmp_path / "images"))
    next(images.glob("dark/*.png")).write_bytes(next(images.glob("bright/*.png")).read_bytes())
    words = [*command, "--output", str(tmp_path / "run")]
    other = [*words[:2], str(images), *words[3:]]
    with started_together([words, other], tmp_path / "log") as processes:
        first, second = (process.wait() for process in processes)
    line = refusal(first)
    assert line.startswith("process 2 of 2: ")
    assert "this process has other images than the first one" in line
    assert second == Answer(2, "", "")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_first_process_ends_the_others_in_silence(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    first, second = together([*command, "--output", str(tmp_path / "run")], tmp_path / "log")
    assert "holds files" in refusal(first) or "not empty" in refusal(first)
    assert second == Answer(2, "", "")


@pytest.fixture
def started_as_first_of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.usefixtures("started_as_first_of_two")
def test_a_batch_smaller_than_the_number_of_processes_is_refused(command: list[str], tmp_path: Path) -> None:
    answer = twinbud(*command, "--batch-size", 1, "--output", tmp_path / "run")
    assert refusal(answer).startswith("--batch-size: a batch of 1 images cannot be divided among 2 processes. ")


@pytest.mark.usefixtures("started_as_first_of_two")
@pytest.mark.parametrize("words", [("study", "recipe.yaml", "--runs", "runs"), ("predict", "run", "images")])
def test_commands_that_are_not_divided_are_refused(words: tuple[str, ...]) -> None:
    line = refusal(twinbud(*words))
    assert line.startswith(f"twinbud {words[0]}: 2 processes were started together, but only 'twinbud train' is")


def test_the_second_process_of_a_machine_does_not_repeat_an_error(
    started_as_first_of_two: pytest.MonkeyPatch, command: list[str], tmp_path: Path
) -> None:
    started_as_first_of_two.setenv("RANK", "1")
    assert twinbud(*command, "--batch-size", 1, "--output", tmp_path / "run") == Answer(2, "", "")


def test_more_processes_than_gpus_are_refused(
    started_as_first_of_two: pytest.MonkeyPatch, command: list[str], tmp_path: Path
) -> None:
    started_as_first_of_two.setattr(torch.cuda, "is_available", lambda: True)
    started_as_first_of_two.setattr(torch.cuda, "device_count", lambda: 1)
    line = refusal(twinbud(*command, "--output", tmp_path / "run"))
    assert "2 processes of this machine need a GPU each, but PyTorch finds 1. Start at most 1 on each machine" in line


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "2"), ("RANK", "-1")])
def test_a_place_that_is_no_number_is_refused(
    name: str, value: str, started_as_first_of_two: pytest.MonkeyPatch, command: list[str], tmp_path: Path
) -> None:
    started_as_first_of_two.setenv(name, value)
    line = refusal(twinbud(*command, "--output", tmp_path / "run"))
    assert line.startswith(f"environment variable {name}: '{value}' is not a whole number from ")


def test_one_process_under_torchrun_is_an_ordinary_run(
    started_as_first_of_two: pytest.MonkeyPatch, command: list[str], tmp_path: Path
) -> None:
    words = [*command, "--epochs", "1"]
    started_as_first_of_two.setenv("WORLD_SIZE", "1")
    finish(words, tmp_path / "launched")
    started_as_first_of_two.undo()
    finish(words, tmp_path / "plain")
    assert results(tmp_path / "launched") == results(tmp_path / "plain")


def test_a_network_with_batch_norms_is_refused(command: list[str], tmp_path: Path) -> None:
    teacher = save_narrow_teacher(tmp_path / "teacher", "resnet18")
    words = [*command, "--image-size", "32", "--teacher", teacher]
    first, second = together([*words, "--output", str(tmp_path / "run")], tmp_path / "log")
    assert "has batch norms" in refusal(first)
    assert second == Answer(2, "", "")


def test_ctrl_c_saves_the_run_though_torchrun_signals_each_process_once_more(
    command: list[str], tmp_path: Path
) -> None:
    """``make soak`` does the same with torchrun itself."""
    words = [*command, "--epochs", "100", "--output", str(tmp_path / "run")]
    with started_together([words] * 2, tmp_path / "log") as processes:
        wait_for(tmp_path / "run" / "checkpoints", processes[0])
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            for process in processes:
                with suppress(ProcessLookupError):  # it has ended already
                    os.kill(process.pid, number)
        first, second = (process.wait() for process in processes)
    assert (first.code, second) == (75, Answer(75, "", "")), first.err
    assert first.err.splitlines()[-1].endswith("continue with the same command and --resume")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_what_one_gives(command: list[str], tmp_path: Path) -> None:
    words = [*command, "--epochs", "3", "--device", "cuda"]
    finish(words, tmp_path / "one")
    answers = together([*words, "--output", str(tmp_path / "two")], tmp_path / "log")
    assert [answer.code for answer in answers] == [0, 0]
    assert same_to_float32(tmp_path / "one", tmp_path / "two")
