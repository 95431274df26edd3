"""A teacher of one's own: taught, stopped, resumed, opened by others, and never tested on what it has seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config

import twinbud
from helpers.builders import save_images, save_teacher
from helpers.command import SMALL, Answer, refusal, trained
from helpers.command import twinbud as command
from helpers.runs import read_json, rows
from helpers.stopping import sigterm_at_step
from twinbud.config.data_config import DataConfig
from twinbud.config.fields import hints_of
from twinbud.config.keywords import TeachSettings
from twinbud.config.schema import TrainingConfig
from twinbud.config.teaching import TEACHING_SETTINGS, teach_config
from twinbud.core.progress import SilentProgress
from twinbud.data import image_loading
from twinbud.data.formats import decoding
from twinbud.data.split_file import SplitRow, read_split, write_split
from twinbud.runs import memory, teach
from twinbud.runs.teach_images import TeachingImages, list_teaching_images, open_teaching_images
from twinbud.teaching.step import TeachingStep

LEARNER = "test_convnext"
SETTINGS = ("--image-size", 64, "--epochs", 2, "--batch-size", 16, "--precision", "float32", "--threads", 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"), {"dark": 16, "grey": 16, "light": 16})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ViT with patches of 7 pixels, which 64 is no multiple of."""
    folder = tmp_path_factory.mktemp("source") / "vit"
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return save_teacher(folder, "vit_tiny_patch16_224", **arguments)


