"""Which task labels are for: order, names, and the question that numbers raise."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.labelled import save_grades
from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.source import read_index

NUMBERS = ("0", "1", "2", "10", "3")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_grades(tmp_path_factory.mktemp("numbers") / "set", NUMBERS, num_patients=2))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_grades(tmp_path_factory.mktemp("words") / "set", ("mild", "none", "severe"), num_patients=2))


def test_five_numbers_as_labels_ask_which_task_is_meant(numbers: str) -> None:
    with pytest.raises(TwinbudError) as caught:
        read_index(DataConfig(data=numbers))
    assert "the 5 labels are numbers (0, 1, 2 and 2 more): they may be grades or class names" in str(caught.value)
    assert "--task ordinal for grades, or --task single" in str(caught.value)


def test_an_answer_to_the_question_is_enough(numbers: str) -> None:
    assert read_index(DataConfig(data=numbers, task="single")).task == "single"
    index = read_index(DataConfig(data=numbers, task="ordinal"))
    assert (index.task, index.classes) == ("ordinal", ("0", "1", "2", "3", "10"))


def test_images_that_are_only_evaluated_raise_no_question(numbers: str) -> None:
    assert len(read_index(DataConfig(data=numbers), to_train=False).classes) == 5


def test_four_numbers_are_classes_as_before(tmp_path: Path) -> None:
    path = save_grades(tmp_path / "set", NUMBERS[:4], num_patients=2)
    assert read_index(DataConfig(data=str(path))).task == "single"


def test_negative_and_fractional_grades_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    path = save_grades(tmp_path / "set", ("0.5", "-1", "2"), num_patients=2)
    assert read_index(DataConfig(data=str(path), task="ordinal")).classes == ("-1", "0.5", "2")


def test_grades_without_an_order_are_refused(words: str) -> None:
    with pytest.raises(TwinbudError, match="'mild', 'none', 'severe' are not numbers") as caught:
        read_index(DataConfig(data=words, task="ordinal"))
    assert "--classes mild,none,severe" in str(caught.value)


def test_the_order_is_the_one_given(words: str) -> None:
    index = read_index(DataConfig(data=words, task="ordinal", classes="none, mild,severe"))
    assert index.classes == ("none", "mild", "severe")


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ("none,mild", "images of class 'severe' exist"),
        ("none,mild,severe,worst", "no image is of class 'worst'"),
        ("none,mild,severe,mild", "a class is named twice: 'mild'"),
    ],
)
def test_classes_that_are_not_those_of_the_images_are_refused(classes: str, problem: str, words: str) -> None:
    with pytest.raises(TwinbudError, match=problem):
        read_index(DataConfig(data=words, classes=classes))


def test_a_class_with_a_comma_cannot_be_named(tmp_path: Path) -> None:
    data = str(save_grades(tmp_path / "set", ("malignant", "normal, benign"), num_patients=2))
    problem = "'normal, benign' has a comma, so that --classes cannot name it. Rename the class"
    with pytest.raises(TwinbudError, match=f"{problem}, or leave out --classes"):
        read_index(DataConfig(data=data, classes="normal, benign,malignant"))
    with pytest.raises(TwinbudError, match=f"--task ordinal: {problem}"):
        read_index(DataConfig(data=data, task="ordinal"))
