"""``twinbud calibrate`` makes the answers of a finished run trustworthy, and every command then uses it."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import twinbud as api
from helpers.builders import save_images
from helpers.command import refusal, trained, twinbud
from helpers.runs import read_json, rows
from twinbud.core.errors import Stopped, explained_writes
from twinbud.data.index import evenly
from twinbud.evaluation.predictions import Predictions
from twinbud.explaining import explain
from twinbud.report.model import read_summary, write_summary
from twinbud.runs import calibrate as calibrating
from twinbud.runs import cross_fit, pipeline, recalibrate
from twinbud.runs.run_dir import locked
from twinbud.trust.fit import fit_trust
from twinbud.trust.record import Trust

CALIBRATE = ("--folds", "2", "--coverage", "0.8")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"), {"dark": 14, "grey": 14, "light": 14})


@pytest.fixture(scope="module")
def plain(images: Path, shared_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; to be read only."""
    return trained(images, shared_teacher, tmp_path_factory.mktemp("plain") / "run", "--method", "selection")


@pytest.fixture(scope="module")
def calibrated(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, calibrated; to be read only."""
    run = Path(shutil.copytree(plain, tmp_path_factory.mktemp("calibrated") / "run"))
    answer = twinbud("calibrate", run, *CALIBRATE)
    assert answer.code == 0, answer.err
    assert "temperature: " in answer.out
    assert "for comparison: even perfect probabilities would show a calibration error of about 0." in answer.out
    assert "prediction sets: " in answer.out
    assert " classes on average" in answer.out
    return run


def trust_of(run: Path) -> dict[str, Any]:
    return read_json(run / "model" / "trust.json")


def test_every_labelled_image_counts_and_no_other(calibrated: Path) -> None:
    labelled = [row for row in rows(calibrated / "split.csv") if row["labelled"] == "1"]
    trust = trust_of(calibrated)
    assert (trust["source"], trust["num_images"], trust["num_folds"]) == ("folds", len(labelled), 2)
    assert not (calibrated / "folds").exists()


def test_the_weights_and_results_of_the_run_stay(plain: Path, calibrated: Path) -> None:
    for name in ("model/model.safetensors", "metrics.json", "predictions.csv", "split.csv"):
        assert (plain / name).read_bytes() == (calibrated / name).read_bytes()


def test_predictions_have_calibrated_probabilities_sets_and_novelty(
    plain: Path, calibrated: Path, images: Path, tmp_path: Path
) -> None:
    tables = []
    for name, run in (("plain", plain), ("calibrated", calibrated)):
        file = tmp_path / f"{name}.csv"
        assert twinbud("predict", run, images, "--logits", "--output", file).code == 0
        tables.append(rows(file))
    before, after = tables
    assert "set" not in before[0]
    trust = trust_of(calibrated)
    for one, other in zip(before, after, strict=True):
        assert {name: other[name] for name in one if not name.startswith("probability_")} == {
            name: one[name] for name in one if not name.startswith("probability_")
        }
        logits = np.array([float(other[f"logit_{name}"]) for name in ("dark", "grey", "light")])
        exponents = np.exp((logits - logits.max()) / trust["temperature"])
        probabilities = np.array([float(other[f"probability_{name}"]) for name in ("dark", "grey", "light")])
        assert probabilities == pytest.approx(exponents / exponents.sum(), rel=1e-5)
        thresholds = np.array([trust["sets"]["thresholds"][name] for name in ("dark", "grey", "light")])
        is_clear = np.abs(probabilities - thresholds) > 1e-6  # the file has eight digits
        chosen = np.array([name in other["set"].split("|") for name in ("dark", "grey", "light")])
        most_probable = np.arange(3) == probabilities.argmax()
        assert ((chosen == ((probabilities >= thresholds) | most_probable)) | ~is_clear).all()
        assert other["ood"] in ("0", "1")


def test_the_python_api_gives_sets_and_novelty(calibrated: Path, images: Path) -> None:
    predictions = api.predict(calibrated, images / "dark", show_progress=False)
    assert predictions.sets is not None
    assert predictions.is_novel is not None
    assert predictions.sets.shape == predictions.probabilities.shape
    assert predictions.sets.any(axis=1).all()


def test_noise_is_reported_as_novel(calibrated: Path, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, size=(40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    predictions = api.predict(calibrated, tmp_path / "noise.png", show_progress=False)
    assert predictions.is_novel is not None
    assert predictions.is_novel.all()


def test_the_page_shows_what_was_measured(plain: Path, calibrated: Path) -> None:
    section = "How far the answers can be trusted"
    assert section not in (plain / "report.html").read_text()
    page = (calibrated / "report.html").read_text()
    assert section in page
    assert "has not been run" in (plain / "report.html").read_text()
    assert "has not been run" not in page


def test_other_images_on_which_the_calibration_does_not_hold_are_warned_of(calibrated: Path, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 256, size=(30, 30), dtype=np.uint8)
        folder = tmp_path / "data" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / f"{number}.png")
    answer = twinbud("evaluate", calibrated, "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "warning: 100.0% of these images are unlike those of the training" in answer.out
    assert read_json(tmp_path / "out" / "metrics.json")["trust"]["num_novel"] == 24


def test_a_stopped_calibration_goes_on_with_the_same_result(
    plain: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    trained_folds: list[str] = []

    def interrupted(config: Any, **keywords: Any) -> Any:
        trained_folds.append(config.output.name)
        if len(trained_folds) == 2:
            raise Stopped("stopped")
        return pipeline.train(config, **keywords)

    monkeypatch.setattr(cross_fit, "train", interrupted)
    assert twinbud("calibrate", run, *CALIBRATE).code == 75
    assert not (run / "model" / "trust.json").exists()
    assert twinbud("calibrate", run, *CALIBRATE).code == 0
    assert trained_folds == ["1-of-2", "2-of-2", "2-of-2"]
    assert trust_of(run) == trust_of(calibrated)


def test_the_validation_part_is_used_where_it_is_asked_for(shared_teacher: str, tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 8), ("test", 3)):
        save_images(tmp_path / "data" / part, {"dark": count, "light": count}, seed=len(part))
    run = trained(tmp_path / "data", shared_teacher, tmp_path / "run", "--method", "selection")
    assert twinbud("calibrate", run, "--on", "val", "--coverage", "0.8").code == 0
    trust = trust_of(run)
    assert (trust["source"], trust["num_images"]) == ("val", 16)
    assert "num_folds" not in trust


def copied(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place / "run"))


def test_a_calibrated_run_is_replaced_only_by_force(calibrated: Path) -> None:
    line = refusal(twinbud("calibrate", calibrated, *CALIBRATE))
    assert line == f"{calibrated}: the run is calibrated already. Calibrate it again with --force."


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--folds", "1"), "--folds: 1 is fewer than 2"),
        (("--folds", "many"), "--folds"),
        (("--folds", "99"), "--folds: 99 folds, but no class has labelled images of more than 11"),
        (("--coverage", "1"), "--coverage: 1 is not a probability between 0 and 1"),
        (("--coverage", "0.99"), "33 patients or images cannot ensure a coverage of 0.99. Give at most 0.97,"),
        (("--per-class", "--coverage", "0.95"), "--coverage: 11 patients or images of class 'dark' cannot ensure"),
        (("--on", "val"), "--on val: the run has no validation part"),
        (("--on", "val", "--folds", "3"), "--folds: '3' has no effect with --on val, which has no folds. Leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused_before_any_model_is_trained(
    plain: Path, words: tuple[str, ...], problem: str
) -> None:
    assert problem in refusal(twinbud("calibrate", plain, *words))
    assert not (plain / "folds").exists()


def test_an_unfinished_run_is_refused(plain: Path, tmp_path: Path) -> None:
    run = copied(plain, tmp_path)
    (run / "UNFINISHED").write_text("")
    assert "the run has not finished" in refusal(twinbud("calibrate", run))


def test_images_that_have_changed_are_refused(shared_teacher: str, tmp_path: Path) -> None:
    data = save_images(tmp_path / "data", {"dark": 8, "light": 8})
    run = trained(data, shared_teacher, tmp_path / "run", "--method", "selection")
    one, other = sorted((data / "dark").iterdir())[0], sorted((data / "light").iterdir())[0]
    shutil.copy(other, one)
    assert f"images that are not those of the run: dark/{one.name}." in refusal(twinbud("calibrate", run, *CALIBRATE))
    one.write_bytes(b"")
    said = f"dark/{one.name}: the file is empty (0 bytes). Repair or remove the file."
    assert refusal(twinbud("calibrate", run, *CALIBRATE)) == said


def test_trust_of_other_weights_is_refused(calibrated: Path, images: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = copied(calibrated, tmp_path)
    other = trained(images, shared_teacher, tmp_path / "other", "--method", "selection", "--seed", "5")
    shutil.copy(other / "model" / "model.safetensors", run / "model")
    line = refusal(twinbud("predict", run, images))
    assert "trust.json: it belongs to other weights than model.safetensors here" in line
    assert line.endswith("Run: twinbud calibrate RUN --force.")


def test_a_full_disk_or_a_run_at_work_is_one_line_without_an_option_that_calibrate_lacks(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(plain, tmp_path)
    with locked(run):
        assert refusal(twinbud("calibrate", run)).endswith("works in this run folder. Wait for it or stop it.")

    def full(folder: Path) -> str:
        with explained_writes(folder):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(calibrating, "hash_weights", full)
    assert refusal(twinbud("calibrate", run, *CALIBRATE)).endswith("model: the disk is full. Free some space.")


@pytest.mark.parametrize("content", ["", "{}", '{"temperature": "hot"}'])
def test_a_damaged_trust_file_is_one_line(calibrated: Path, images: Path, tmp_path: Path, content: str) -> None:
    run = copied(calibrated, tmp_path)
    (run / "model" / "trust.json").write_text(content)
    assert "trust.json: the file cannot be read" in refusal(twinbud("predict", run, images))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"temperature": ', '"temperature": -', "temperature is -"),
        ('"temperature": ', '"temperature": 1e-300, "x": ', "temperature is 1e-300, outside 0.2 to 20"),
        ('"novelty_threshold": ', '"novelty_threshold": -', "novelty_threshold is -"),
        ('"temperature": ', '"temperature": 1.5, "x": ', "the content was changed after it was written"),
        ('"novelty_threshold": ', '"novelty_threshold": NaN, "x": ', "NaN is not a finite number"),
        ('"coverage": 0.8', '"coverage": 8', "coverage is 8, not between 0 and 1"),
        ('"light": 0.', '"light": 7.', "the threshold of class 'light' is 7."),
        ('"sensitivity": ', '"sensitivity": 5', "sensitivity is 5"),
    ],
)
def test_a_value_of_trust_outside_its_range_is_one_line(
    calibrated: Path, images: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    run = copied(calibrated, tmp_path)
    file = run / "model" / "trust.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    line = refusal(twinbud("predict", run, images))
    assert f"trust.json: the file cannot be read ({said}" in line


@pytest.mark.parametrize(
    ("means", "whitening", "said"),
    [
        ((3, 5), (4, 4), "means (3, 5) and whitening (4, 4) are not (C, D) and (D, D)"),
        ((0, 5), (5, 5), "means (0, 5) and whitening (5, 5) are not (C, D) and (D, D)"),
        ((3, 5), (5, 5), "it is of 5 features, but the network has 16"),
        (None, (5, 5), "a value of means or whitening is NaN or infinite"),
    ],
)
def test_statistics_that_do_not_fit_are_one_line(
    calibrated: Path,
    images: Path,
    tmp_path: Path,
    means: tuple[int, int] | None,
    whitening: tuple[int, int],
    said: str,
) -> None:
    run = copied(calibrated, tmp_path)
    centers = torch.full((3, 5), torch.nan) if means is None else torch.zeros(means)
    statistics = run / "model" / "trust.safetensors"
    save_file({"means": centers, "whitening": torch.zeros(whitening)}, statistics)
    trust = trust_of(run) | {"statistics_sha256": hashlib.sha256(statistics.read_bytes()).hexdigest()}
    del trust["sha256"]
    (run / "model" / "trust.json").write_text(json.dumps(trust))
    assert f"trust.safetensors: {said}. Run: twinbud calibrate RUN --force" in refusal(twinbud("predict", run, images))


def test_trust_without_its_statistics_is_refused(calibrated: Path, images: Path, tmp_path: Path) -> None:
    run = copied(calibrated, tmp_path)
    (run / "model" / "trust.safetensors").unlink()
    assert "trust.safetensors" in refusal(twinbud("predict", run, images))


def test_the_statistics_of_another_calibration_are_refused(
    calibrated: Path, images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    run = copied(calibrated, tmp_path)
    other = trained(images, shared_teacher, tmp_path / "other", "--method", "selection", "--learning-rate", "5e-3")
    assert twinbud("calibrate", other, *CALIBRATE).code == 0
    shutil.copy(other / "model" / "trust.safetensors", run / "model")
    line = refusal(twinbud("predict", run, images))
    assert "trust.json: it belongs to another trust.safetensors than that here. Run: twinbud calibrate RUN" in line


def test_a_calibration_that_was_killed_before_its_page_is_repeated_without_force(
    calibrated: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(calibrated, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(calibrating, "rebuild_report", lambda _: {}["killed"])
        with pytest.raises(KeyError):
            twinbud("calibrate", run, *CALIBRATE, "--force")
    assert twinbud("predict", run, images, "--output", tmp_path / "uncalibrated.csv").code == 0
    answer = twinbud("calibrate", run, *CALIBRATE)
    assert answer.code == 0, answer.err
    assert trust_of(run) == trust_of(calibrated)


def test_weights_that_give_no_finite_number_are_one_line(calibrated: Path, tmp_path: Path) -> None:
    run = copied(calibrated, tmp_path)
    file = run / "model" / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor * 1e30 for name, tensor in state.items()}, file)
    line = refusal(twinbud("calibrate", run, *CALIBRATE, "--force"))
    assert line.startswith("the network: a logit or feature is NaN or infinite for ")


def test_several_labels_an_image_are_calibrated_without_sets(shared_teacher: str, tmp_path: Path) -> None:
    pytest.importorskip("iterstrat")
    folder = save_images(tmp_path / "images", {"dark": 12, "light": 12, "grey": 12})
    names = {"dark": "one", "light": "two", "grey": "one|two"}
    lines = [f"{path.relative_to(tmp_path)},{names[path.parent.name]}" for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(["image_path,label", *lines]))
    words = ("--method", "selection", "--task", "multi-label")
    run = trained(tmp_path / "labels.csv", shared_teacher, tmp_path / "run", *words)
    before = api.predict(run, folder, show_progress=False)
    assert twinbud("calibrate", run, "--folds", "2").code == 0
    after = api.predict(run, folder, show_progress=False)
    assert after.sets is None
    assert (after.predicted == before.predicted).all()
    assert json.loads((run / "summary.json").read_text())["trust"]["after"]["ece"]["value"] >= 0


def elsewhere(folder: Path, count: int = 30) -> Path:
    """Images of another place, whose labels are wrong half of the time."""
    from PIL import Image

    for number in range(count):
        random = np.random.default_rng(number)
        pixels = (random.integers(0, 200) + random.integers(0, 50, size=(30, 30))).astype(np.uint8)
        place = folder / ("dark", "light")[int(random.integers(2))]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("first", ["calibrate", "calibrate --data", "explain"])
def test_what_another_command_adds_to_the_report_meanwhile_stays(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    run = copied(calibrated, tmp_path)
    write_summary(run / "summary.json", replace(read_summary(run / "summary.json"), trust=None))
    module, name = {
        "calibrate": (calibrating, "save_trust"),
        "calibrate --data": (recalibrate, "save_trust"),
        "explain": (explain, "write_explanations"),
    }[first]
    finish = getattr(module, name)

    def finish_later(*values: Any, **named: Any) -> Any:
        monkeypatch.undo()
        other = ("calibrate", run, *CALIBRATE, "--force") if first == "explain" else ("explain", run)
        assert twinbud(*other).code == 0
        return finish(*values, **named)

    monkeypatch.setattr(module, name, finish_later)
    words: dict[str, tuple[object, ...]] = {
        "calibrate": ("calibrate", run, *CALIBRATE, "--force"),
        "calibrate --data": ("calibrate", run, "--data", elsewhere(tmp_path / "there"), "--coverage", "0.8"),
        "explain": ("explain", run),
    }
    answer = twinbud(*words[first])
    assert answer.code == 0, answer.err
    assert {"trust", "explained"} <= read_json(run / "summary.json").keys()


def test_a_calibrated_run_is_calibrated_again_for_another_place(calibrated: Path, tmp_path: Path) -> None:
    run, data = copied(calibrated, tmp_path), elsewhere(tmp_path / "data")
    answer = twinbud("calibrate", run, "--data", data, "--coverage", "0.8")
    assert answer.code == 0, answer.err
    assert "of another place" in answer.out
    before, after = trust_of(calibrated), trust_of(run)
    assert (after["source"], after["num_images"]) == ("data", 15)
    assert after["temperature"] > before["temperature"]
    report = read_json(run / "summary.json")["trust"]
    assert report["num_images"] == 15
    assert report["after"]["nll"]["value"] < report["before"]["nll"]["value"]
    assert (run / "model" / "trust.safetensors").read_bytes() == (
        calibrated / "model" / "trust.safetensors"
    ).read_bytes()


def test_no_copy_is_among_the_images_that_choose_and_those_that_measure(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = copied(calibrated, tmp_path), elsewhere(tmp_path / "data", 20)
    for path in sorted(data.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    parts: list[tuple[str, ...]] = []

    def noted(examples: Predictions, *rest: Any, **named: Any) -> Trust:
        parts.append(examples.paths)
        return fit_trust(examples, *rest, **named)

    monkeypatch.setattr(recalibrate, "fit_trust", noted)
    assert twinbud("calibrate", run, "--data", data, "--coverage", "0.8").code == 0
    chosen = {path.replace("copy-", "") for path in parts[0]}
    assert len(chosen) * 2 == len(parts[0]) == 20


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("--patient-column", "who"),
            "--patient-column: 'who' has no effect without --data. Leave it out, or give --data",
        ),
        (("--data", "DATA", "--on", "val"), "'val' chooses among the run's own images, but --data names others"),
        (("--data", "DATA"), "the run is not calibrated. Run 'twinbud calibrate"),
        (
            ("--data", "DATA", "--folds", "3"),
            "--folds: '3' has no effect with --data, which has no folds. Leave it out",
        ),
    ],
)
def test_what_another_place_cannot_calibrate_is_refused(
    plain: Path, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    data = elsewhere(tmp_path / "data", 6)
    given = [str(data) if word == "DATA" else word for word in words]
    assert problem in refusal(twinbud("calibrate", plain, *given))


def test_test_images_of_the_run_choose_nothing_under_another_name(
    calibrated: Path, images: Path, tmp_path: Path
) -> None:
    run, data = copied(calibrated, tmp_path), tmp_path / "data"
    for row in rows(run / "split.csv"):
        if row["split"] == "test":
            place = data / row["label"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / row["image_path"], place / f"renamed-{Path(row['image_path']).name}")
    before = (run / "model" / "trust.json").read_bytes()
    for place in (data, images):
        line = refusal(twinbud("calibrate", run, "--data", place))
        assert "of the given images are test images of the run (" in line
        assert "); calibration must not use them. Give images of another place" in line
    assert (run / "model" / "trust.json").read_bytes() == before


def test_a_place_with_one_image_a_class_is_refused_in_one_line(calibrated: Path, tmp_path: Path) -> None:
    run, data = copied(calibrated, tmp_path), elsewhere(tmp_path / "data", 4)
    for folder in data.iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    line = refusal(twinbud("calibrate", run, "--data", data, "--coverage", "0.3"))
    assert line.startswith(f"{data}: every class has images of only one patient (or picture); calibration needs two")


def test_a_class_without_images_is_named(calibrated: Path, tmp_path: Path) -> None:
    run, data = copied(calibrated, tmp_path), elsewhere(tmp_path / "data")
    line = refusal(twinbud("calibrate", run, "--data", data, "--coverage", "0.5", "--per-class"))
    assert "0 patients or images of class 'grey' cannot ensure a coverage of 0.5. Leave out --per-class, or" in line


def test_a_page_of_another_place_says_what_measured(calibrated: Path, tmp_path: Path) -> None:
    run = copied(calibrated, tmp_path)
    assert "the test images, which chose nothing" in (run / "report.html").read_text()
    assert twinbud("calibrate", run, "--data", elsewhere(tmp_path / "data"), "--coverage", "0.8").code == 0
    for page in (run / "report.html", run / "model" / "README.md"):
        assert "the other half of the images of that place" in page.read_text()


def test_changes_are_checked_on_test_images_of_every_class(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[int, ...]] = []
    monkeypatch.setattr(calibrating, "MAX_SHIFTED_IMAGES", 3)

    def noted(items: tuple[int, ...], limit: int) -> tuple[int, ...]:
        checked.append(evenly(items, limit))
        return checked[-1]

    monkeypatch.setattr(calibrating, "evenly", noted)
    run = copied(plain, tmp_path)
    assert twinbud("calibrate", run, *CALIBRATE).code == 0
    split = rows(run / "split.csv")
    assert {split[place]["label"] for place in checked[0]} == {"dark", "grey", "light"}
