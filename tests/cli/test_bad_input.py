"""Bad input: one line that says what was expected, what came, where and what to do; exit code 2; nothing left."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.builders import save_images, save_teacher
from helpers.command import Answer, refusal, train, twinbud

ORPHAN = ("train", "--data", "{images}", "--image-size", "28", "--output", "{out}/run", "--profile", "paper")
TRAIN = (*ORPHAN, "--teacher", "{teacher}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is typed after the words of a sound ``train``, and what the line must say of it.

    Attributes:
        words: Later words win; {names} stand for places of the test.
        said: Parts of the line, in their order; {names} as above.
        base: The words before.
        prepare: Makes the bad input in a folder of its own, {bad}.
        files: Written into {bad} first, by name.
    """

    words: tuple[str, ...]
    said: tuple[str, ...]
    base: tuple[str, ...] = TRAIN
    prepare: Callable[[Path], object] = lambda bad: None
    files: dict[str, str] = field(default_factory=dict)


def tables(text: str) -> dict[str, str]:
    return {"labels.csv": text}


def four_images(bad: Path) -> None:
    save_images(bad, {"a": 4, "b": 4})


def wide_student(bad: Path) -> None:
    """Saved under a name whose half is known, so that it can be a teacher narrower than a named student."""
    save_teacher(bad / "narrow", "convnext_tiny", dims=[4, 8, 12, 16], depths=[2, 2, 6, 2])


def same_widths(bad: Path) -> None:
    save_teacher(bad / "same", "vit_tiny_patch16_224", img_size=32)


