"""Studies as a user runs them: shared, killed, stopped, failing, and always each run once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from helpers.builders import save_images
from helpers.command import Answer, twinbud
from helpers.studies import SETTINGS, comparable, recipe_content, save_material, save_recipe, study_process, workers_of
from twinbud.study.export import collect
from twinbud.study.recipe import read_recipe
from twinbud.study.run import StudyRequest, execute_study, plan_study
from twinbud.study.store import RunStore
from twinbud.training.checkpoint import START, Checkpoint, CheckpointFolder


class Small(NamedTuple):
    """A study of four runs, and the same done without a disturbance."""

    recipe: Path
    images: Path
    runs: Path

    def begin(self, runs: Path, *words: object) -> subprocess.Popen[str]:
        """Start it as a process of its own, to be killed or stopped."""
        return study_process(self.recipe, self.images, runs, *words)

    def finish(self, runs: Path, *words: object, code: int = 0) -> Answer:
        """Do what is missing; one worker, since starting two takes longer than the runs."""
        place = ("--data", f"shades={self.images}", "--runs", runs)
        answer = twinbud("study", self.recipe, *place, "--workers", 1, *words)
        assert answer.code == code, answer.err
        return answer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    images, teacher = save_material(folder)
    content = recipe_content(teacher, settings={**SETTINGS, "epochs": 60})
    study = Small(save_recipe(folder / "small.yaml", content), images, folder / "runs")
    study.finish(study.runs)
    return study


def end(process: subprocess.Popen[str], code: int = 0) -> Answer:
    """What a process said that ended by itself."""
    out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    return Answer(process.returncode, out, err)


def records(runs: Path) -> dict[str, dict[str, Any]]:
    """All records, each whole."""
    folder = RunStore(runs)
    return {path.stem: folder.read(path.stem) for path in sorted((runs / "records").iterdir())}


def require_same(runs: Path, whole: Path) -> None:
    ours, theirs = records(runs), records(whole)
    assert {name: comparable(one) for name, one in ours.items()} == {
        name: comparable(one) for name, one in theirs.items()
    }


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def test_a_study_leaves_a_record_a_run_and_small_run_folders(small: Small) -> None:
    found = records(small.runs)
    assert len(found) == 4
    for run_id, record in found.items():
        work = small.runs / "work" / run_id
        assert json.loads((work / "metrics.json").read_text())["accuracy"] == record["metrics"]["accuracy"]
        assert (work / "predictions.csv").exists()
        assert not (work / "model").exists()
        assert "commit" in record["environment"]
        assert str(small.images) not in json.dumps(record["facts"])


def test_the_same_command_again_does_nothing(small: Small) -> None:
    before = {path: path.stat().st_mtime_ns for path in (small.runs / "records").iterdir()}
    answer = twinbud("study", small.recipe, "--data", f"shades={small.images}", "--runs", small.runs)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("4 of 4 runs done\n")
    assert {path: path.stat().st_mtime_ns for path in (small.runs / "records").iterdir()} == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(small: Small, tmp_path: Path) -> None:
    words = ("study", small.recipe, "--data", f"shades={small.images}", "--dry-run")
    done = twinbud(*words, "--runs", small.runs, "--workers", 1, "--only", "sampling=0,1,2")
    assert "6 runs: 4 done, 2 to do; about " in done.out
    assert "measuring" not in done.err, "a finished run of the same shape tells how long a step takes"
    fresh = twinbud(*words, "--runs", tmp_path / "runs", "--workers", 1)
    assert "4 runs: 0 done, 4 to do; about " in fresh.out
    assert "with 1 worker\n" in fresh.out
    assert "measuring 6 steps: half, dual" in fresh.err
    assert not (tmp_path / "runs").exists()


def test_a_study_killed_at_any_moment_goes_on_and_ends_like_an_undisturbed_one(small: Small, tmp_path: Path) -> None:
    """SIGKILL to the study and its workers, then to the study alone; then the same command again."""
    generator, runs = random.Random(0), tmp_path / "runs"
    for kills_workers in (True, False):
        process = small.begin(runs)
        wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
        time.sleep(generator.uniform(0, 1))
        workers = workers_of(process)
        process.kill()
        for pid in workers if kills_workers else ():
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_worker_that_is_killed_is_replaced_and_its_run_done(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = small.begin(runs, "--workers", 1)
    wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    answer = end(process)
    assert "its process ended with SIGKILL; another worker takes over" in answer.err
    assert "1 interrupted" in answer.err
    require_same(runs, small.runs)


def test_two_studies_on_one_folder_share_the_runs(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    other = small.begin(runs, "--workers", 1)
    said = [small.finish(runs).err, end(other).err]
    require_same(runs, small.runs)
    lines = [line for text in said for line in text.splitlines() if ": accuracy " in line]
    assert len(lines) == 4, "no run was done twice"


def test_a_study_asked_to_stop_saves_exits_75_and_goes_on(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = small.begin(runs, "--workers", 1)
    wait_until(lambda: list(runs.glob("work/*/history.csv")), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    last = end(process, code=75).err.splitlines()[-1]
    assert last.startswith("twinbud: stopped with ")
    assert last.endswith("of 4 runs done; the same command goes on from there")
    assert list(runs.glob("work/*/checkpoints/step-*"))
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_failing_run_does_not_stop_the_others_and_is_tried_again(small: Small, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs_folder = RunStore(runs)
    runs_folder.create()
    obstacle = runs_folder.work(next(iter(records(small.runs))))
    obstacle.write_text("a file where a run folder should be")
    answer = small.finish(runs, code=2)
    assert answer.out.startswith("3 of 4 runs done\nfailed (1): ")
    assert answer.err.splitlines()[-1] == (
        f"twinbud: {runs}/failures: expected all of 4 runs to end well, got 1 that failed. "
        "Put right what they say, and give the same command again: it does those only."
    )
    (section,) = collect(read_recipe(small.recipe), runs_folder).sections
    assert [row.samplings for row in section.rows if row.num_failed] == ["1 of 2, 1 failed"]
    obstacle.unlink()
    small.finish(runs)
    require_same(runs, small.runs)
    assert not list((runs / "failures").iterdir())


def test_a_corrupt_record_is_made_again_and_a_lost_one_is_taken_from_its_run(small: Small, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    damaged, lost, *_ = sorted((runs / "records").iterdir())
    damaged.write_text(damaged.read_text().replace('"accuracy": 0.', '"accuracy": 1.'))
    lost.unlink()
    histories = [runs / "work" / record.stem / "history.csv" for record in (damaged, lost)]
    before = [path.stat().st_mtime_ns for path in histories]
    answer = small.finish(runs)
    assert f"{damaged}: one that was changed; set aside as {runs}/set-aside/{damaged.stem}-" in answer.err
    assert [path.stat().st_mtime_ns == then for path, then in zip(histories, before, strict=True)] == [False, True]
    require_same(runs, small.runs)


def test_a_run_whose_results_are_damaged_is_done_again(small: Small, tmp_path: Path) -> None:
    """As after a power cut between the run and its record."""
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    record = next((runs / "records").iterdir())
    record.unlink()
    (runs / "work" / record.stem / "metrics.json").write_text("")
    small.finish(runs)
    require_same(runs, small.runs)


def test_a_run_begun_where_steps_are_computed_otherwise_is_begun_anew(small: Small, tmp_path: Path) -> None:
    """On a GPU, or with a compiler: the checkpoint does not fit, the record is the same all the same."""
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


def test_images_that_change_while_a_study_lasts_are_not_recorded_as_the_old_ones(small: Small, tmp_path: Path) -> None:
    images = Path(shutil.copytree(small.images, tmp_path / "images"))
    order = StudyRequest(recipe=small.recipe, runs=tmp_path / "runs", data=[f"shades={images}"], num_workers=1)
    study = plan_study(order)
    first = next(path for path in sorted(images.rglob("*.png")))
    Image.new("L", (32, 32), 7).save(first)
    done = execute_study(order, study)
    assert not done.done
    ((_, reason), *_) = done.failures.values()
    assert reason.startswith(f"{images}: expected the images that the study began with, got others.")


def test_a_broken_image_is_named_with_what_a_recipe_can_do_about_it(small: Small, tmp_path: Path) -> None:
    """``study`` has no --skip-broken: it is a setting of the recipe."""
    images = Path(shutil.copytree(small.images, tmp_path / "images"))
    (images / "dark" / "000.png").write_bytes(b"")
    line = refused(small, "--data", f"shades={images}", "--runs", tmp_path / "runs")
    assert line.startswith("twinbud: dark/000.png: expected a readable PNG")
    assert line.endswith("write skip_broken: true under settings: in the recipe to leave it out.")
    assert "--skip-broken" not in line


def refused(small: Small, *words: object) -> str:
    answer = twinbud("study", small.recipe, *words)
    assert answer.code == 2
    return answer.err.splitlines()[-1]


def test_changed_images_are_refused_before_anything_is_written(small: Small, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(small.runs, tmp_path / "runs"))
    others = save_images(tmp_path / "others", {"dark": 10, "grey": 10, "light": 10}, seed=1)
    answer = twinbud("study", small.recipe, "--data", f"shades={others}", "--runs", runs)
    assert answer.code == 2
    assert "--data shades: expected the images that the records of 'shades' were made with" in answer.err
    assert records(runs) == records(small.runs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--data: expected a place for every set of images, got none for shades. Give --data shades=PATH."),
        (("--data", "shades"), "--data: expected NAME=PATH, got 'shades'. Write --data shades=PATH."),
        (("--data", "shdaes=x"), "--data: expected one of shades, got 'shdaes'. Did you mean 'shades'?"),
        (("--data", "shades=none"), "--data none: expected a folder, a CSV or 'phantom', got a path where there is"),
        (("--data", "shades={images}", "--workers", 0), "--workers: expected at least one worker, got 0."),
        (("--data", "shades={images}", "--workers", 999), "--workers: expected at most "),
        (("--data", "shades={images}", "--workers", "many"), "--workers: expected a whole number or none, got 'many'."),
        (
            ("--data", "shades={images}", "--profile", "fast"),
            "--profile: expected one of paper, quick, best, got 'fast'.",
        ),
        (("--data", "shades={images}", "--only", "x=1"), "--only: expected one of data, pair, method"),
        (("--data", "shades={images}", "--runs", "{images}"), "{images}: expected the runs folder of 'twinbud study'"),
        (("--wrokers", 2), "Did you mean '--workers'?"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_word_is_told_in_one_line_and_nothing_is_written(
    words: tuple[Any, ...], said: str, small: Small, tmp_path: Path
) -> None:
    given = [str(word).format(images=small.images) for word in words]
    runs = () if "--runs" in given else ("--runs", tmp_path / "runs")
    answer = twinbud("study", small.recipe, *given, *runs)
    assert answer.code == 2
    assert answer.out == ""
    assert said.format(images=small.images) in answer.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_tables_are_made_by_the_command_that_a_study_ends_with(small: Small) -> None:
    answer = twinbud("study", small.recipe, "--data", f"shades={small.images}", "--runs", small.runs)
    command = answer.out.splitlines()[-1].removeprefix("next: twinbud ")
    made = twinbud(*command.split())
    assert made.code == 0, made.err
    figures = [f"1.{name}.svg" for name in ("confusion-1", "time-and-memory")]
    assert made.out.splitlines() == [
        f"written: {small.runs}/tables/small.{kind}" for kind in ("md", "csv", "json", "html", *figures)
    ]
