"""Several labels an image: what a CSV may say, what is refused, and how such a set is divided."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import save_images
from helpers.labelled import save_findings
from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.findings import Findings, are_combinations, parse_findings
from twinbud.data.folds import choose_test_part
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index
from twinbud.data.split import Split, make_split

COLUMNS = "left,right,rare"


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_findings(tmp_path_factory.mktemp("findings") / "columns"))


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_findings(tmp_path_factory.mktemp("findings") / "combined", combined=True))


NAMES = st.lists(st.text("abc -é", min_size=1).map(str.strip).filter(bool), unique=True, max_size=4)


@settings(max_examples=50, deadline=None)
@given(NAMES, st.integers(0, 4))
def test_the_text_of_findings_reads_back(names: list[str], num_present: int) -> None:
    findings = Findings(tuple(names[:num_present]), tuple(names[num_present:]))
    assert parse_findings(findings.text) == findings


def test_columns_say_what_is_there_absent_and_unknown(columns: str) -> None:
    index = read_index(DataConfig(data=columns, label_columns=COLUMNS))
    assert (index.task, index.classes) == ("multi-label", ("left", "right", "rare"))
    labels = {row.path: row.label for row in index.rows}
    assert all("right?" in labels[f"{number:03d}.png"] for number in (0, 7, 14))
    assert "rare" in labels["000.png"]
    assert "several labels an image" in index.notes[0]


def test_combinations_in_one_column_are_taken_for_several_labels_without_being_asked(combined: str) -> None:
    index = read_index(DataConfig(data=combined))
    assert (index.task, index.classes) == ("multi-label", ("left", "rare", "right"))
    assert any(row.shown == ("left", "right") for row in index.rows)
    assert any(row.label == "no finding" and row.shown == () for row in index.rows)


def test_a_bar_in_the_name_of_a_class_is_no_combination() -> None:
    assert not are_combinations(["benign|cyst", "malignant"])
    assert are_combinations(["benign|cyst", "benign", "cyst|malignant", "malignant"])


def test_the_order_of_the_labels_can_be_given(combined: str) -> None:
    assert read_index(DataConfig(data=combined, classes="rare,left,right")).classes == ("rare", "left", "right")


def test_one_class_an_image_is_not_several_labels(tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", {"a": 2, "b": 2})
    path = tmp_path / "images" / "labels.csv"
    path.write_text("image_path,label\na/000.png,a\na/001.png,a\nb/000.png,b\nb/001.png,b\n")
    with pytest.raises(TwinbudError, match="column 'label' holds one class a row") as caught:
        read_index(DataConfig(data=str(path), task="multi-label"))
    assert "--label-columns A,B, or --task single" in str(caught.value)
    with pytest.raises(TwinbudError, match="each image has one class: only a CSV can give several labels"):
        read_index(DataConfig(data=str(images), task="multi-label"))


@pytest.mark.parametrize(
    ("settings_", "problem"),
    [
        (
            {"label_columns": "left"},
            r"'left' is a single column. Name at least two \(A,B\), or give --label-column left",
        ),
        ({"label_columns": "left,left"}, "'left' is named twice. Name each column once"),
        ({"label_columns": "left,No Finding"}, "'No Finding' says that no label applies, and is none itself. Leave it"),
        ({"label_columns": "left,"}, "--label-columns left,: one name is empty"),
        ({"label_columns": "left,hernia"}, "--label-columns: 'hernia' is not a column of "),
        ({"label_columns": "left,patient_id"}, "'P0' is neither yes nor no"),
        ({"label_columns": "left,right", "task": "ordinal"}, "contradicts --task ordinal"),
    ],
    ids=str,
)
def test_label_columns_that_cannot_be_used_are_refused(settings_: dict[str, Any], problem: str, columns: str) -> None:
    with pytest.raises(TwinbudError, match=problem):
        read_index(DataConfig(data=columns, **settings_))


@pytest.mark.parametrize("label", ["mass|No finding", "mass|no finding?"])
def test_no_finding_beside_a_label_is_refused(label: str, tmp_path: Path) -> None:
    save_images(tmp_path, {"a": 4})
    path = tmp_path / "labels.csv"
    labels = (label, "mass", "mass|effusion", "effusion")
    path.write_text("image_path,label\n" + "".join(f"a/00{n}.png,{text}\n" for n, text in enumerate(labels)))
    with pytest.raises(TwinbudError, match=r"row 2: .* says 'no finding' and something else"):
        read_index(DataConfig(data=str(path), task="multi-label"))


def test_a_label_that_a_single_image_shows_cannot_be_trained(tmp_path: Path) -> None:
    save_images(tmp_path, {"a": 4})
    path = tmp_path / "labels.csv"
    rows = "".join(f"a/00{number}.png,{int(number == 0)},{int(number < 2)}\n" for number in range(4))
    path.write_text(f"image_path,mass,effusion\n{rows}")
    with pytest.raises(TwinbudError, match="'mass' has 1"):
        read_index(DataConfig(data=str(path), label_columns="mass,effusion"))


def divided(index: ImageIndex, **changes: Any) -> Split:
    digests = [row.path for row in index.rows]
    return make_split(index, digests, DataConfig(**changes), seed=0)


def test_no_patient_is_in_two_parts_and_each_label_is_in_both(columns: str) -> None:
    index = read_index(DataConfig(data=columns, label_columns=COLUMNS))
    split = divided(index)
    patients = [{index.rows[row].patient_id for row in part} for part in (split.train, split.test)]
    assert not patients[0] & patients[1]
    for part in (split.train, split.test):
        assert {name for row in part for name in index.rows[row].shown} == {"left", "right", "rare"}
    assert 0.1 < len(split.test) / len(index.rows) < 0.3


def test_the_split_depends_on_its_seed_alone(columns: str) -> None:
    index = read_index(DataConfig(data=columns, label_columns=COLUMNS))
    assert divided(index) == divided(index)
    assert divided(index).test != divided(index, split_seed=1).test


def test_labelled_parts_are_nested_and_show_each_label(columns: str) -> None:
    index = read_index(DataConfig(data=columns, label_columns=COLUMNS))
    parts = [set(divided(index, fraction=fraction).labelled) for fraction in (0.02, 0.1, 0.3, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(parts))
    assert {name for row in parts[0] for name in index.rows[row].shown} == {"left", "right", "rare"}
    assert len(parts[0]) <= 3


def test_iterative_stratification_keeps_the_share_of_every_label() -> None:
    random = np.random.default_rng(0)
    members = {name: random.random(400) < share for name, share in (("a", 0.4), ("b", 0.2), ("c", 0.05))}
    groups = np.arange(400) // 2
    in_test = choose_test_part(np.array([""] * 400), groups, 0, members=members)
    assert all(in_test[groups == group].mean() in (0, 1) for group in range(200))
    for of_label in members.values():
        assert of_label[in_test].sum() / of_label.sum() == pytest.approx(0.2, abs=0.06)