def odd_argument(bad: Path) -> None:
    save_teacher(bad / "odd", "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=4)
    path = bad / "odd" / "config.json"
    path.write_text(path.read_text().replace('"embed_dim"', '"color": "red", "embed_dim"'))


EIGHT = "".join(f"{name}/{n:03}.png,{name}\n" for name in "ab" for n in range(4))
LAYOUT = "Arrange the images as FOLDER/CLASS/image.png"
DATA = ("--data", "{bad}")
TABLE = ("--data", "{bad}/labels.csv")
CONFIG = ("--config", "{bad}/run.yaml")

CASES: dict[str, Case] = {
    "missing path": Case(
        words=("--data", "{bad}/none"),
        said=("--data {bad}/none: there is no such file or folder.", "Give a folder of class"),
    ),
    "empty folder": Case(words=DATA, said=("{bad}: the folder is empty.", LAYOUT)),
    "class folders that hold only folders": Case(
        words=DATA,
        said=("class folders that hold folders instead of images: 'site'.", LAYOUT),
        prepare=lambda bad: save_images(bad / "site", {"a": 3, "b": 3}) and save_images(bad, {"other": 3}),
    ),
    "one class only": Case(
        words=DATA,
        said=("{bad}: all images are of one class, 'only'; training needs at least two classes.", LAYOUT),
        prepare=lambda bad: save_images(bad, {"only": 5}),
    ),
    "a class with a single image": Case(
        words=DATA,
        said=("every class needs at least two images", "'rare' has 1.", "Add images, or take the class out."),
        prepare=lambda bad: save_images(bad, {"common": 5, "rare": 1}),
    ),
    "CSV without the columns": Case(
        words=TABLE,
        said=("{bad}/labels.csv: missing columns: 'image_path', 'label'", "has 'file', 'class'", "--image-column"),
        files=tables("file,class\na/000.png,a\n"),
    ),
    "CSV with unknown paths": Case(
        words=TABLE,
        said=("column 'image_path': 1 of 9 paths lead to no file: 'a/999.png'.", "Write paths relative to"),
        prepare=four_images,
        files=tables(f"image_path,label\n{EIGHT}a/999.png,a\n"),
    ),
    "CSV with a patient on both sides": Case(
        words=TABLE,
        said=("the given split has patients in more than one part: 'P0' in test and train", "Move all images"),
        prepare=four_images,
        files=tables(
            "image_path,label,patient_id,split\n"
            + "".join(f"{n}/{i:03}.png,{n},P{i // 3},{'test' if i > 1 else 'train'}\n" for n in "ab" for i in range(4))
        ),
    ),
    "split.csv of other data": Case(
        words=("--split", "{bad}/split.csv"),
        said=(
            "--split {bad}/split.csv for {images}: the data lacks images of the split",
            "a/000.png",
            "Give the split of the same data",
        ),
        files={"split.csv": "image_path,label,split\na/000.png,a,train\n"},
    ),
    "split.csv that is missing": Case(words=("--split", "{bad}/none.csv"), said=("{bad}/none.csv", "Check the path.")),
    "split.csv without the columns": Case(
        words=("--split", "{bad}/split.csv"),
        said=("missing columns: 'image_path', 'label', 'split'", "Give the split.csv of a run."),
        files={"split.csv": "path,part\na/000.png,train\n"},
    ),
    "image over the limit": Case(
        words=("--max-megapixels", "0.0001"),
        said=("none of the 30 images can be read: dark/000.png (the file has 32×32 pixels", "raise --max-megapixels."),
    ),
    "unknown teacher": Case(words=("--teacher", "dinov2-smal"), said=("--teacher: ", "Did you mean 'dinov2-small'?")),
    "teacher folder that is missing": Case(
        words=("--teacher", "local-dir:{bad}/none"), said=("{bad}/none: no folder in timm's layout", "Give the")
    ),
    "teacher file that is missing": Case(
        words=("--teacher", "convnext_tiny@{bad}/none.safetensors"),
        said=("{bad}/none.safetensors: no such file.", "Check the path."),
    ),
    "teacher in a pickle": Case(
        words=("--teacher", "vit_small_patch16_224@{bad}/weights.pth", "--image-size", "32"),
        said=("{bad}/weights.pth: '.pth' files are not opened", "a pickle can run code", "run: python -m "),
        files={"weights.pth": "cos\nsystem\n(S'touch pwned'\ntR."},
    ),
    "teacher folder with an argument timm lacks": Case(
        words=("--teacher", "local-dir:{bad}/odd"),
        said=("local-dir:{bad}/odd: timm cannot build ", "color"),
        prepare=odd_argument,
    ),
    "no teacher": Case(
        base=ORPHAN, words=(), said=("--teacher: no teacher is given. Give --teacher dinov2-small, or --selected DIR.",)
    ),
    "teacher file of a baseline that is missing": Case(
        words=("--teacher", "convnext_tiny@{bad}/none.safetensors", "--method", "timm"),
        said=("{bad}/none.safetensors: no such file.", "Check the path."),
    ),
    "unknown student": Case(
        words=("--student", "vit_tinny_patch16_224"), said=("--student: ", "Did you mean 'vit_tiny_patch16_224'?")
    ),
    "student of another family": Case(
        words=("--student", "convnext_femto"), said=("--student: ", "but the teacher is a ViT")
    ),
    "student wider than its teacher": Case(
        words=("--teacher", "local-dir:{bad}/narrow", "--student", "convnext_femto", "--image-size", "32"),
        said=(
            "--student: the student is wider than its teacher",
            "Choose a smaller student or a larger teacher",
        ),
        prepare=wide_student,
    ),
    "student with a part the teacher lacks": Case(
        words=("--student", "deit_tiny_distilled_patch16_224", "--image-size", "32"),
        said=("--student: ", "Use --student"),
    ),
    "equal widths where the auxiliary is used": Case(
        words=("--teacher", "local-dir:{bad}/same", "--student", "vit_tiny_patch16_224", "--image-size", "32"),
        said=("--student: all widths are equal (residual 192 = 192, ", "or train without an auxiliary: --method"),
        prepare=same_widths,
    ),
    "image size the patch does not divide": Case(
        words=("--image-size", "30"),
        said=("30 is not a multiple of the patch size, 7 pixels", "Use --image-size 28 or 35."),
    ),
    "unknown rule": Case(
        words=("--rule", "unifrom"),
        said=(
            "--rule: 'unifrom' is not one of uniform, consecutive, random, random-inconsistent",
            "Did you mean 'uniform'?",
        ),
    ),
    "unknown method": Case(
        words=("--method", "duel"),
        said=("--method: 'duel' is not one of dual, selection, timm, xavier, kaiming", "Did you mean 'dual'?"),
    ),
    "unknown profile": Case(words=("--profile", "fast"), said=("--profile: 'fast' is not one of best, quick, paper",)),
    "unknown setting": Case(
        words=("--learning-rat", "1"),
        said=(
            "there is no option --learning-rat",
            "Did you mean --learning-rate?",
        ),
    ),
    "unknown setting in a file": Case(
        words=CONFIG, said=("'learning_rat'", "Did you mean 'learning_rate'?"), files={"run.yaml": "learning_rat: 1\n"}
    ),
    "unknown method in a file": Case(
        words=CONFIG,
        said=("--method: 'duel' is not one of dual, selection", "Did you mean 'dual'?"),
        files={"run.yaml": "method: duel\n"},
    ),
    "value of another kind in a file": Case(
        words=CONFIG,
        said=("--config {bad}/run.yaml: --fraction: 'much' is not a number above 0 and of at most 1.",),
        files={"run.yaml": "fraction: much\n"},
    ),
    "value out of its range in a file": Case(
        words=CONFIG,
        said=("--config {bad}/run.yaml: --fraction: '2' is not a number above 0 and of at most 1.",),
        files={"run.yaml": "fraction: 2\n"},
    ),
    "settings file that is missing": Case(
        words=("--config", "{bad}/none.yaml"), said=("--config {bad}/none.yaml: the settings cannot be read",)
    ),
    "settings file that is no YAML": Case(
        words=CONFIG,
        said=("--config {bad}/run.yaml: the settings cannot be read (line 2: ",),
        files={"run.yaml": "a: [1,\n"},
    ),
    "settings file that is a list": Case(
        words=CONFIG,
        said=("--config {bad}/run.yaml: the content is not a mapping of settings",),
        files={"run.yaml": "- 1\n"},
    ),
    "number that is none": Case(words=("--seed", "nought"), said=("--seed: 'nought' is not a whole number.",)),
    **{
        f"{option} that is not finite": Case(
            words=(f"--{option}", value), said=(f"--{option}: '{value}' is not a number ",)
        )
        for option, value in (
            ("learning-rate", "nan"),
            ("temperature", "inf"),
            ("max-megapixels", "inf"),
            ("checkpoint-seconds", "nan"),
        )
    },
    "images of more than 4096 pixels a side": Case(
        words=("--image-size", "4102"),
        said=("--image-size: '4102' is not a whole number from 1 to 4096.",),
    ),
    "no path": Case(words=("--data", ""), said=("--data: the value is empty.",)),
    "path of 5,000 characters": Case(
        words=("--data", "{bad}/" + "x" * 5000), said=("x…: file name too long. Give a folder",)
    ),
    "file name that is no UTF-8": Case(
        words=DATA,
        said=("a/caf\\udce9.png: 1 file name is not UTF-8. Rename them.",),
        prepare=lambda bad: save_images(bad, {"a": 3, "b": 3}) and (bad / "a/000.png").rename(bad / "a/caf\udce9.png"),
    ),
    "another profile than the file's": Case(
        words=(*CONFIG, "--profile", "quick"),
        said=(
            "--profile: 'quick' contradicts profile 'paper' of the --config file. Override single settings",
            "leave --config out.",
        ),
        files={"run.yaml": "profile: paper\nimage_size: 224\n"},
    ),
    "alpha out of its range": Case(words=("--alpha", "1.5"), said=("--alpha: '1.5' is not a number from 0 to 1.",)),
    "nought epochs": Case(
        words=("--epochs", "0", "--profile", "quick"), said=("--epochs: 0 would deliver a classifier that nothing has",)
    ),
    "fraction that leaves one class": Case(
        words=("--fraction", "0.01", "--subset", "plain"),
        said=("--fraction 0.01 --subset plain", "Give a larger --fraction, or --subset stratified."),
    ),
    "a GPU where there is none": Case(words=("--device", "cuda"), said=("--device cuda: ", "Use --device cpu.")),
    "selection that is none": Case(
        base=ORPHAN,
        words=("--selected", "{bad}"),
        said=("{bad}: the folder has no readable plan.json. Run: twinbud select --teacher T --output DIR.",),
    ),
    "output that exists": Case(
        words=("--output", "{bad}"),
        said=("{bad}: the folder is not empty", "replace it with --force."),
        files={"notes.txt": "mine"},
    ),
    "output that is a file": Case(
        words=("--output", "{bad}/notes.txt"),
        said=("{bad}/notes.txt: a file stands where the output folder should be.", "Choose another --output."),
        files={"notes.txt": "mine"},
    ),
    "output below a file": Case(
        words=("--output", "{bad}/notes.txt/run"), said=("{bad}/notes.txt/run: ", "--output."), files={"notes.txt": ""}
    ),
    "output whose name is too long": Case(words=("--output", "{bad}/" + "x" * 300), said=("xxx: ", "--output.")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_refuses_in_one_line_and_leaves_nothing(
    case: Case, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out"
    for folder in (bad, out):
        folder.mkdir()
    case.prepare(bad)
    for name, text in case.files.items():
        (bad / name).write_text(text)
    before = sorted(bad.rglob("*"))
    places = {"bad": bad, "out": out, "images": shared_images, "teacher": shared_teacher}
    line = refusal(twinbud(*(word.format(**places) for word in (*case.base, *case.words))))
    position = 0
    for part in case.said:
        position = line.find(part.format(**places), position)
        assert position >= 0, f"{part!r} is not in its place: {line}"
    assert list(out.iterdir()) == []
    assert sorted(bad.rglob("*")) == before


BROKEN: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "text": lambda path: path.write_text("not an image"),
    "a folder's place": lambda path: path.unlink() or path.symlink_to("nowhere.png"),
}


@pytest.fixture
def broken_images(shared_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_images, tmp_path / "images"))


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named_and_can_be_left_out(
    damage: Callable[[Path], object], broken_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path
) -> None:
    damage(broken_images / "dark" / "004.png")
    line = refusal(train(broken_images, shared_teacher, tmp_path / "run"))
    assert line.startswith("dark/004.png: the file ")
    assert "--skip-broken" in line
    assert not (tmp_path / "run").exists()
    answer = train(broken_images, shared_teacher, tmp_path / "run", "--skip-broken")
    assert answer.code == 0, answer.err
    assert "dark/004.png (" in answer.out
    with (tmp_path / "run" / "left_out.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["dark/004.png"]
    assert "dark/004.png" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "dark/004.png" not in (tmp_path / "run" / "split.csv").read_text()

    line = refusal(twinbud("predict", shared_run, broken_images, "--output", tmp_path / "out.csv"))
    assert line.startswith(f"{broken_images}/dark/004.png: the file ")
    assert not (tmp_path / "out.csv").exists()
    answer = twinbud("predict", shared_run, broken_images, "--skip-broken")
    assert answer.code == 0
    left_out, note = answer.err.splitlines()[-2:]
    assert left_out.startswith(f"left out: {broken_images}/dark/004.png (")
    assert note == "note: 29 images classified, 1 file left out"
    assert len(list(csv.reader(answer.out.splitlines()))) == 30


def test_a_class_that_only_broken_images_make_small_is_refused(shared_teacher: str, tmp_path: Path) -> None:
    data = save_images(tmp_path / "data", {"dark": 2, "light": 5})
    (data / "dark" / "000.png").write_bytes(b"")
    line = refusal(train(data, shared_teacher, tmp_path / "run", "--skip-broken"))
    assert "'dark' has 1." in line
    assert not (tmp_path / "run").exists()


def full_disk_at(monkeypatch: pytest.MonkeyPatch, name: str, error: int = errno.ENOSPC) -> None:
    """Let the file of that name, or its draft, be opened but not written."""
    whole = Path.open

    def failing(self: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        if name in self.name and "r" not in mode:
            raise OSError(error, os.strerror(error), str(self))
        return whole(self, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", failing)


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml", "split.csv", "environment.json", "history.csv", "predictions.csv", "model.safetensors",
        "config.json", "plan.json", "metrics.json",
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line_and_the_run_stays_marked(
    name: str, shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_at(monkeypatch, name)
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run"))
    assert ": the disk is full. Free some space or choose another --output." in line
    assert (tmp_path / "run" / "UNFINISHED").is_file()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob("*.draft"))


@pytest.mark.parametrize("name", ["model/README.md", "report.html"])
def test_a_disk_too_full_for_the_report_is_one_line_and_the_run_is_complete(
    name: str, shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_at(monkeypatch, Path(name).name)
    answer = train(shared_images, shared_teacher, tmp_path / "run")
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.err.splitlines() if f"{name} is missing (" in line]
    assert "the disk is full" in line
    assert line.endswith(f"'twinbud report {tmp_path / 'run'}' writes it again")
    assert not (tmp_path / "run" / "UNFINISHED").exists()
    assert not (tmp_path / "run" / name).exists()
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert not list((tmp_path / "run").rglob("*.draft"))


@pytest.mark.parametrize("name", ["UNFINISHED", "student.safetensors", "plan.json"])
def test_a_disk_that_is_full_from_the_first_file_leaves_no_result(
    name: str, shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_at(monkeypatch, name)
    if name == "UNFINISHED":
        answer = train(shared_images, shared_teacher, tmp_path / "out")
    else:
        answer = twinbud("select", "--teacher", shared_teacher, "--output", tmp_path / "out")
    assert ": the disk is full." in refusal(answer)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ["train", "select", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("error", "problem"),
    [(errno.EACCES, "there is no permission to write"), (errno.EROFS, "the file system is read-only")],
)
def test_a_place_that_may_not_be_written_is_one_line(
    command: str,
    error: int,
    problem: str,
    shared_images: Path,
    shared_teacher: str,
    shared_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Permissions are played, since tests may run as root."""
    output = tmp_path / "locked" / "out"

    def locked(self: Path, *arguments: Any, **settings: Any) -> None:
        del arguments, settings
        raise OSError(error, os.strerror(error), str(self))

    answers: dict[str, Callable[[], Answer]] = {
        "train": lambda: train(shared_images, shared_teacher, output),
        "select": lambda: twinbud("select", "--teacher", shared_teacher, "--output", output),
        "evaluate": lambda: twinbud("evaluate", shared_run, "--output", output),
        "predict": lambda: twinbud("predict", shared_run, shared_images, "--output", output),
    }
    if command == "predict":
        full_disk_at(monkeypatch, "out", error)
    else:
        monkeypatch.setattr(Path, "mkdir", locked)
    line = refusal(answers[command]())
    assert problem in line
    assert str(output) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["dual", "timm"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    method: str, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--method", method, "--learning-rate", "1e30", "--warmup", "0", "--epochs", 3)
    line = refusal(train(shared_images, shared_teacher, tmp_path / "run", *words))
    assert line.startswith("step 2 (epoch 1, batch 2): the loss is not finite (loss nan")
    assert "lower --learning-rate or set --clip-norm 1." in line
    assert line in (tmp_path / "run" / "UNFINISHED").read_text()
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


EVALUATE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no run": (
        ("evaluate", "{bad}/none"),
        ("{bad}/none: the folder is not a run: config.yaml cannot be read", "Give the --output"),
    ),
    "a folder that is no run": (("evaluate", "{bad}"), ("{bad}: the folder is not a run", "Give the --output")),
    "classes the model does not know": (
        ("evaluate", "{run}", "--data", "{bad}/other"),
        (
            "{bad}/other: unknown classes: 'glioma', 'healthy'; the model knows dark, grey, light.",
            "Rename the class as",
        ),
    ),
    "images that are missing": (
        ("evaluate", "{run}", "--data", "{bad}/none"),
        ("--data {bad}/none: there is no such file or folder.", "Give a folder of class"),
    ),
    "an output that exists": (
        ("evaluate", "{run}", "--output", "{bad}"),
        ("{bad}: the folder is not empty", "--force."),
    ),
    "a run as the output, forced": (
        ("evaluate", "{run}", "--output", "{run}", "--force"),
        ("{run}: the folder holds files that this command does not write", "Choose another --output."),
    ),
    "no model": (("predict", "{bad}", "{images}"), ("{bad}: no model folder", "Give RUN, or RUN/model")),
    "no model at all": (("predict", "{bad}/none", "{images}"), ("{bad}/none: no model folder", "Give RUN")),
    "no image": (
        ("predict", "{run}", "{bad}/none.png"),
        ("{bad}/none.png: there is no such file or folder. Give images",),
    ),
    "an empty folder": (("predict", "{run}", "{bad}/empty"), ("{bad}/empty: the folder is empty. Give images",)),
    "a file of another kind": (("predict", "{run}", "{bad}/notes.txt"), ("{bad}/notes.txt: the file is not a PNG",)),
    "an image over the limit": (
        ("predict", "{run}", "{images}/dark/000.png", "--max-megapixels", "0.001"),
        ("dark/000.png: the file has 32×32 pixels (0.0 megapixels; the limit is 0.001)", "raise --max-megapixels"),
    ),
    "a table in a folder that is missing": (
        ("predict", "{run}", "{images}/dark", "--output", "{bad}/none/out.csv"),
        ("{bad}/none/out.csv: ", "--output."),
    ),
    "an image whose name is no UTF-8": (
        ("predict", "{run}", "{bad}/names"),
        ("{bad}/names/caf\\udce9.png: 1 file name is not UTF-8",),
    ),
    "a table where a folder is": (
        ("predict", "{run}", "{images}/dark", "--output", "{bad}/empty"),
        ("{bad}/empty: ", "--output."),
    ),
    "an unknown teacher to select from": (
        ("select", "--teacher", "dinov2-smal", "--output", "{bad}/selected"),
        ("--teacher: ", "Did you mean 'dinov2-small'?"),
    ),
    "an unknown rule to select by": (
        ("select", "--teacher", "{teacher}", "--rule", "unifrom", "--output", "{bad}/selected"),
        ("--rule: 'unifrom' is not one of uniform", "Did you mean 'uniform'?"),
    ),
    "no teacher to select from": (
        ("select", "--output", "{bad}/selected"),
        ("--teacher: ", "Give --teacher dinov2-small"),
    ),
    "a student wider than the teacher to select from": (
        ("select", "--teacher", "{teacher}", "--student", "vit_tiny_patch16_224", "--output", "{bad}/selected"),
        ("--student: the student",),
    ),
}


@pytest.mark.parametrize(("words", "said"), EVALUATE.values(), ids=EVALUATE)
def test_the_other_commands_refuse_in_one_line_and_leave_nothing(
    words: tuple[str, ...],
    said: tuple[str, ...],
    shared_images: Path,
    shared_teacher: str,
    shared_run: Path,
    tmp_path: Path,
) -> None:
    save_images(tmp_path / "other", {"dark": 2, "glioma": 2, "healthy": 2})
    (tmp_path / "empty").mkdir()
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "caf\udce9.png").touch()
    (tmp_path / "notes.txt").write_text("mine")
    before = sorted((*tmp_path.rglob("*"), *shared_run.rglob("*")))
    places = {"bad": tmp_path, "run": shared_run, "images": shared_images, "teacher": shared_teacher}
    line = refusal(twinbud(*(word.format(**places) for word in words)))
    for part in said:
        assert part.format(**places) in line
    assert sorted((*tmp_path.rglob("*"), *shared_run.rglob("*"))) == before


def test_the_demo_without_its_teacher_prints_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twinbud.models import wheel
    from twinbud.models.dinov2 import DINOV2_SMALL

    monkeypatch.setattr(wheel, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = twinbud("demo", "--output", tmp_path / "demo")
    assert answer.code == 2
    assert DINOV2_SMALL.install in answer.err.splitlines()[-1]
    assert not (tmp_path / "demo").exists()


def test_an_image_may_not_be_a_bomb(shared_run: Path, tmp_path: Path) -> None:
    """12,000 × 12,000 pixels in a file of a few kilobytes are refused from the header."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    line = refusal(twinbud("predict", shared_run, tmp_path / "bomb.png"))
    assert "the file has 12000×12000 pixels (144.0 megapixels; the limit is 36)" in line
