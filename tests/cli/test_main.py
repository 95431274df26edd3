"""The command line as a user runs it."""

from __future__ import annotations

import csv
import inspect
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from helpers.builders import save_images
from helpers.command import Answer, refusal, train, trained, twinbud
from twinbud.auditing.api import audit
from twinbud.cli.main import main
from twinbud.cli.options import OPTIONS, parse
from twinbud.config.data_config import DataConfig
from twinbud.config.recovery import RecoveryConfig
from twinbud.config.schema import ModelConfig, TrainingConfig
from twinbud.config.settings import all_settings
from twinbud.explaining.api import explain
from twinbud.runs.api import evaluate, predict, select
from twinbud.runs.calibrate_api import calibrate
from twinbud.runs.export_api import export

COMMANDS = ("demo", "select", "train", "evaluate", "predict", "report", "study", "tables")


def process(*words: object) -> Answer:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "twinbud", *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)], ids=" ".join)
def test_help_answers_and_names_the_command(words: tuple[str, ...]) -> None:
    answer = twinbud(*words, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"usage: twinbud {' '.join(words)}".rstrip())
    for command in COMMANDS if not words else ():
        assert f"\n  {command} " in answer.out


def test_the_version_is_the_packages() -> None:
    assert twinbud("--version") == Answer(0, f"twinbud {version('twinbud')}\n", "")


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("study", "--help")], ids=" ".join)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    heavy = ("torch", "timm", "numpy", "pandas", "rich", *(("pydantic",) if len(words) == 1 else ()))
    code = (
        "import sys\nfrom twinbud.cli.main import main\n"
        f"try: main({list(words)})\nexcept SystemExit: pass\n"
        f"sys.exit(str([name for name in {heavy} if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_help_shows_the_default_and_what_each_profile_changes() -> None:
    text = " ".join(twinbud("train", "--help").out.split())
    assert "are not kept. [112; paper: 224]" in text
    assert "[0.0003; quick: 0.0005, paper: 0.000125]" in text
    assert "paper (its values). [best]" in text


def test_the_help_of_train_explains_every_setting() -> None:
    text = "".join(twinbud("train", "--help").out.split())  # lines also break at hyphens
    for kind in (DataConfig, ModelConfig, RecoveryConfig, TrainingConfig):
        for name in (field.name for field in fields(kind)):
            assert f"--{name.replace('_', '-')}" in text
            assert "".join(all_settings()[name].help.split()) in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no command is given. Run: twinbud --help."),
        (("trian",), "Did you mean 'train'?"),
        (("--verbose",), "'--verbose' is not a command. Run: twinbud --help."),
        (
            ("evaluate", "run", "--epochs", "3"),
            "twinbud evaluate: there is no option --epochs. All options: twinbud evaluate --help.",
        ),
        (("predict", "run", "x", "--ouptut", "y"), "Did you mean --output?"),
        (("train", "--output", "caf\udce9"), "caf\\udce9: 1 file name is not UTF-8"),
        (("train", "--outptu", "x"), "Did you mean --output? All options: twinbud train --help."),
        (("train", "--output", "x", "--epoch-count", "3"), "there is no option --epoch-count"),
        (("train", "--output=x", "--epoch=3"), "Did you mean --epochs?"),
        (("train", "--teacher", "dinov2-small"), "twinbud train: the following arguments are required: --output."),
        (("train", "--output"), "argument --output: expected one argument. Run: twinbud train --help."),
        (
            ("train", "--window", "-600,1500"),
            "--window has no value. A value that starts with '-' needs '=': --window=-600,1500.",
        ),
        (
            ("train", "--data", "x", "--label-columns=", "--teacher", "x", "--output", "y"),
            "--label-columns: the value is",
        ),
        (
            ("teach", "--architecture=", "--from", "x", "--data", "x", "--output", "y"),
            "--architecture: the value is empty. Give --architecture a value.",
        ),
        (
            ("audit", "x.csv", "--patient-column="),
            "--patient-column: the value is empty. Give --patient-column a value.",
        ),
        (("audit", "x.csv", "--label-column="), "--label-column: the value is empty."),
        (("audit", "x.csv", "--image-column="), "--image-column: the value is empty."),
        (("audit", "x.csv", "--split-column="), "--split-column: the value is empty."),
        (("train", "--data", "x", "--classes=", "--teacher", "x", "--output", "y"), "--classes: the value is empty."),
        (
            ("train", "--output", "x", "--skip-broken=on"),
            "'on' has no effect: --skip-broken takes no value. Write --skip-broken or --no-skip-broken.",
        ),
        (("predict", "run", "x", "--force=yes"), "'yes' has no effect: --force takes no value. Write --force."),
        (("calibrate", "run", "--folds", "-2"), "--folds: -2 is fewer than 2. Give at least 2."),
        (("train", "--output", "x", "y"), "twinbud train: unrecognized arguments: y. Run: twinbud train --help."),
        (("select", "--teacher", "dinov2-small"), "the following arguments are required: --output."),
        (("predict", "run", ""), "IMAGE_OR_FOLDER: the value is empty. Give IMAGE_OR_FOLDER a value."),
        (("train", "--data", "x", "--output", ""), "--output: the value is empty. Give --output a value."),
        (("train", "--data", "x", "--teacher", "x", "--split=", "--output", "y"), "--split: the value is empty."),
        (("teach", "--architecture", "x", "--from=", "--data", "x", "--output", "y"), "--from: the value is empty."),
        (("predict", "run", "x", "--output", "."), ".: a folder stands where a file is needed. Check --output."),
        (("audit", ""), "DATA: the value is empty. Give DATA a value."),
        (("audit", "none"), "DATA none: there is no such file or folder. Give a folder of class folders"),
        (("audit", "medmnist:none"), "DATA medmnist:none: 'none' is not one of bloodmnist"),
        (("families", "--family", "auto"), "--family: 'auto' has no effect without NAME."),
        (("evaluate",), "the following arguments are required: RUN. Run: twinbud evaluate --help."),
        (("predict",), "the following arguments are required: RUN|MODEL_FOLDER, IMAGE_OR_FOLDER. Run: twinbud predict"),
        (("study",), "the following arguments are required: RECIPE.yaml. Run: twinbud study --help."),
        (("tables",), "the following arguments are required: RECIPE.yaml."),
        (
            ("study", "recipe.yaml", "--workers", "two"),
            "--workers: 'two' is not a whole number, or none.",
        ),
        (("train", "--teacher", "x", "--output", "x"), "--data: no images are given. Give a folder of class"),
        (("study", "none.yaml"), "none.yaml: the recipe cannot be read (No such file or directory)."),
        (
            ("select", "--teacher", "x", "--weights", "int8", "--output", "x"),
            "is not one of float32, float16",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_word_prints_one_line_and_the_tip(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(twinbud(*words))
    assert said in line
    assert not list(tmp_path.iterdir())


def test_a_recipe_given_as_settings_is_refused_with_its_command(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "beyond" / "labels.yaml"
    line = refusal(twinbud("train", "--config", recipe, "--data", "phantom", "--output", tmp_path / "run"))
    assert f"is a recipe of many runs, not the settings of one. Give it to 'twinbud study {recipe}'" in line


def test_recovery_that_contradicts_the_method_is_refused(tmp_path: Path) -> None:
    words = ("--data", "phantom", "--teacher", "dinov2-small", "--output", tmp_path / "run")
    line = refusal(twinbud("train", *words, "--method", "kaiming", "--recover", "labelled"))
    assert line == (
        "--recover: 'labelled' contradicts --method kaiming, which selects no weights. Give --recover none."
    )


def test_a_process_says_the_same_and_exits_alike() -> None:
    words = ("train", "--data", "phantom", "--output", "run", "--epochs", "many", "--teacher", "dinov2-small")
    answer = process(*words)
    assert answer == twinbud(*words)
    assert refusal(answer) == "--epochs: 'many' is not a whole number of at least 0."


def test_predictions_on_stdout_are_pure_csv(
    shared_images: Path, shared_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a library nor its C code prints there."""
    assert main(["predict", str(shared_run), str(shared_images / "dark"), str(shared_images / "light/003.png")]) == 0
    out, err = capfd.readouterr()
    assert err.splitlines()[-1].startswith("decoding: 11/11")
    predicted = table(out)
    columns = ["path", "label", "prediction", "probability_dark", "probability_grey", "probability_light"]
    assert list(predicted[0]) == columns
    assert [row["path"] for row in predicted][-2:] == [
        str(shared_images / "dark" / "009.png"),
        str(shared_images / "light" / "003.png"),
    ]
    assert {row["label"] for row in predicted} == {""}


def test_predictions_go_to_a_file_when_asked_and_are_the_same(
    shared_images: Path, shared_run: Path, tmp_path: Path
) -> None:
    written = twinbud("predict", shared_run, shared_images / "dark", "--output", tmp_path / "predicted.csv")
    printed = twinbud("predict", shared_run / "model", shared_images / "dark")
    assert (written.code, written.out) == (0, "")
    assert (tmp_path / "predicted.csv").read_text() == printed.out


@pytest.mark.parametrize("taken", ["file", "folder", "nowhere"])
def test_the_place_of_the_predictions_is_looked_at_before_any_image(
    taken: str, shared_run: Path, tmp_path: Path
) -> None:
    output = {"file": tmp_path / "split.csv", "folder": tmp_path, "nowhere": tmp_path / "none" / "x.csv"}[taken]
    (tmp_path / "split.csv").write_text("mine")
    (tmp_path / "broken.png").write_bytes(b"")
    line = refusal(twinbud("predict", shared_run, tmp_path / "broken.png", "--output", output))
    problem = {"file": "the file exists already", "folder": "a folder stands where a file", "nowhere": "its parent"}
    assert line.startswith(f"{output}: {problem[taken]}")
    assert (tmp_path / "split.csv").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_force_replaces_a_file_of_predictions(shared_images: Path, shared_run: Path, tmp_path: Path) -> None:
    words = ("predict", shared_run, shared_images / "dark" / "000.png", "--output", tmp_path / "out.csv")
    assert twinbud(*words).code == 0
    assert "replace it with --force." in refusal(twinbud(*words))
    assert twinbud(*words, "--force").code == 0


def test_prediction_gives_what_the_run_measured(shared_images: Path, shared_run: Path) -> None:
    measured = table((shared_run / "predictions.csv").read_text())
    predicted = table(twinbud("predict", shared_run, *(shared_images / row["path"] for row in measured)).out)
    for one, other in zip(measured, predicted, strict=True):
        assert one["prediction"] == other["prediction"]
        assert float(one["probability_grey"]) == pytest.approx(float(other["probability_grey"]), abs=1e-6)


def test_evaluating_a_run_gives_its_own_figures_again(shared_run: Path, tmp_path: Path) -> None:
    answer = twinbud("evaluate", shared_run, "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert "Accuracy" in answer.out
    assert "note: Evaluated on the test part of the run's own split." in answer.out
    again, own = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "again", shared_run))
    assert again.pop("num_left_out") == 0
    assert again == {name: own[name] for name in again}
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (shared_run / "predictions.csv").read_bytes()


def test_evaluating_without_output_writes_nothing(shared_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert twinbud("evaluate", run).code == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_images_are_matched_by_class_name_not_by_place(shared_run: Path, tmp_path: Path) -> None:
    """``light`` is the second class of these folders and the third of the model."""
    data = save_images(tmp_path / "other", {"dark": 3, "light": 3}, seed=1)
    answer = twinbud("evaluate", shared_run, "--data", data, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert f"note: Evaluated on all of {data}." in answer.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["num_test"] == 6
    assert [sum(row) for row in metrics["confusion_matrix"]] == [3, 0, 3]
    labels = {row["path"]: row["label"] for row in table((tmp_path / "out" / "predictions.csv").read_text())}
    assert all(path.startswith(f"{label}/") for path, label in labels.items())


def test_of_other_images_that_come_divided_only_the_test_part_counts(shared_run: Path, tmp_path: Path) -> None:
    for seed, part in enumerate(("Training", "Testing")):
        save_images(tmp_path / "other" / part, {"dark": 3, "light": 2 + seed}, seed=seed)
    answer = twinbud("evaluate", shared_run, "--data", tmp_path / "other", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    paths = [row["path"] for row in table((tmp_path / "out" / "predictions.csv").read_text())]
    assert len(paths) == 6
    assert all(path.startswith("Testing/") for path in paths)


def test_a_run_can_be_evaluated_after_its_images_moved(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shared_images, tmp_path / "old"))
    run = trained(data, shared_teacher, tmp_path / "run")
    data.rename(tmp_path / "new")
    assert "there is no such file or folder" in refusal(twinbud("evaluate", run))
    answer = twinbud("evaluate", run, "--data", tmp_path / "new", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert measured["confusion_matrix"] == json.loads((run / "metrics.json").read_text())["confusion_matrix"]
    assert "note: Evaluated on the test part of the run's own split." in answer.out
    assert "left out" not in answer.err


def test_a_test_image_that_has_changed_is_named(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shared_images, tmp_path / "data"))
    run = trained(data, shared_teacher, tmp_path / "run")
    changed = next(row["image_path"] for row in table((run / "split.csv").read_text()) if row["split"] == "test")
    shutil.copy(save_images(tmp_path / "other", {"new": 1}, seed=9) / "new" / "000.png", data / changed)
    line = refusal(twinbud("evaluate", run))
    assert f"test images that have changed since training: {changed}" in line


def test_other_images_under_the_same_names_are_other_images(shared_run: Path, tmp_path: Path) -> None:
    data = save_images(tmp_path / "other", {"dark": 10, "grey": 10, "light": 10}, seed=1)
    answer = twinbud("evaluate", shared_run, "--data", data)
    assert answer.code == 0, answer.err
    assert f"note: Evaluated on all of {data}." in answer.out


def test_a_runs_own_columns_and_seed_hold_when_it_is_evaluated(shared_teacher: str, tmp_path: Path) -> None:
    """The second table names its columns as the first, and lists other images of one of the run's patients."""
    for seed, name in enumerate(("own", "other")):
        save_images(tmp_path / name, {"dark": 6, "light": 6}, seed=seed)
        rows = [
            f"{label}/{n:03}.png,{label},{name if n else 'both'}{n}" for label in ("dark", "light") for n in range(6)
        ]
        (tmp_path / name / "list.csv").write_text("\n".join(["file,diagnosis,subject", *rows]) + "\n")
    columns = ("--image-column", "file", "--label-column", "diagnosis", "--patient-column", "subject")
    run = trained(tmp_path / "own" / "list.csv", shared_teacher, tmp_path / "run", *columns, "--seed", 3)
    trained_on = {row["patient_id"] for row in table((run / "split.csv").read_text()) if row["split"] == "train"}
    assert "both0" in trained_on
    words = ("--data", tmp_path / "other" / "list.csv", "--output", tmp_path / "out")
    answer = twinbud("evaluate", run, *words)
    assert answer.code == 0, answer.err
    assert answer.err.count("left out: ") == 2
    assert "left out: dark/000.png (of training patient 'both0')" in answer.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["bootstrap_unit"] == "patient"
    own = json.loads((run / "metrics.json").read_text())
    assert twinbud("evaluate", run, "--output", tmp_path / "again").code == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["confidence_intervals"] == own["confidence_intervals"]
    folder = save_images(tmp_path / "folder", {"dark": 2, "light": 2}, seed=5)  # which has no columns to name
    assert twinbud("evaluate", run, "--data", folder).code == 0
    line = refusal(twinbud("evaluate", run, "--data", folder, "--patient-column", "subject"))
    assert line.startswith("--patient-column: 'subject' has no effect")
    usual = tmp_path / "usual.csv"
    usual.write_text("image_path,label\nfolder/dark/000.png,dark\nfolder/light/000.png,light\n")
    words = ("--data", usual, "--image-column", "image_path", "--label-column", "label")
    assert refusal(twinbud("evaluate", run, *words)) == (
        f"--patient-column: 'subject' is not a column of {usual} (it has 'image_path', 'label'); it is one of the "
        "run's. Name the one of this CSV with --patient-column (--patient-column patient_id if it has none)."
    )
    assert twinbud("evaluate", run, *words, "--patient-column", "patient_id").code == 0


def test_lost_images_of_a_run_are_not_said_to_be_given_by_an_option(shared_teacher: str, tmp_path: Path) -> None:
    data = save_images(tmp_path / "data", {"dark": 6, "light": 6})
    run = trained(data, shared_teacher, tmp_path / "run")
    data.rename(tmp_path / "moved")
    fixes = {
        "evaluate": "Restore them, or name the folder or CSV that has them with --data.",
        "calibrate": "Restore the images and their labels, or train again.",
        "explain": "Restore them, or give images to explain.",
        "export": "Restore them, or export RUN/model, which is checked on generated images.",
    }
    for command, fix in fixes.items():
        lost = f"images of the run, {data}: there is no such file or folder. "
        assert refusal(twinbud(command, run)) == lost + fix


def test_logits_without_a_file_are_refused(shared_run: Path) -> None:
    assert refusal(twinbud("evaluate", shared_run, "--logits")).startswith("--logits: logits have no effect without")


def test_a_set_that_is_only_the_training_part_is_refused(shared_images: Path, shared_run: Path, tmp_path: Path) -> None:
    rows = [row for row in table((shared_run / "split.csv").read_text()) if row["split"] == "train"]
    lines = [f"{shared_images / row['image_path']},{row['label']}" for row in rows]
    (tmp_path / "seen.csv").write_text("\n".join(["image_path,label", *lines]) + "\n")
    answer = twinbud("evaluate", shared_run, "--data", tmp_path / "seen.csv")
    assert "images are excluded: " in refusal(answer)


@pytest.mark.parametrize("classes", [{"dark": 3}, {"dark": 1, "light": 1}])
def test_a_set_too_small_to_train_on_can_be_evaluated(
    classes: dict[str, int], shared_run: Path, tmp_path: Path
) -> None:
    save_images(tmp_path / "other" / "test", classes, seed=3)
    answer = twinbud("evaluate", shared_run, "--data", tmp_path / "other")
    assert answer.code == 0, answer.err
    assert f"{sum(classes.values())} test images" in answer.out


def test_selection_writes_both_students_and_the_plan_and_shows_the_widths(shared_teacher: str, tmp_path: Path) -> None:
    answer = twinbud("select", "--teacher", shared_teacher, "--output", tmp_path / "selected")
    assert (answer.code, answer.err) == (0, "")
    names = {path.name for path in (tmp_path / "selected").iterdir()}
    assert names == {"student.safetensors", "auxiliary.safetensors", "plan.json"}
    assert "residual" in answer.out
    assert "teacher: " in answer.out


def test_selection_in_half_precision_is_announced_by_its_size(shared_teacher: str, tmp_path: Path) -> None:
    for weights in ("float32", "float16"):
        words = ("--teacher", shared_teacher, "--weights", weights, "--output", tmp_path / weights)
        assert twinbud("select", *words).code == 0
    whole, half = ((tmp_path / w / "student.safetensors").stat().st_size for w in ("float32", "float16"))
    assert half < 0.7 * whole


@pytest.mark.parametrize("command", ["select", "evaluate"])
def test_force_replaces_an_earlier_output_and_nothing_else(
    shared_teacher: str, shared_run: Path, tmp_path: Path, command: str
) -> None:
    words = {"select": ("select", "--teacher", shared_teacher), "evaluate": ("evaluate", shared_run)}[command]
    output = tmp_path / "output"
    assert twinbud(*words, "--output", output).code == 0
    assert "replace it with --force" in refusal(twinbud(*words, "--output", output))
    assert twinbud(*words, "--output", output, "--force").code == 0
    (output / "thesis.tex").write_text("years of work")
    line = refusal(twinbud(*words, "--output", output, "--force"))
    assert "the folder holds files that this command does not write (thesis.tex)" in line
    assert (output / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_run_shows_its_figures_its_notes_and_its_places(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    answer = train(shared_images, shared_teacher, tmp_path / "run")
    assert answer.code == 0
    assert "Balanced accuracy" in answer.out
    assert "note: no patient column: split by image, figures may be optimistic" in answer.out
    assert f"model:  {tmp_path}/run/model" in answer.out
    assert f"report: {tmp_path}/run/report.html" in answer.out
    assert "training dual: 3/3" in answer.err


def test_every_name_that_others_rely_on_is_a_setting() -> None:
    promised = (
        "data", "teacher", "selected", "student", "method", "rule", "attention", "fraction", "profile", "image_size",
        "epochs", "batch_size", "seed", "split_seed", "split", "evaluate_every", "skip_broken", "swap_roles",
        "split_duplicates", "precision",
    )  # fmt: skip
    assert set(promised) <= set(all_settings())


@pytest.mark.parametrize(
    "job",
    [audit, calibrate, evaluate, explain, export, predict, select],
    ids=lambda job: job.__name__,
)
def test_every_option_of_a_command_is_a_parameter_of_its_function(job: Callable[..., Any]) -> None:
    options = OPTIONS[job.__name__][1]()
    names = {option.keywords.get("dest", option.name.removeprefix("--").replace("-", "_")) for option in options}
    assert names <= set(inspect.signature(job).parameters)


@pytest.mark.parametrize(("option", "value"), [("--develop", True), ("--no-develop", False)])
def test_a_switch_of_a_file_can_be_turned_on_and_off(option: str, value: bool) -> None:
    assert parse(["train", "--output", "run", option]).develop is value
