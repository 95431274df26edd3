"""Evaluation and prediction count and list what they leave out, and give logits on request."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.builders import save_images
from helpers.command import refusal, trained, twinbud
from twinbud.runs.inference import evaluate_run, predict


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paths_of_part(run: Path, part: str) -> list[str]:
    return [row["image_path"] for row in rows(run / "split.csv") if row["split"] == part]


def other_images(folder: Path, shared_images: Path, shared_run: Path, *, seen: int = 0, broken: int = 0) -> Path:
    """Four images of the run's classes that it has not seen, some that it has, some that cannot be read."""
    save_images(folder, {"dark": 2, "grey": 2}, seed=7)
    for number, path in enumerate(paths_of_part(shared_run, "train")[:seen]):
        shutil.copy(shared_images / path, folder / "dark" / f"seen{number}.png")
    for number in range(broken):
        (folder / "dark" / f"broken{number}.png").write_bytes(b"not an image")
    return folder


def test_other_images_that_are_left_out_are_counted_and_listed(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    data = other_images(tmp_path / "data", shared_images, shared_run, seen=2, broken=1)
    (data / "notes.txt").write_text("not an image")
    answer = twinbud("evaluate", shared_run, "--data", data, "--skip-broken", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    reasons = "2 of the run's training images or patients, 1 unreadable"
    assert f"note: Evaluated on 4 of the 7 images of {data}; 3 left out ({reasons})." in answer.out
    assert "all of" not in answer.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["num_test"], metrics["num_left_out"]) == (4, 3)
    listed = {row["path"]: row["reason"] for row in rows(tmp_path / "out" / "left_out.csv")}
    assert listed.keys() == {"dark/seen0.png", "dark/seen1.png", "dark/broken0.png", "notes.txt"}
    assert listed["dark/seen0.png"] == "identical to a training image of the run"
    assert answer.err.count("left out: ") == 4


def test_all_of_other_images_are_evaluated_where_none_is_left_out(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    data = other_images(tmp_path / "data", shared_images, shared_run)
    evaluation = evaluate_run(shared_run, {"data": str(data)}, output=tmp_path / "out")
    assert evaluation.note == f"Evaluated on all of {data}."
    assert evaluation.num_left_out == 0
    assert rows(tmp_path / "out" / "left_out.csv") == []


def test_images_left_out_of_a_given_test_part_are_counted_among_its_images(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    save_images(tmp_path / "data" / "train", {"dark": 3, "grey": 3}, seed=8)
    other_images(tmp_path / "data" / "test", shared_images, shared_run, seen=1)
    evaluation = evaluate_run(shared_run, {"data": str(tmp_path / "data")})
    assert evaluation.note.startswith(f"Evaluated on 4 of the 5 images of the test part of {tmp_path / 'data'}; 1 left")
    assert evaluation.num_left_out == 1


def test_images_left_out_of_the_runs_own_test_part_are_counted(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shared_images, tmp_path / "data"))
    run = trained(data, shared_teacher, tmp_path / "run")
    first, *others = paths_of_part(run, "test")
    (data / first).write_bytes(b"damaged since")
    evaluation = evaluate_run(run, {"skip_broken": True}, output=tmp_path / "out")
    part = f"{len(others)} of the {len(others) + 1} images of the test part of the run's own split"
    assert evaluation.note == f"Evaluated on {part}; 1 left out (1 unreadable)."
    assert [row["path"] for row in rows(tmp_path / "out" / "left_out.csv")] == [first]


def test_an_earlier_evaluation_can_be_replaced_whether_or_not_images_are_left_out(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    for seen in (1, 0, 1):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        data = other_images(tmp_path / "data", shared_images, shared_run, seen=seen)
        evaluate_run(shared_run, {"data": str(data)}, output=tmp_path / "out", force=True)
        assert len(rows(tmp_path / "out" / "left_out.csv")) == seen


def test_files_left_out_of_a_prediction_are_counted_and_listed_beside_it(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    data = other_images(tmp_path / "data", shared_images, shared_run, broken=1)
    (data / "notes.txt").write_text("not an image")
    words = ("predict", shared_run, data, "--skip-broken")
    answer = twinbud(*words, "--output", tmp_path / "out.csv")
    assert answer.code == 0, answer.err
    assert "note: 4 images classified, 2 files left out" in answer.err
    assert len(rows(tmp_path / "out.csv")) == 4
    listed = [row["path"] for row in rows(tmp_path / "out.left_out.csv")]
    assert sorted(listed) == [str(data / "dark" / "broken0.png"), str(data / "notes.txt")]
    for name in ("dark/broken0.png", "notes.txt"):
        (data / name).unlink()
    assert twinbud(*words, "--output", tmp_path / "out.csv", "--force").code == 0
    assert not (tmp_path / "out.left_out.csv").exists()


def test_a_strangers_file_beside_the_predictions_is_not_replaced(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.left_out.csv").write_text("mine")
    answer = twinbud("predict", shared_run, shared_images, "--output", tmp_path / "out.csv")
    assert answer.code == 2
    assert (tmp_path / "out.left_out.csv").read_text() == "mine"


def test_logits_are_added_on_request_and_change_no_number(
    shared_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path
) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--logits")
    assert twinbud("evaluate", run, "--logits", "--output", tmp_path / "again").code == 0
    image = shared_images / "dark" / "000.png"
    printed = twinbud("predict", run, image, "--logits")
    assert twinbud("predict", run, image, "--logits", "--output", tmp_path / "one.csv").code == 0
    assert (tmp_path / "one.csv").read_text() == printed.out
    assert (run / "predictions.csv").read_bytes() == (tmp_path / "again" / "predictions.csv").read_bytes()
    plain = rows(shared_run / "predictions.csv")
    for one, other in zip(rows(run / "predictions.csv"), plain, strict=True):
        logits = np.array([float(one.pop(f"logit_{name}")) for name in ("dark", "grey", "light")])
        assert one == other
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert [float(one[f"probability_{n}"]) for n in ("dark", "grey", "light")] == pytest.approx(probabilities)
    assert "logits" not in (run / "config.yaml").read_text()


def test_predictions_hold_float32_logits(shared_images: Path, shared_run: Path) -> None:
    predictions, ignored = predict(shared_run, [shared_images])
    assert ignored == ()
    assert predictions.logits is not None
    assert (predictions.logits.dtype, predictions.logits.shape) == (np.float32, (30, 3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: 1", "there is no setting 'x'. Restore the file that 'twinbud train' wrote."),
        ("fraction: 0.5", "the file does not name the images: 'data' is missing. Restore the file"),
        ("data: a\nseed: [1]", "--seed: '[1]' is not a whole number. Restore the file"),
        ("[]", "the content is not a mapping of settings. Restore the file"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict", "report", "export"])
def test_a_run_with_damaged_settings_is_refused(
    shared_images: Path, shared_run: Path, tmp_path: Path, command: str, text: str, said: str
) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    (run / "config.yaml").write_text(text)
    images = {"predict": (shared_images,), "evaluate": ("--data", shared_images)}.get(command, ())
    assert refusal(twinbud(command, run, *images)).startswith(f"{run / 'config.yaml'}: {said}")


def test_a_split_without_some_of_its_rows_is_refused(shared_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    head, *lines = (run / "split.csv").read_text().splitlines()
    one_less = [line for line in lines if line != next(line for line in lines if ",test," in line)]
    has = "5 test images and 24 labelled training images, but the run had 6 test images and 24 labelled training images"
    (run / "split.csv").write_text("\n".join([head, *one_less]))
    assert f"split.csv: the file has {has}. Restore the file" in refusal(twinbud("evaluate", run))
    (run / "metrics.json").unlink()
    (run / "split.csv").write_text(head)
    has = "0 test images and 0 labelled training images"
    assert f"split.csv: the file has {has}. Restore the file" in refusal(twinbud("evaluate", run))
