"""The CSV of predictions, and that no impossible prediction can exist."""

import csv
import stat

import numpy as np
import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.files import write_text
from twinbud.evaluation.predictions import Predictions, write_predictions

PROBABILITIES = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.5, 0.5], [0.05, 0.95]])


def make(**changes):
    values = {
        "paths": tuple(f"{i}.png" for i in range(5)),
        "labels": np.array([1, 1, 1, 0, 0]),
        "probabilities": PROBABILITIES,
        "classes": ("no lesion", 'a "mass", large'),
    }
    return Predictions(**{**values, **changes})


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_prediction_is_the_most_probable_class_and_the_first_of_equals():
    assert make().predicted.tolist() == [0, 1, 0, 0, 1]
    assert make().confidence.tolist() == [0.6, 0.9, 0.8, 0.5, 0.95]


def test_mistakes_come_most_confident_first_and_never_include_a_right_answer():
    assert make().most_confident_mistakes(10).tolist() == [4, 2, 0]
    assert make().most_confident_mistakes(1).tolist() == [4]
    with pytest.raises(TwinbudError, match="no labels"):
        make(labels=None).most_confident_mistakes(1)


def test_csv_gives_back_paths_classes_and_probabilities(tmp_path):
    thirds = np.array([[1 / 3, 2 / 3]] * 5)
    write_predictions(tmp_path / "predictions.csv", make(probabilities=thirds))
    rows = read(tmp_path / "predictions.csv")
    columns = ["path", "label", "prediction", "probability_no lesion", 'probability_a "mass", large']
    assert list(rows[0]) == columns
    assert rows[0]["label"] == rows[0]["prediction"] == 'a "mass", large'
    written = np.array([[float(row[column]) for column in columns[3:]] for row in rows])
    np.testing.assert_allclose(written, thirds, rtol=1e-8)


def test_predictions_can_be_compared_and_kept_in_a_set():
    first, second = (
        Predictions(paths=("a", "b"), labels=None, probabilities=np.full((2, 2), 0.5), classes=("x", "y"))
        for _ in range(2)
    )
    assert first == first
    assert first != second
    assert {first, first} == {first}


def test_unknown_labels_are_blank(tmp_path):
    write_predictions(tmp_path / "predictions.csv", make(labels=None))
    assert {row["label"] for row in read(tmp_path / "predictions.csv")} == {""}


def test_probabilities_are_the_softmax_of_the_logits_in_float64():
    logits = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32) * 20
    predictions = Predictions.from_logits(logits, paths=make().paths, classes=make().classes)
    wide = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    np.testing.assert_allclose(predictions.probabilities, wide / wide.sum(1, keepdims=True), rtol=1e-15)
    assert predictions.logits is logits


def test_logits_are_written_on_request_alone_and_come_back_exactly(tmp_path):
    logits = (np.random.default_rng(0).normal(size=(5, 2)) * 1e3).astype(np.float32)
    predictions = Predictions.from_logits(logits, paths=make().paths, classes=make().classes, labels=make().labels)
    write_predictions(tmp_path / "plain.csv", predictions)
    write_predictions(tmp_path / "logits.csv", predictions, logits=True)
    plain, rows = read(tmp_path / "plain.csv"), read(tmp_path / "logits.csv")
    assert not [column for column in plain[0] if column.startswith("logit_")]
    assert [{column: row[column] for column in plain[0]} for row in rows] == plain
    written = np.array([[row[f"logit_{name}"] for name in make().classes] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(written, logits)
    with pytest.raises(TwinbudError, match="no logits"):
        write_predictions(tmp_path / "none.csv", make(), logits=True)


ODD_NAMES = (
    "label", "prediction", "path", "probability_label", "logit_label", "a,b", 'a"b', " a", "a ", "a\rb", "a\nb",
    "a\r\nb", "é", "e\u0301", "", "1", "1.0", "'", ";", "\t",
)  # fmt: skip


def test_odd_class_names_and_paths_come_back_as_they_were(tmp_path):
    logits = np.eye(len(ODD_NAMES), dtype=np.float32)
    paths = tuple(f"{name}.png" for name in ODD_NAMES)
    predictions = Predictions.from_logits(logits, paths=paths, classes=ODD_NAMES, labels=np.arange(len(ODD_NAMES)))
    write_predictions(tmp_path / "predictions.csv", predictions, logits=True)
    rows = read(tmp_path / "predictions.csv")
    assert [row["path"] for row in rows] == list(paths)
    assert [row["label"] for row in rows] == [row["prediction"] for row in rows] == list(ODD_NAMES)
    for kind in ("probability", "logit"):
        assert {f"{kind}_{name}" for name in ODD_NAMES} <= rows[0].keys()
    assert all(row[f"logit_{row['label']}"] == "1" for row in rows)


def test_prediction_sets_of_any_class_names_differ_in_the_file(tmp_path):
    classes = ("a", "b", "a|b", "a\\", "c")
    sets = np.array([[bool(number >> place & 1) for place in range(5)] for number in range(32)])
    predictions = Predictions(
        paths=tuple(map(str, range(32))),
        labels=None,
        probabilities=np.full((32, 5), 0.2),
        classes=classes,
        sets=sets,
    )
    write_predictions(tmp_path / "p.csv", predictions)
    cells = [row["set"] for row in csv.DictReader((tmp_path / "p.csv").read_text().splitlines())]
    assert (cells[3], cells[4]) == ("a|b", "a\\|b")
    assert len(set(cells)) == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": np.full((5, 2), np.inf)}, r"0\.png: a probability is NaN or infinite"),
        ({"probabilities": np.full((5, 2), 0.6)}, "the probabilities sum to 1.2, not 1"),
        ({"probabilities": np.tile([1.5, -0.5], (5, 1))}, "a probability is -0.5, which is below 0"),
        ({"probabilities": np.zeros((4, 2))}, r"probabilities: the shape is \(4, 2\), not \(5, 2\)"),
        ({"logits": np.zeros((5, 3), dtype=np.float32)}, r"logits: the shape is \(5, 3\), not \(5, 2\)"),
        ({"logits": np.full((5, 2), np.nan, dtype=np.float32)}, r"0\.png: a logit is NaN or infinite"),
        ({"labels": np.array([0, 1, 2, 0, 0])}, r"2\.png: label 2 is outside 0\.\.1"),
        ({"labels": np.array([0.0, 1, 1, 0, 0])}, "integer class indices"),
        ({"labels": np.array([0])}, "labels: there are 1 for 5 images"),
        ({"patient_ids": ("x",)}, "patient_ids: there are 1 for 5 images"),
    ],
)
def test_impossible_predictions_are_refused(changes, message):
    with pytest.raises(TwinbudError, match=message):
        make(**changes)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_text(path, "old")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(TwinbudError, match="the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("")
    write_text(written, "é\n")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert written.read_bytes() == "é\n".encode()
