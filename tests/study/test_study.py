"""Studies as a user runs them: shared, killed, stopped or failing, and every run is executed once."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from helpers.builders import save_images, save_vit_teacher
from helpers.command import Answer, twinbud
from helpers.processes import Command
from helpers.studies import (
    SETTINGS,
    comparable,
    recipe_content,
    save_images_and_teacher,
    save_recipe,
    start_study,
    workers_of,
)
from twinbud.study.recipe import read_recipe
from twinbud.study.run import StudyRequest, execute_study, plan_study
from twinbud.study.store import RunStore
from twinbud.study.write_tables import collect
from twinbud.training.checkpoint import START, Checkpoint, CheckpointFolder


class Small(NamedTuple):
    """A study of four runs, and its runs folder after an undisturbed execution."""

    recipe: Path
    images: Path
    runs: Path

    def begin(self, runs: Path, *options: object) -> Command:
        """Start the study as a process, to be killed or stopped."""
        return start_study(self.recipe, self.images, runs, *options)

    def finish(self, runs: Path, *options: object, code: int = 0) -> Answer:
        """Execute the missing runs in this process: starting a worker takes longer than the runs."""
        data = f"shades={self.images}"
        answer = twinbud("study", self.recipe, "--data", data, "--runs", runs, "--workers", 0, *options)
        assert answer.code == code, answer.err
        return answer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    images, teacher = save_images_and_teacher(folder)
    content = recipe_content(teacher, settings={**SETTINGS, "epochs": 24})
    study = Small(save_recipe(folder / "small.yaml", content), images, folder / "runs")
    study.finish(study.runs)
    return study


def end(command: Command, code: int = 0) -> Answer:
    """Wait until a process ends, and return its output."""
    answer = command.wait()
    assert answer.code == code, answer.err
    return answer


def records(runs: Path) -> dict[str, dict[str, Any]]:
    """Read all records by run id."""
    store = RunStore(runs)
    return {run_id: store.read(run_id) for run_id in sorted(store.done_ids())}


def require_same(runs: Path, expected: Path) -> None:
    first, second = (
        {run_id: comparable(record) for run_id, record in records(folder).items()} for folder in (runs, expected)
    )
    assert first == second


def wait_until(condition: Any, command: Command) -> None:
    deadline = time.monotonic() + 120
    while not condition() and command.is_running and time.monotonic() < deadline:
        time.sleep(0.005)


def test_every_run_has_a_record_and_a_run_folder_without_model(small: Small) -> None:
    found = records(small.runs)
    assert len(found) == 4
    for run_id, record in found.items():
        work = small.runs / "work" / run_id
        assert json.loads((work / "metrics.json").read_text())["accuracy"] == record["metrics"]["accuracy"]
        assert (work / "predictions.csv").exists()
        assert not (work / "model").exists()
        assert "commit" in record["environment"]
        assert str(small.images) not in json.dumps(record["facts"])


def test_a_finished_study_is_not_executed_again(small: Small) -> None:
    before = {path: path.stat().st_mtime_ns for path in (small.runs / "records").iterdir()}
    answer = twinbud("study", small.recipe, "--data", f"shades={small.images}", "--runs", small.runs)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("4 of 4 runs done\n")
    assert {path: path.stat().st_mtime_ns for path in (small.runs / "records").iterdir()} == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(small: Small, tmp_path: Path) -> None:
    options = ("study", small.recipe, "--data", f"shades={small.images}", "--dry-run")
    done = twinbud(*options, "--runs", small.runs, "--workers", 1, "--only", "sampling=0,1,2")
    assert "6 runs: 4 done, 2 to do; about " in done.out
    assert "timing" not in done.err, "the time of a step comes from the records"
    fresh = twinbud(*options, "--runs", tmp_path / "runs", "--workers", 1)
    assert "4 runs: 0 done, 4 to do; about " in fresh.out
    assert "with 1 worker\n" in fresh.out
    assert "timing 6 steps: half, dual" in fresh.err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_names_as_they_are_written(small: Small, tmp_path: Path) -> None:
    """Brackets are markup of the library that draws the table."""
    content = yaml.safe_load(small.recipe.read_text())
    content |= {"title": "At [5 %] [/b]", "methods": {"dual[/x]": {"method": "dual"}}}
    recipe = save_recipe(tmp_path / "small.yaml", content)
    words = ("--data", f"shades={small.images}", "--runs", small.runs, "--workers", 1, "--only", "method=dual[/x]")
    answer = twinbud("study", recipe, *words, "--dry-run")
    assert answer.code == 0, answer.err
    assert "At [5 %] [/b]" in answer.out
    assert " dual[/x] " in answer.out


def test_a_killed_study_resumes_with_the_same_results(small: Small, tmp_path: Path) -> None:
    """SIGKILL to the study and its workers, then to the study alone."""
    generator, runs = random.Random(0), tmp_path / "runs"
    for kills_workers in (True, False):
        process = small.begin(runs)
        wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
        time.sleep(generator.uniform(0, 0.5))
        workers = workers_of(process)
        process.process.kill()
        for pid in workers if kills_workers else ():
            os.kill(pid, signal.SIGKILL)
        process.wait()
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_killed_worker_is_replaced_and_its_run_resumed(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = small.begin(runs, "--workers", 1)
    wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    answer = end(process)
    assert "its worker process died (SIGKILL); another worker resumes the run" in answer.err
    assert "1 interrupted" in answer.err
    require_same(runs, small.runs)


def test_two_studies_on_one_folder_share_the_runs(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    other = small.begin(runs, "--workers", 1)
    outputs = [small.finish(runs).err, end(other).err]
    require_same(runs, small.runs)
    lines = [line for output in outputs for line in output.splitlines() if ": accuracy " in line]
    assert len(lines) == 4, "no run is executed twice"


def test_an_interrupted_study_saves_exits_75_and_resumes(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = small.begin(runs, "--workers", 1)
    wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    last = end(process, code=75).err.splitlines()[-1]
    assert last.startswith("twinbud: stopped with ")
    assert last.endswith("of 4 runs done; the same command resumes the study")
    assert list(runs.glob("work/*/checkpoints/step-*"))
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_failing_run_does_not_end_the_study_and_is_tried_again(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store = RunStore(runs)
    store.create()
    obstacle = store.run_dir(next(iter(records(small.runs))))
    obstacle.write_text("a file where a run folder should be")
    answer = small.finish(runs, code=2)
    assert answer.out.startswith("3 of 4 runs done\nfailed (1): ")
    line = answer.err.splitlines()[-1]
    assert line.startswith(f"twinbud: {runs}/failures: 1 of 4 runs failed; first: {obstacle}: a file stands where ")
    assert line.endswith("Correct the causes, and give the same command again: it executes only these runs.")
    (section,) = collect(read_recipe(small.recipe), store).sections
    assert [row.samplings for row in section.rows if row.num_failed] == ["1 of 2, 1 failed"]
    obstacle.unlink()
    small.finish(runs)
    require_same(runs, small.runs)
    assert not list((runs / "failures").iterdir())


def test_a_corrupt_record_repeats_its_run_and_a_lost_one_is_rebuilt_from_its_run_folder(
    small: Small, tmp_path: Path
) -> None:
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    damaged, lost, *_ = sorted((runs / "records").iterdir())
    damaged.write_text(damaged.read_text().replace('"accuracy": 0.', '"accuracy": 1.'))
    lost.unlink()
    histories = [runs / "work" / record.stem / "history.csv" for record in (damaged, lost)]
    before = [path.stat().st_mtime_ns for path in histories]
    answer = small.finish(runs)
    assert (
        f"{damaged}: the record was changed after it was written; moved to {runs}/set-aside/{damaged.stem}-"
        in answer.err
    )
    assert [path.stat().st_mtime_ns == then for path, then in zip(histories, before, strict=True)] == [False, True]
    require_same(runs, small.runs)


def test_a_run_with_damaged_results_is_executed_again(small: Small, tmp_path: Path) -> None:
    """As after a power cut between the run and its record."""
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    record = next((runs / "records").iterdir())
    record.unlink()
    (runs / "work" / record.stem / "metrics.json").write_text("")
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_run_with_the_checkpoint_of_another_machine_starts_again(small: Small, tmp_path: Path) -> None:
    """A checkpoint of a GPU or of a compiled run cannot be resumed elsewhere."""
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    record = next((runs / "records").iterdir())
    record.unlink()
    work = runs / "work" / record.stem
    shutil.rmtree(work)
    checkpoint = Checkpoint(position=START, tensors={"x": torch.zeros(1)})
    CheckpointFolder(work / "checkpoints", {"compile": "graphs"}).save(checkpoint)
    (work / "UNFINISHED").write_text("")
    small.finish(runs)
    require_same(runs, small.runs)


def test_images_that_change_during_a_study_fail_their_runs(small: Small, tmp_path: Path) -> None:
    images = Path(shutil.copytree(small.images, tmp_path / "images"))
    request = StudyRequest(recipe=small.recipe, runs=tmp_path / "runs", data=[f"shades={images}"], num_workers=0)
    study = plan_study(request)
    first = next(path for path in sorted(images.rglob("*.png")))
    Image.new("L", (32, 32), 7).save(first)
    done = execute_study(request, study)
    assert not done.done
    failure = next(iter(done.failures.values()))
    assert failure.reason.startswith(f"{images}: the images changed after the study was planned.")


def test_a_network_that_changes_during_a_study_fails_its_runs(small: Small, tmp_path: Path) -> None:
    """One that a method names as the student, too."""
    content = yaml.safe_load(small.recipe.read_text())
    content["methods"] = {"other": {"method": "finetune", "student": save_vit_teacher(tmp_path / "other", seed=5)}}
    recipe = save_recipe(tmp_path / "small.yaml", content)
    only, data = ["method=other", "sampling=0"], [f"shades={small.images}"]
    request = StudyRequest(recipe=recipe, runs=tmp_path / "runs", data=data, only=only, num_workers=0)
    study = plan_study(request)
    shutil.rmtree(tmp_path / "other")
    save_vit_teacher(tmp_path / "other", seed=6)
    done = execute_study(request, study)
    assert not done.done
    (failure,) = done.failures.values()
    assert failure.reason.startswith(f"local-dir:{tmp_path}/other: the student changed after the study was planned.")


def test_the_error_for_a_broken_image_names_the_recipe_setting(small: Small, tmp_path: Path) -> None:
    """``study`` has no --skip-broken option."""
    images = Path(shutil.copytree(small.images, tmp_path / "images"))
    (images / "dark" / "000.png").write_bytes(b"")
    line = refused(small, "--data", f"shades={images}", "--runs", tmp_path / "runs")
    assert line.startswith("twinbud: dark/000.png: ")
    assert line.endswith("or skip broken files with skip_broken: true under settings: in the recipe.")
    assert "--skip-broken" not in line


def refused(small: Small, *options: object) -> str:
    answer = twinbud("study", small.recipe, *options)
    assert answer.code == 2
    return answer.err.splitlines()[-1]


def test_changed_images_are_refused_before_anything_is_written(small: Small, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    others = save_images(tmp_path / "others", {"dark": 10, "grey": 10, "light": 10}, seed=1)
    answer = twinbud("study", small.recipe, "--data", f"shades={others}", "--runs", runs)
    assert answer.code == 2
    assert "--data shades: the images, labels or their order differ from those of the existing records" in answer.err
    assert records(runs) == records(small.runs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "--data: shades has no path. Give --data shades=PATH."),
        (("--data", "shades"), "--data: 'shades' is not NAME=PATH. Write --data shades=PATH."),
        (
            ("--data", "shades=a", "--data", "shades=b"),
            "--data shades: two paths are given, 'a' and 'b'. Give one of them.",
        ),
        (("--data", "shdaes=x"), "--data: 'shdaes' is not one of shades. Did you mean 'shades'?"),
        (("--data", "shades=none"), "--data none: there is no such file or folder."),
        (("--data", "shades={images}", "--workers", -1), "--workers: -1 is negative."),
        (("--data", "shades={images}", "--workers", 999), "--workers: 999 workers need 999 cores (1 for each run)"),
        (
            ("--data", "shades={images}", "--workers", "many"),
            "--workers: 'many' is not a whole number, or none",
        ),
        (
            ("--data", "shades={images}", "--profile", "fast"),
            "--profile: 'fast' is not one of best, quick, paper.",
        ),
        (("--data", "shades={images}", "--only", "x=1"), "--only: 'x' is not one of data, pair, method"),
        (("--data", "shades={images}", "--runs", "{images}"), "{images}: the folder is not a runs folder"),
        (("--data", "shades={images}", "--runs", "{images}/dark/000.png/runs"), "not a folder. Check --runs."),
        (("--wrokers", 2), "Did you mean --workers?"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_refused_in_one_line_and_nothing_is_written(
    options: tuple[Any, ...], expected: str, small: Small, tmp_path: Path
) -> None:
    given = [str(word).format(images=small.images) for word in options]
    runs = () if "--runs" in given else ("--runs", tmp_path / "runs")
    answer = twinbud("study", small.recipe, *given, *runs)
    assert answer.code == 2
    assert answer.out == ""
    assert expected.format(images=small.images) in answer.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_study_ends_with_the_command_that_writes_its_tables(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "with space"
    runs.symlink_to(small.runs)
    answer = twinbud("study", small.recipe, "--data", f"shades={small.images}", "--runs", runs)
    command = answer.out.splitlines()[-1].removeprefix("next: twinbud ")
    made = twinbud(*shlex.split(command))
    assert made.code == 0, made.err
    figures = [f"1.{name}.svg" for name in ("confusion-1", "time-and-memory")]
    assert made.out.splitlines() == [
        f"written: {runs}/tables/small.{kind}" for kind in ("md", "csv", "json", "html", *figures)
    ]
