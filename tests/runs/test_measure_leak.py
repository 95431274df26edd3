"""``train --measure-leak`` trains on two splits, delivers the grouped one, and reports what the naive one claims."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from helpers.command import refusal, train
from helpers.runs import read_json, rows, same_outcome
from twinbud.evaluation.leak import shown_in_training
from twinbud.report.model import read_summary
from twinbud.runs.result import RunMetrics

GROUPED = ("--near-duplicates", "group")
LEAK = (*GROUPED, "--measure-leak")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 pictures of noise, each with a brighter copy; the first of a class has an identical one too."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        values = gaussian_filter(np.random.default_rng(number).normal(size=(64, 64)), 2)
        values = 110 + 30 * values / values.std()
        place = folder / "xy"[number % 2]
        place.mkdir(exist_ok=True)
        for name, pixels in (("a", values), ("b", 0.8 * values + 40)):
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:02}{name}.png")
        if number < 2:
            shutil.copy(place / f"{number:02}a.png", place / f"{number:02}c.png")
    return folder


@pytest.fixture(scope="module")
def measured(pictures: Path, shared_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("measured") / "run"
    answer = train(pictures, shared_teacher, run, *LEAK)
    assert answer.code == 0, answer.err
    assert "What a naive split would claim" in answer.out
    return run


def test_the_delivered_run_is_the_one_without_measuring(
    measured: Path, pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    assert train(pictures, shared_teacher, tmp_path / "plain", *GROUPED).code == 0
    assert same_outcome(tmp_path / "plain", measured)
    assert (tmp_path / "plain" / "config.yaml").read_bytes() == (measured / "config.yaml").read_bytes()


def test_the_naive_run_is_that_of_the_plain_split(
    measured: Path, pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--near-duplicates", "ignore", "--split-duplicates")
    assert train(pictures, shared_teacher, tmp_path / "naive", *words).code == 0
    assert same_outcome(tmp_path / "naive", measured / "naive")


def test_accuracies_and_copies_are_those_of_the_files_of_both_runs(measured: Path) -> None:
    leak = RunMetrics.from_json(read_json(measured / "metrics.json")).leak
    naive = RunMetrics.from_json(read_json(measured / "naive" / "metrics.json"))
    assert leak is not None
    assert naive.leak is None
    assert (leak.naive_accuracy, leak.naive_num_test) == (naive.accuracy, naive.num_test)
    assert leak.difference == leak.naive_accuracy - leak.grouped_accuracy
    part = {row["image_path"]: row["split"] for row in rows(measured / "naive" / "split.csv")}
    picture_parts: dict[str, set[str]] = {}
    for path, name in part.items():
        picture_parts.setdefault(path[:4], set()).add(name)
    correct = {row["path"]: row["label"] == row["prediction"] for row in rows(measured / "naive" / "predictions.csv")}
    shown = [correct[path] for path in correct if "train" in picture_parts[path[:4]]]
    assert leak.num_shown == len(shown) > 0
    assert leak.shown_accuracy == pytest.approx(sum(shown) / len(shown))
    right = (leak.shown_accuracy or 0) * len(shown) + (leak.others_accuracy or 0) * (len(correct) - len(shown))
    assert right == pytest.approx(naive.accuracy * naive.num_test)


def test_page_and_summary_tell_what_the_naive_split_claims(measured: Path) -> None:
    leak = read_summary(measured / "summary.json").leak
    assert leak is not None
    assert leak.claim in (measured / "report.html").read_text(encoding="utf-8")
    assert f"{leak.num_shown} of its {leak.naive_num_test} test images have a copy" in leak.claim


def test_resuming_keeps_a_finished_naive_run_and_refuses_one_of_other_settings(
    measured: Path, pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    stopped = tmp_path / "run"
    shutil.copytree(measured / "naive", stopped / "naive")
    (stopped / "UNFINISHED").write_text("killed")
    page = stopped / "naive" / "report.html"
    page.write_text("the first one")
    line = refusal(train(pictures, shared_teacher, stopped, *LEAK, "--resume", "--batch-size", "5"))
    assert "the finished run of --measure-leak has other settings (batch_size)" in line
    assert train(pictures, shared_teacher, stopped, *LEAK, "--resume").code == 0
    assert page.read_text() == "the first one"
    assert read_json(stopped / "metrics.json")["leak"] == read_json(measured / "metrics.json")["leak"]


def test_resuming_continues_an_unfinished_naive_run(
    measured: Path, pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    stopped = tmp_path / "run"
    shutil.copytree(measured / "naive", stopped / "naive")
    for name in ("metrics.json", "predictions.csv"):
        (stopped / "naive" / name).unlink()
    for folder in (stopped, stopped / "naive"):
        (folder / "UNFINISHED").write_text("killed")
    assert train(pictures, shared_teacher, stopped, *LEAK, "--resume").code == 0
    assert same_outcome(stopped / "naive", measured / "naive")
    assert not (stopped / "naive" / "UNFINISHED").exists()
    assert read_json(stopped / "metrics.json")["leak"] == read_json(measured / "metrics.json")["leak"]


def test_force_replaces_both_runs(measured: Path, pictures: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(measured, run)
    assert train(pictures, shared_teacher, run, *GROUPED, "--force").code == 0
    assert not (run / "naive").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--split", "split.csv"), "'split.csv' contradicts --measure-leak"),
        (("--near-duplicates", "ignore"), "--near-duplicates: 'ignore' contradicts --measure-leak"),
        (("--split-duplicates",), "--split-duplicates: it contradicts --measure-leak"),
    ],
)
def test_settings_with_one_split_only_are_refused(
    words: tuple[str, ...], named: str, pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    line = refusal(train(pictures, shared_teacher, tmp_path / "run", *LEAK, *words))
    assert named in line
    assert not (tmp_path / "run").exists()


def test_data_with_a_split_of_its_own_is_refused_before_a_folder_is_made(
    pictures: Path, shared_teacher: str, tmp_path: Path
) -> None:
    lines = [
        f"{path},{path.parent.name},{'test' if index % 12 > 8 else 'train'}"
        for index, path in enumerate(sorted(pictures.rglob("*a.png")))
    ]
    table = tmp_path / "given.csv"
    table.write_text("\n".join(["image_path,label,split", *lines]))
    line = refusal(train(table, shared_teacher, tmp_path / "run", *LEAK))
    assert line == (
        f"{table}: '--measure-leak' makes two splits, but the images come with a split. "
        "Leave out --measure-leak, or give the images without their split."
    )
    assert not (tmp_path / "run").exists()


def test_a_copy_counts_through_an_identical_image_and_not_through_a_blank_one() -> None:
    digests = ["p", "q", "p", "blank", "blank", "r"]
    found = shown_in_training(digests, [(0, 1)], test=[1, 2, 4, 5], learned=[0, 3], blank={"blank"})
    assert found == {1, 2}
    assert shown_in_training(digests, [(0, 1)], test=[1], learned=[2]) == {1}
