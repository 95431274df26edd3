"""A summary is saved completely and read by later versions; a damaged one is refused in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinbud.core.errors import TwinbudError
from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.report import model
from twinbud.report.model import Arm, Example, Mistake, RunSummary, Width, encode_picture, read_summary, write_summary
from twinbud.report.page import write_report
from twinbud.training.checkpoint import EpochRecord


def make_summary() -> RunSummary:
    random = np.random.default_rng(0)
    logits = random.normal(size=(12, 2)).astype(np.float32)
    paths, classes = tuple(f"{i}.png" for i in range(12)), ("a\r\nb", "é|<script>")
    predictions = Predictions.from_logits(logits, paths=paths, classes=classes, labels=np.arange(12) % 2)
    record = EpochRecord(epoch=1, step=3, learning_rate=0.1, loss=1 / 3, seconds=0.1)
    picture = encode_picture(random.integers(256, size=(9, 7, 3), dtype=np.uint8))
    return RunSummary(
        title="title",
        facts={"Teacher": "T"},
        metrics=evaluate(predictions, num_bootstrap=20),
        num_train=7,
        histories={"": (record,)},
        comparison=(Arm(name="one", accuracy=0.1 + 0.2), Arm(name="two", accuracy=1.0, accuracy_interval=(0.5, 1.0))),
        mistakes=(Mistake(picture=picture, path="x", label="a", prediction="b", confidence=0.9),),
        examples=(Example(picture=picture, label="a"),),
        selection=(Width(name="width", teacher=4, student=2, overlap=None),),
        notes=("note",),
        settings={"alpha": 0.6, "split": None, "flag": True},
        environment={"packages": {"torch": "2"}},
    )


def test_a_summary_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    for summary in (make_summary(), RunSummary(title="bare", metrics=make_summary().metrics)):
        write_summary(tmp_path / "summary.json", summary)
        assert read_summary(tmp_path / "summary.json") == summary


def test_the_page_of_a_summary_that_was_read_is_the_same_page(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", make_summary())
    write_report(tmp_path / "one.html", make_summary())
    write_report(tmp_path / "other.html", read_summary(tmp_path / "summary.json"))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_summary_of_an_earlier_format_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_1_to_2(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "title": content["heading"]}

    content = make_summary().to_json()
    content["heading"] = content.pop("title")
    (tmp_path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(model, "FORMAT_VERSION", 2)
    monkeypatch.setattr(model, "_UPGRADES", {1: from_1_to_2})
    assert read_summary(tmp_path / "summary.json") == make_summary()


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "", "cannot be read"),
        (lambda text: "[]", "it has no format_version"),
        (lambda text: "{}", "it has no format_version"),
        (lambda text: "[" * 100_000, "nested too deeply"),
        (changed(format_version=99), "its format_version is 99 and this version of twinbud reads up to 1"),
        (changed(format_version="1"), "it has no format_version"),
        (changed(metrics={}), r"summary\.metrics: missing"),
        (changed(title=3), r"summary\.title: '3' is not text"),
        (changed(mistakes=[{"picture": "%%"}]), r"summary\.mistakes\[0\]\.picture: '%%' is not Base64 text"),
        (changed(histories={"": [{"epoch": 1.5}]}), r"summary\.histories\.\[0\]\.epoch: '1\.5' is not an integer"),
    ],
)
def test_a_damaged_summary_is_refused_in_one_line(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(damage(json.dumps(make_summary().to_json())), encoding="utf-8")
    with pytest.raises(TwinbudError, match=message) as raised:
        read_summary(path)
    assert str(raised.value).startswith(f"{path}: the summary of the run cannot be read")
    assert "\n" not in str(raised.value)


def test_a_summary_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, make_summary())
    path.write_text(path.read_text(encoding="utf-8").replace('"title": "title"', '"title": "other"'), encoding="utf-8")
    with pytest.raises(TwinbudError, match=r"cannot be read \(the content was changed after it was written\)"):
        read_summary(path)


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"summary\.json: the file is missing"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize("shape", [(400, 200), (400, 200, 1), (400, 200, 3)])
def test_a_picture_is_a_png_of_at_most_320_pixels_a_side(shape: tuple[int, ...]) -> None:
    pixels = np.full(shape, 99, dtype=np.uint8)
    picture = encode_picture(pixels)
    assert picture == encode_picture(pixels)
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("PNG", (160, 320))
        assert set(np.asarray(image).ravel()) == {99}