@pytest.fixture(scope="module")
def split(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the images tests, one is for validation, and the labels of half of the training part are known."""
    path = tmp_path_factory.mktemp("split") / "split.csv"
    write_split(path, split_rows(images))
    return path


def split_rows(images: Path) -> list[SplitRow]:
    files = sorted(images.rglob("*.png"))
    parts = ["test" if number % 3 == 0 else "val" if number == 1 else "train" for number in range(len(files))]
    return [
        SplitRow(
            image_path=file.relative_to(images).as_posix(),
            label=file.parent.name,
            patient_id=None,
            split=part,  # type: ignore[arg-type]
            labelled=part == "train" and number % 2 == 0,
        )
        for number, (file, part) in enumerate(zip(files, parts, strict=True))
    ]


def run_teach(data: Path | str, source: str, output: Path, *words: object) -> Answer:
    return command(
        "teach", "--architecture", LEARNER, "--from", source, "--data", data, "--output", output, *SETTINGS, *words
    )


def taught(data: Path | str, source: str, output: Path, *words: object) -> Path:
    answer = run_teach(data, source, output, *words)
    assert answer.code == 0, answer.err
    return output


@pytest.fixture(scope="module")
def teacher(images: Path, source: str, split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught on the training part of ``split``; to be read only."""
    return taught(images, source, tmp_path_factory.mktemp("taught") / "teacher", "--split", split)


@pytest.fixture(scope="module")
def longer_teacher(images: Path, source: str, split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three epochs; to be read only."""
    return taught(images, source, tmp_path_factory.mktemp("taught") / "teacher", "--split", split, "--epochs", 3)


@pytest.fixture(scope="module")
def teacher_of_all(images: Path, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught on all images, without a split; to be read only."""
    return taught(images, source, tmp_path_factory.mktemp("taught") / "teacher", "--epochs", 1)


def save_discs(folder: Path, count: int) -> Path:
    """A folder of nothing but images, of a bright disc anywhere on a dark ground."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:56, :56]
    for number in range(count):
        row, column, radius, level = generator.uniform((0, 0, 5, 100), (56, 56, 25, 250))
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        pixels = np.where(inside, level, 30) + generator.normal(0, 5, (56, 56))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def test_learning_lowers_the_loss_and_the_error_on_images_not_trained_on(source: str, tmp_path: Path) -> None:
    words = ("--architecture", "test_resnet", "--image-size", 56, "--epochs", 9, "--learning-rate", 4e-3)
    folder = taught(save_discs(tmp_path / "discs", 100), source, tmp_path / "teacher", *words)
    metrics = read_json(folder / "metrics.json")
    losses = [float(row["loss"]) for row in rows(folder / "history.csv")]
    assert losses[-1] < losses[0] / 2
    before, after = (1 - metrics[when]["explained_spatial"] for when in ("before", "after"))
    assert after < 0.9 * before
    assert (metrics["num_train"], metrics["num_held_out"]) == (90, 10)


def test_the_folder_is_a_feature_extractor_of_plain_timm_with_its_preprocessing(teacher: Path) -> None:
    model = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()
    saved = load_file(teacher / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    config = resolve_model_data_config(model)
    assert list(config["input_size"]) == [3, 64, 64]
    assert [*config["mean"], *config["std"]] == [0.5, 0.4, 0.3, 0.2, 0.25, 0.3]
    assert model.num_classes == 0
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, model.num_features)


def test_of_the_maps_to_the_source_nothing_is_saved(teacher: Path) -> None:
    assert (
        load_file(teacher / "model.safetensors").keys() == timm.create_model(LEARNER, num_classes=0).state_dict().keys()
    )


@pytest.mark.parametrize("method", ["selection", "dual", "finetune"])
def test_a_student_starts_from_the_taught_teacher(method: str, images: Path, teacher: Path, tmp_path: Path) -> None:
    words = ("--method", method, "--image-size", 64, "--learning-rate", 0, "--final-learning-rate", 0)
    run = trained(images, f"local-dir:{teacher}", tmp_path / "run", *words)
    student, own = load_file(run / "model" / "model.safetensors"), load_file(teacher / "model.safetensors")
    name = "stages.0.blocks.0.conv_dw.weight"
    step = len(own[name]) // len(student[name])
    assert torch.equal(student[name], own[name][::step])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all images that are opened, by whatever reads pixels."""
    names: list[str] = []
    read = decoding.read_file

    def noted(path: Path, name: str) -> Any:
        names.append(name)
        return read(path, name)

    monkeypatch.setattr(image_loading, "read_file", noted)
    return names


def test_no_image_that_is_kept_for_test_or_validation_is_opened(
    images: Path, source: str, split: Path, tmp_path: Path, opened: list[str]
) -> None:
    """They are not even images: a copy of the set has other bytes in their place."""
    copy = Path(shutil.copytree(images, tmp_path / "images"))
    kept = {row.image_path for row in read_split(split) if row.split != "train"}
    for name in kept:
        (copy / name).write_bytes(b"not an image")
    folder = taught(copy, source, tmp_path / "teacher", "--split", split, "--epochs", 1)
    assert opened
    assert not kept & set(opened)
    metrics = read_json(folder / "metrics.json")
    assert metrics["num_train"] + metrics["num_held_out"] == len(read_split(split)) - len(kept) == len(set(opened))
    assert metrics["num_labelled"] == sum(row.labelled for row in read_split(split))


def test_parts_that_come_with_the_data_are_kept_as_well(
    images: Path, source: str, tmp_path: Path, opened: list[str]
) -> None:
    for part, names in (("train", ("dark", "light")), ("test", ("dark", "light"))):
        for name in names:
            shutil.copytree(images / name, tmp_path / "images" / part / name)
            for file in (tmp_path / "images" / part / name).iterdir():
                if part == "test":  # other pixels, so that no image is left out as a copy
                    Image.fromarray(np.asarray(Image.open(file)) // 2).save(file)
    answer = run_teach(tmp_path / "images", source, tmp_path / "teacher", "--epochs", 1)
    assert answer.code == 0, answer.err
    assert all(name.startswith("train/") for name in opened)
    assert "32 training images used; not opened: 32 test" in answer.err


def test_one_note_counts_what_the_split_keeps(teacher: Path) -> None:
    text = (teacher / "README.md").read_text(encoding="utf-8")
    assert "31 training images used; not opened: 1 validation, 16 test" in text
    assert "Do not test on these 31 images" in text


def test_without_a_split_the_note_says_that_no_image_may_be_tested_on(teacher_of_all: Path) -> None:
    text = (teacher_of_all / "README.md").read_text(encoding="utf-8")
    assert "there is no split: all 48 images are used, and none of them may be tested on later" in text
    assert len(rows(teacher_of_all / "seen_images.csv")) == 48


def test_copies_of_test_images_are_left_out_and_listed(images: Path, source: str, tmp_path: Path) -> None:
    run = trained(images, source, tmp_path / "run", "--method", "timm")  # its split.csv has checksums
    listed = read_split(run / "split.csv")
    digests = {row.image_path: row.digest for row in listed}
    tested, other = (next(row.image_path for row in listed if row.split == part) for part in ("test", "train"))
    copy = Path(shutil.copytree(images, tmp_path / "images"))
    shutil.copy(copy / tested, copy / other)
    folder = taught(copy, source, tmp_path / "teacher", "--split", run / "split.csv", "--epochs", 1)
    assert [row["path"] for row in rows(folder / "left_out.csv")] == [other]
    assert digests[tested] not in {row["pixels_sha256"] for row in rows(folder / "seen_images.csv")}


def test_near_duplicates_all_teach_or_all_measure(source: str, tmp_path: Path) -> None:
    config = {"image_size": 64, "epochs": 1, "data": str(tmp_path / "images"), "pixel_cache": False}
    save_discs(tmp_path / "images", 20)
    for path in sorted((tmp_path / "images").iterdir()):
        Image.open(path).point([round(0.8 * value + 30) for value in range(256)]).save(
            path.with_stem(f"{path.stem}-brighter")
        )
    sides = {}
    for choice in ("group", "ignore"):
        images = teaching_images(source, tmp_path / "out", near_duplicates=choice, **config)
        held_out = {images.image_index.rows[row].path[:3] for row in images.held_out}
        sides[choice] = held_out & {images.image_index.rows[row].path[:3] for row in images.train}
        told = "20 groups of near-duplicates found (40 images): each group is in one part only"
        assert (told in images.notes) == (choice == "group")
    assert sides["group"] == set()
    assert sides["ignore"] != set()


def teaching_images(source: str, output: Path, *, pixel_cache: bool, **settings: Any) -> TeachingImages:
    config = teach_config(settings, architecture=LEARNER, source=source, output=output, pixel_cache=pixel_cache)
    return open_teaching_images(list_teaching_images(config.data), config, SilentProgress())


@pytest.mark.parametrize("step", [1, 3, 5], ids="step {}".format)
def test_a_teaching_that_is_stopped_ends_as_if_it_had_not_been(
    step: int, images: Path, source: str, split: Path, longer_teacher: Path, tmp_path: Path
) -> None:
    """In the first epoch, in the second and in the third, of two steps each."""
    whole, words = longer_teacher, ("--split", split, "--epochs", 3)
    with sigterm_at_step(TeachingStep, step):
        stopped = run_teach(images, source, tmp_path / "teacher", *words)
    assert stopped.code == 75, stopped.err
    assert "continue with the same command and --resume" in stopped.err
    refused = refusal_of(run_teach(images, source, tmp_path / "teacher", *words))
    assert "the folder holds an unfinished run" in refused
    resumed = run_teach(images, source, tmp_path / "teacher", *words, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"teaching: going on after step {step}" in resumed.err
    for name in ("model.safetensors", "config.json", "seen_images.csv"):
        assert (whole / name).read_bytes() == (tmp_path / "teacher" / name).read_bytes(), name
    one, other = (read_json(folder / "metrics.json") for folder in (whole, tmp_path / "teacher"))
    assert all(one[name] == other[name] for name in ("before", "after", "num_steps", "num_passes"))
    assert not (tmp_path / "teacher" / "checkpoints").exists()


@pytest.fixture(scope="module")
def unsaved(images: Path, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Failed after the last epoch, before anything was saved; to be copied."""
    folder = tmp_path_factory.mktemp("unsaved") / "teacher"
    with patch.object(teach, "save_outputs", lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        run_teach(images, source, folder, "--epochs", 1)
    return folder


def test_what_failed_after_the_last_epoch_is_not_trained_again(
    images: Path, source: str, teacher_of_all: Path, unsaved: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(unsaved, tmp_path / "teacher"))
    with patch.object(TeachingStep, "__call__", lambda *_: pytest.fail("a step")):
        taught(images, source, copy, "--epochs", 1, "--resume")
    assert (copy / "model.safetensors").read_bytes() == (teacher_of_all / "model.safetensors").read_bytes()


@pytest.mark.parametrize("changed", ["flip", "source"])
def test_other_settings_or_another_source_do_not_go_on_from_a_checkpoint(
    changed: str, images: Path, source: str, unsaved: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(unsaved, tmp_path / "teacher"))
    other = save_teacher(tmp_path / "other", "resnet10t", num_classes=2)
    words = ("--flip", 0) if changed == "flip" else ("--from", other)
    line = refusal_of(run_teach(images, source, copy, "--epochs", 1, *words, "--resume"))
    assert f"the checkpoint was saved with other values of {changed}" in line


def test_the_same_command_gives_the_same_weights_bit_for_bit(
    images: Path, source: str, split: Path, teacher: Path, tmp_path: Path
) -> None:
    again = taught(images, source, tmp_path / "teacher", "--split", split)
    assert (again / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert rows(again / "seen_images.csv") == rows(teacher / "seen_images.csv")


def test_labels_change_the_neighbor_accuracy_alone(
    images: Path, source: str, teacher_of_all: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for file in images.rglob("*.png"):
        shutil.copy(file, tmp_path / "flat" / f"{file.parent.name}-{file.name}")  # the same order
    unlabelled = taught(tmp_path / "flat", source, tmp_path / "teacher", "--epochs", 1)
    assert (unlabelled / "model.safetensors").read_bytes() == (teacher_of_all / "model.safetensors").read_bytes()
    one, other = (read_json(folder / "metrics.json") for folder in (teacher_of_all, unlabelled))
    assert one["after"] == other["after"] | {"neighbor_accuracy": one["after"]["neighbor_accuracy"]}
    assert (one["num_labelled"], other["num_labelled"]) == (48, 0)


def test_a_csv_without_labels_is_enough(images: Path, source: str, tmp_path: Path) -> None:
    files = sorted(images.rglob("*.png"))
    text = "image_path,patient_id\n" + "".join(f"{file},P{number // 4}\n" for number, file in enumerate(files))
    (tmp_path / "images.csv").write_text(text)
    folder = taught(tmp_path / "images.csv", source, tmp_path / "teacher", "--epochs", 1)
    metrics = read_json(folder / "metrics.json")
    assert metrics["num_labelled"] == 0
    assert metrics["num_held_out"] == 4, "images of one patient are on one side"


def test_train_and_evaluate_warn_of_test_images_that_the_teacher_has_seen(
    images: Path, teacher_of_all: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(teacher_of_all, tmp_path / "teacher"))
    words = ("train", "--data", images, "--teacher", f"local-dir:{moved}", *SMALL, "--image-size", 64)
    answer = command(*words, "--method", "selection", "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    warning = "10 of the 10 test images were among the images that the teacher learned from, without labels"
    assert answer.err.count(f"warning: {warning}") == 1
    assert answer.out.count(f"note: {warning}") == 1
    assert warning in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(moved)  # as on another machine
    evaluated = command("evaluate", tmp_path / "run")
    assert evaluated.out.count(f"warning: {warning}") == 1
    evaluation = twinbud.evaluate(tmp_path / "run", show_progress=False)
    assert evaluation.warnings[0].startswith(warning)


def test_no_warning_where_the_teacher_saw_the_training_part_alone(
    images: Path, split: Path, teacher: Path, tmp_path: Path
) -> None:
    words = ("train", "--data", images, "--teacher", f"local-dir:{teacher}", *SMALL, "--image-size", 64)
    answer = command(*words, "--method", "selection", "--split", split, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "learned from" not in answer.err + answer.out
    assert twinbud.evaluate(tmp_path / "run", show_progress=False).warnings == ()


def test_a_random_student_of_the_same_architecture_has_seen_nothing(
    images: Path, teacher_of_all: Path, tmp_path: Path
) -> None:
    words = ("--method", "timm", "--image-size", 64)
    run = trained(images, f"local-dir:{teacher_of_all}", tmp_path / "run", *words)
    assert not (run / "seen_images.csv").exists()


def test_selected_weights_remember_what_their_teacher_has_seen(
    images: Path, teacher_of_all: Path, shared_teacher: str, tmp_path: Path
) -> None:
    selected = tmp_path / "selected"
    words = ("select", "--output", selected, "--teacher")
    assert command(*words, f"local-dir:{teacher_of_all}").code == 0
    train = ("train", "--data", images, "--selected", selected, *SMALL, "--image-size", 64, "--method", "selection")
    answer = command(*train, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "warning: 10 of the 10 test images were among the images" in answer.err
    assert command(*words, shared_teacher, "--force").code == 0
    assert not (selected / "seen_images.csv").exists()


def test_what_is_taught_by_a_taught_teacher_has_seen_the_images_of_both(teacher: Path, tmp_path: Path) -> None:
    others = save_images(tmp_path / "others", {"dark": 8, "light": 8}, seed=1)
    folder = taught(others, f"local-dir:{teacher}", tmp_path / "teacher", "--epochs", 1)
    seen = {row["pixels_sha256"] for row in rows(folder / "seen_images.csv")}
    assert len(seen) == 31 + 16
    assert {row["pixels_sha256"] for row in rows(teacher / "seen_images.csv")} < seen


def refusal_of(answer: Answer) -> str:
    """As ``refusal``, after the notes that may stand before it."""
    return refusal(Answer(answer.code, answer.out, answer.err.splitlines()[-1] + "\n"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--architecture", "convnext_tinny"),
            "timm has no architecture 'convnext_tinny'. Did you mean 'convnext_tiny'?",
        ),
        (("--architecture", "convnext_tiny.fb_in22k"), "names pretrained weights, but the network starts at random"),
        (("--architecture", "crossvit_tiny_240"), "--architecture: crossvit_tiny_240 has no spatial features"),
        (("--architecture", "vit_tiny_patch16_224", "--image-size", 72), "multiple of the patch size, 16 pixels"),
        (("--image-size", 16), "ConvNeXt cannot process images of 16 pixels. Use --image-size 32 or more"),
        (("--image-size", 32), "has a single position, and no map, for an image of 32 pixels. Use a larger"),
        (("--from", "dinov2-smal"), "--from: 'dinov2-smal' is not dinov2-small"),
        (("--epochs", 0), "--epochs: '0' would leave the network untrained. Give at least 1"),
        (("--learning-rate", -1), "--learning-rate: '-1' is not a number of at least 0"),
        (("--data", "nowhere"), "--data nowhere: there is no such file or folder"),
        (("--split", "nowhere.csv"), "nowhere.csv: the CSV cannot be read"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_written(
    words: tuple[object, ...], line: str, images: Path, source: str, tmp_path: Path
) -> None:
    assert line in refusal_of(run_teach(images, source, tmp_path / "teacher", *words))
    assert not (tmp_path / "teacher").exists()


def test_too_few_images_or_a_single_patient_are_refused(source: str, tmp_path: Path) -> None:
    few = save_images(tmp_path / "few", {"dark": 5, "light": 4})
    assert "9 images to train on; teaching needs at least 10" in refusal_of(run_teach(few, source, tmp_path / "a"))
    files = sorted(save_images(tmp_path / "one", {"dark": 6, "light": 6}).rglob("*.png"))
    (tmp_path / "one.csv").write_text("image_path,patient_id\n" + "".join(f"{file},P1\n" for file in files))
    line = refusal_of(run_teach(tmp_path / "one.csv", source, tmp_path / "a"))
    assert "the 12 images are all of one patient, or show one picture: teaching needs a second patient (or" in line


def test_the_weights_of_the_source_are_never_replaced(images: Path, teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    before = (copy / "model.safetensors").read_bytes()
    for spelling in (f"local-dir:{copy}", f"{LEARNER}@{copy / 'model.safetensors'}"):
        line = refusal_of(run_teach(images, spelling, copy, "--force"))
        problem = f"'{copy}' would overwrite the source network (--from {spelling})"
        assert line == f"--output: {problem}. Choose another --output."
    assert (copy / "model.safetensors").read_bytes() == before


def test_an_output_that_exists_is_replaced_with_force_alone_and_only_if_it_is_a_teacher(
    images: Path, source: str, teacher: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    assert "the folder is not empty" in refusal_of(run_teach(images, source, copy))
    taught(images, source, copy, "--epochs", 1, "--force")
    (copy / "notes.txt").write_text("mine")
    line = refusal_of(run_teach(images, source, copy, "--force"))
    assert "the folder holds files that are not of a teacher (notes.txt)" in line
    run = ("train", "--data", images, "--teacher", source, *SMALL, "--output", teacher, "--force")
    assert "the folder holds files that are not of a run" in refusal_of(command(*run))


def test_a_network_too_large_to_train_is_refused(
    images: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**10)
    line = refusal_of(run_teach(images, source, tmp_path / "teacher", "--architecture", "convnext_atto"))
    assert line.startswith("--architecture: training 3 million parameters needs more than ")


def test_a_broken_image_is_refused_or_left_out_and_listed(images: Path, source: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(images, tmp_path / "images"))
    (copy / "dark" / "000.png").write_bytes(b"broken")
    assert "dark/000.png" in refusal_of(run_teach(copy, source, tmp_path / "teacher"))
    folder = taught(copy, source, tmp_path / "teacher", "--skip-broken", "--epochs", 1)
    assert [row["path"] for row in rows(folder / "left_out.csv")] == ["dark/000.png"]


def test_the_keywords_of_teach_are_its_settings() -> None:
    hints = hints_of(DataConfig) | hints_of(TrainingConfig)
    expected = {name: hints[name] for name in TEACHING_SETTINGS if name != "data"}
    found = hints_of(TeachSettings)
    assert found.keys() == expected.keys()
    for name, hint in expected.items():
        accepted, wanted = (set(get_args(one) or (one,)) for one in (found[name], hint))
        if name != "drop_path":  # whose number has a range in the schema
            assert accepted == wanted | ({str} if Path in wanted else set()), name


def test_an_unknown_setting_is_refused(tmp_path: Path, images: Path) -> None:
    with pytest.raises(
        twinbud.TwinbudError, match=r"there is no setting 'fraction'\. All settings: twinbud teach --help"
    ):
        twinbud.teach(
            architecture=LEARNER,
            source="dinov2-small",
            data=images,
            output=tmp_path / "t",
            fraction=1,  # type: ignore[call-arg]
        )
