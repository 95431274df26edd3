"""``twinbud explain`` writes maps with their verdicts, and refuses in one line what it cannot explain."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twinbud as api
from helpers.builders import save_teacher
from helpers.command import refusal, trained, twinbud
from helpers.labelled import save_findings
from helpers.runs import read_json, rows
from twinbud.explaining import compute
from twinbud.explaining.randomization import WeightCheck


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, two of them with the same name, larger than the network's input."""
    generator = np.random.default_rng(0)
    for name in ("a/scan 1.png", "b/scan 1.png", "c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path / "images"


def test_each_image_gets_a_picture_a_row_and_a_place_on_the_page(
    shared_run: Path, images: Path, tmp_path: Path
) -> None:
    answer = twinbud("explain", shared_run / "model", images, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    found = rows(tmp_path / "out" / "explanations.csv")
    assert [row["path"] for row in found] == [str(images / n) for n in ("a/scan 1.png", "b/scan 1.png", "c.png")]
    predictions = rows_of_predictions(shared_run, images, tmp_path)
    page = (tmp_path / "out" / "explanations.html").read_text(encoding="utf-8")
    for row, predicted in zip(found, predictions, strict=True):
        assert row["prediction"] == row["label"] == predicted["prediction"]
        assert float(row["probability"]) == pytest.approx(float(predicted[f"probability_{row['label']}"]), rel=1e-5)
        with Image.open(tmp_path / "out" / row["map"]) as picture:
            assert picture.size[0] >= 90
            assert (picture.size == (90, 60)) == (row["verdict"] == "explains")
            assert row["label"] in picture.info["Description"]
        is_marked = f"{row['path']}: this map does not explain the prediction ({row['verdict']})" in answer.out
        assert is_marked == (row["verdict"] != "explains")
        assert row["path"] in page
    assert len({row["map"] for row in found}) == 3
    assert "http" not in page.replace("http-equiv", "")
    assert f"{sum(row['verdict'] == 'explains' for row in found)} of 3 maps explain the prediction." in answer.out


def rows_of_predictions(run: Path, images: Path, folder: Path) -> list[dict[str, str]]:
    assert twinbud("predict", run, images, "--output", folder / "predictions.csv").code == 0
    return rows(folder / "predictions.csv")


def test_the_result_of_an_image_does_not_depend_on_the_others(shared_run: Path, images: Path) -> None:
    together = api.explain(shared_run, images, show_progress=False).explanations
    alone = [api.explain(shared_run, images / "c.png", show_progress=False).explanations[0]]
    assert together[2].path == alone[0].path
    np.testing.assert_allclose(together[2].map, alone[0].map, atol=1e-5)
    assert together[2].deletion.score == pytest.approx(alone[0].deletion.score, abs=1e-4)


def test_a_given_label_is_explained_for_every_image(shared_run: Path, images: Path) -> None:
    found = api.explain(shared_run, images, label="grey", show_progress=False).explanations
    assert {each.label for each in found} == {"grey"}
    assert sum(each.probability for each in found) < 3
    assert all((each.map.min(), each.map.max()) == (0, 1) or not each.map.any() for each in found)


def test_maps_that_fail_the_check_with_random_weights_are_all_marked(
    shared_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = WeightCheck(stability=0.9, likeness=0.8, num_images=3)
    monkeypatch.setattr(compute, "check_weights", lambda *_: failed)
    answer = twinbud("explain", shared_run, images, "--output", tmp_path / "out")
    assert {row["verdict"] for row in rows(tmp_path / "out" / "explanations.csv")} == {"does not depend on the weights"}
    assert answer.out.count("this map does not explain the prediction") == 3
    assert "0 of 3 maps explain the prediction." in answer.out
    page = (tmp_path / "out" / "explanations.html").read_text(encoding="utf-8")
    assert page.count('class="weak"') == 3


def test_answers_of_the_test_part_are_explained_in_the_runs_report(shared_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    before = (run / "report.html").read_text(encoding="utf-8")
    answer = twinbud("explain", run)
    assert answer.code == 0, answer.err
    found = rows(run / "explanations" / "explanations.csv")
    test = {row["path"]: row for row in rows(run / "predictions.csv")}
    wrong = sum(row["label"] != row["prediction"] for row in test.values())
    chosen = [test[row["path"]] for row in found]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in chosen]
    assert sum(row["label"] != row["prediction"] for row in chosen) == min(wrong, 6)
    assert sum(row["label"] == row["prediction"] for row in chosen) == min(len(test) - wrong, 6)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What the predictions depend on" in page
    assert "What the predictions depend on" not in before
    assert twinbud("report", run).code == 0
    assert (run / "report.html").read_text(encoding="utf-8") == page
    assert len(read_json(run / "summary.json")["explained"]["images"]) == len(found)
    assert "the folder is not empty" in refusal(twinbud("explain", run))
    assert twinbud("explain", run, "--force").code == 0
    assert twinbud("evaluate", run).code == 0


def test_a_run_with_explanations_can_be_replaced(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run")
    assert twinbud("explain", run).code == 0
    assert trained(shared_images, shared_teacher, run, "--force") == run
    assert not (run / "explanations").exists()


def test_attention_rollout_is_drawn_for_a_vit(shared_run: Path, images: Path) -> None:
    found = api.explain(shared_run, [images / "c.png"], map="rollout", show_progress=False)
    assert found.kind == "rollout"
    assert found.explanations[0].map.shape == (4, 4)


def test_other_tasks_are_explained(shared_runs: Callable[..., Path], images: Path) -> None:
    run = shared_runs("--task", "ordinal", "--classes", "dark,grey,light", "--method", "timm")
    (each,) = api.explain(run, images / "c.png", label="light", show_progress=False).explanations
    assert each.label == "light"
    assert 0 <= each.probability <= 1


def test_findings_of_a_run_with_several_labels_are_explained(shared_teacher: str, tmp_path: Path) -> None:
    data = save_findings(tmp_path / "set")
    run = trained(data, shared_teacher, tmp_path / "run", "--method", "timm", "--label-columns", "left,right,rare")
    answer = twinbud("explain", run)
    assert answer.code == 0, answer.err
    found = rows(run / "explanations" / "explanations.csv")
    predicted = {row["path"]: row for row in rows(run / "predictions.csv")}
    for row in found:
        probabilities = {
            name: float(predicted[row["path"]][f"probability_{name}"]) for name in ("left", "right", "rare")
        }
        assert row["label"] == max(probabilities, key=lambda name: probabilities[name])
        assert float(row["probability"]) == pytest.approx(max(probabilities.values()), rel=1e-4)


def test_a_test_image_that_is_gone_or_has_changed_is_named(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shared_images, tmp_path / "data"))
    run = trained(data, shared_teacher, tmp_path / "run")
    path = rows(run / "predictions.csv")[0]["path"]
    other = next(file for file in data.rglob("*.png") if file != data / path)
    shutil.copy(other, data / path)
    line = refusal(twinbud("explain", run))
    assert f"test images that have changed since training: {path}" in line
    (data / path).unlink()
    assert f"test images of the run are missing: '{path}'. Restore them, or give images" in refusal(
        twinbud("explain", run)
    )


def unfinished(shared_run: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(shared_run, tmp_path / "unfinished"))
    (run / "UNFINISHED").write_text("stopped")
    return run


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("RUN", "IMAGES", "--label", "lght"),
            r"--label: 'lght' is not one of dark, grey, light\. Did you mean 'light'",
        ),
        (("RUN", "IMAGES", "--map", "rolout"), r"--map: 'rolout' is not one of grad-cam, rollout"),
        (("RUN", "BROKEN"), r"broken\.png: the file is not a .* image"),
        (("RUN", "EMPTY"), "empty: "),
        (("UNFINISHED", "IMAGES"), "unfinished: the run has not finished"),
        (("UNFINISHED",), "unfinished: the run has not finished"),
        (("RUN/model",), "a model folder has no test images.*Give images to explain"),
        (("CONVNEXT", "IMAGES", "--map", "rollout"), r"--map rollout: attention rollout needs a ViT: ConvNeXt has no"),
        (("RUN", "IMAGES", "--output", "IMAGES"), "images: the folder is not empty"),
        (("IMAGES", "IMAGES"), "config.json is missing"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(
    words: tuple[str, ...],
    problem: str,
    shared_run: Path,
    shared_images: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    places = {"RUN": shared_run, "RUN/model": shared_run / "model", "IMAGES": images, "BROKEN": tmp_path / "broken.png",
              "EMPTY": tmp_path / "empty"}  # fmt: skip
    if "UNFINISHED" in words:
        places["UNFINISHED"] = unfinished(shared_run, tmp_path)
    if "CONVNEXT" in words:
        teacher = save_teacher(tmp_path / "teacher", "convnext_atto", dims=[4, 4, 4, 4], depths=[1, 1, 1, 1])
        places["CONVNEXT"] = trained(
            shared_images, teacher, tmp_path / "convnext", "--method", "selection", "--image-size", 32
        )
    line = refusal(twinbud("explain", *(places.get(word, word) for word in words)))
    assert re.search(problem, line), line


def test_predictions_that_are_not_of_the_test_part_are_refused(shared_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    lines = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text("\n".join(lines[:-1]))
    said = "predictions.csv: the predictions are not those of the test images in split.csv. Restore both files"
    assert said in refusal(twinbud("explain", run))


def test_a_broken_image_is_left_out_on_request_and_listed(shared_run: Path, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"no image")
    answer = twinbud("explain", shared_run, images, "--skip-broken", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert len(rows(tmp_path / "out" / "explanations.csv")) == 3
    assert [row["path"] for row in rows(tmp_path / "out" / "left_out.csv")] == [str(images / "broken.png")]
    assert "left out: " in answer.err
