"""``twinbud export``: one file that answers as ``twinbud predict`` does, or a line that says why there is none."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import ExifTags, Image

import twinbud
from helpers.command import refusal
from helpers.command import twinbud as command
from helpers.runs import rows
from twinbud.core.errors import TwinbudError
from twinbud.exporting import gate, latency
from twinbud.runs import export as exporting
from twinbud.runs.run_dir import MARKER
from twinbud.trust.conformal import PredictionSets
from twinbud.trust.novelty import Novelty
from twinbud.trust.record import Trust, TrustedModel, hash_weights, new_trust

DEPLOYING = Path(__file__).parents[2] / "docs" / "deploying.md"
WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "twinbud", "onnx", "onnxscript", "pandas"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace, which takes a tenth of the time of the other exporter, and measure times as briefly as possible."""
    monkeypatch.setattr(exporting, "EXPORTERS", ("legacy",))
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


def export(model: Path, output: Path, *words: object) -> Any:
    return command("export", model, "--output", output, "--no-compiled", *words)


@pytest.fixture(scope="module")
def exported(shared_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of ``shared_run``; to be read only."""
    file = tmp_path_factory.mktemp("exported") / "first.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "EXPORTERS", ("legacy",))
        patch.setattr(latency, "_SECONDS", 0.0)
        answer = export(shared_run, file)
    assert answer.code == 0, answer.err
    assert "largest difference of a logit" in answer.out
    assert "test images of the run" in answer.out
    assert f"written: {file}" in answer.out
    assert [row for row in ("onnx float32", "torch", "1 thread", "accuracy") if row not in answer.out] == []
    return file


def metadata(file: Path) -> dict[str, str]:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map


def test_the_program_of_the_documents_answers_as_predict_does_without_torch(
    exported: Path, shared_run: Path, tmp_path: Path
) -> None:
    images = [
        Image.fromarray(pixels_of(shape, seed)) for seed, shape in enumerate([(28, 28), (61, 90, 3), (200, 31, 3)])
    ]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    paths += [tmp_path / name for name in ("turned.jpg", "clear.png", "gray.png", "palette.png")]
    images[1].save(paths[3], exif=exif)
    Image.fromarray(pixels_of((40, 50, 4), 3)).save(paths[4])
    Image.fromarray(pixels_of((40, 50, 2), 4), "LA").save(paths[5])
    images[1].quantize(16).save(paths[6], transparency=3)
    (program,) = re.findall(
        r"^```python\n(import json\n.*?)^```", DEPLOYING.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(program.splitlines()) <= 30
    assert '"first.onnx"' in program
    code = WITHOUT_TORCH + program.replace('"first.onnx"', repr(str(exported)))
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = list(csv.DictReader(io.StringIO(done.stdout)))
    expected = twinbud.predict(shared_run, paths, show_progress=False)
    assert [row["path"] for row in answers] == list(expected.paths)
    assert [row["prediction"] for row in answers] == [expected.classes[index] for index in expected.predicted]
    found = np.array([[float(row[f"probability_{name}"]) for name in expected.classes] for row in answers])
    assert np.abs(found - expected.probabilities).max() < 1e-5


def pixels_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_metadata_name_the_classes_the_task_and_the_weights(exported: Path) -> None:
    said = metadata(exported)
    assert json.loads(said["label_names"]) == ["dark", "grey", "light"]
    assert (said["task"], said["temperature"], said["image_size"]) == ("single", "1.0", "28")
    assert (said["opset"], said["precision"]) == ("23", "float32")
    assert set(json.loads(said["model_sha256"])) == {"config.json", "model.safetensors"}
    assert said["twinbud_version"]


def test_what_a_calibrated_run_knows_is_in_the_file(shared_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "calibrated"
    shutil.copytree(shared_run, run)
    trust = Trust(
        weights_sha256=hash_weights(run / "model"),
        source="val",
        num_images=9,
        num_patients=9,
        temperature=2.5,
        sets=PredictionSets(coverage=0.8, per_class=False, thresholds=dict.fromkeys(("dark", "grey", "light"), 0.3)),
        points={"dark": {}},
        novelty_threshold=1.0,
        shifts={},
    )
    nothing = Novelty(means_CD=np.zeros((3, 16), np.float32), whitening_DD=np.eye(16, dtype=np.float32))
    with new_trust(run / "model", TrustedModel(trust=trust, novelty=nothing)):
        pass
    file = tmp_path / "file.onnx"
    answer = export(run, file)
    assert answer.code == 0, answer.err
    assert "coverage" in answer.out
    said = metadata(file)
    assert (said["temperature"], json.loads(said["operating_points"])) == ("2.5", {"dark": {}})
    sets = {"coverage": 0.8, "per_class": False, "thresholds": {"dark": 0.3, "grey": 0.3, "light": 0.3}}
    assert json.loads(said["prediction_sets"]) == sets
    assert "trust.json" in json.loads(said["model_sha256"])
    image = tmp_path / "image.png"
    Image.fromarray(pixels_of((40, 60, 3), 0)).save(image)
    expected = twinbud.predict(run, image, show_progress=False).probabilities
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(["probabilities"], {"image": pixels_of((40, 60, 3), 0)[None]})[0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_model_folder_is_checked_on_generated_images_and_the_command_says_so(
    shared_run: Path, tmp_path: Path
) -> None:
    answer = export(shared_run / "model", tmp_path / "model.onnx")
    assert answer.code == 0, answer.err
    assert "Compared with torch on generated images" in answer.out


def test_the_file_of_the_python_api_is_beside_the_run_and_its_rows_have_the_accuracy(
    shared_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(shared_run, run)
    export = twinbud.export(run, measure_compiled=False, show_progress=False)
    assert export.file == tmp_path / "copy.onnx"
    assert export.gate.num_labelled == twinbud.evaluate(run, show_progress=False).metrics.num_test
    assert [row.name for row in export.rows] == ["onnx float32", "torch"]
    assert export.rows[0].accuracy == export.rows[1].accuracy
    assert export.rows[0].num_bytes == export.file.stat().st_size
    assert all(row.latency_seconds[1] > 0 for row in export.rows)


def test_int8_is_written_where_it_is_faster_and_as_accurate_and_else_one_line_says_why(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.onnx"
    for name in gate.LARGEST_LOSS:
        monkeypatch.setitem(gate.LARGEST_LOSS, name, 1.0)
    monkeypatch.setattr(exporting, "speedup", lambda *_: 0.8)
    line = refusal(export(shared_run, file, "--int8"))
    assert "not faster on this machine: one image takes 1.25 times as long as in float32" in line
    assert not file.exists()
    monkeypatch.setattr(exporting, "speedup", lambda *_: 1.5)
    answer = export(shared_run, file, "--int8")
    assert answer.code == 0, answer.err
    assert "onnx int8" in answer.out
    assert metadata(file)["precision"] == "int8"
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_model(str(file)).graph.node}


def test_int8_needs_the_images_of_a_run(shared_run: Path, tmp_path: Path) -> None:
    line = refusal(export(shared_run / "model", tmp_path / "model.onnx", "--int8"))
    assert line == "export --int8: int8 needs training images, and a model folder has none. Give the run."


def test_the_other_exporter_is_tried_if_the_file_of_the_first_one_does_not_pass(
    shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = exporting._Maker.network
    wrong: list[str] = []

    def first_one_fails(maker: Any, exporter: Any) -> Any:
        model = network(maker, exporter)
        if not wrong:
            wrong.append(exporter)
            del model.graph.output[1]
        return model

    monkeypatch.setattr(exporting, "EXPORTERS", ("legacy", "legacy"))
    monkeypatch.setattr(exporting._Maker, "network", first_one_fails)
    export = twinbud.export(shared_run, output=tmp_path / "file.onnx", measure_compiled=False, show_progress=False)
    assert wrong
    assert export.file.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tolerance", "1e-12"], "differ from torch's by up to"),
        (["--tolerance", "0"], "--tolerance: '0' is not above 0"),
        (["--tolerance", "loose"], "'loose'"),
        (["--tolerance", "inf"], "--tolerance: 'inf' is not a number"),
        (["--tolerance", "nan"], "--tolerance: 'nan' is not a number"),
        (["--tolerance", "1e999"], "--tolerance: '1e999' is not a number"),
        (["--opset", "99"], "--opset: '99' is not an opset from 18 to 23"),
        (["--format", "tflite"], "--format: 'tflite' is not one of onnx"),
    ],
)
def test_a_wrong_option_is_named_and_no_file_is_left(
    words: list[str], said: str, shared_run: Path, tmp_path: Path
) -> None:
    assert said in refusal(export(shared_run, tmp_path / "file.onnx", *words))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(shared_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.onnx"
    file.write_text("mine")
    assert "the file exists already" in refusal(export(shared_run, file))
    refusal(export(shared_run, file, "--force", "--tolerance", "1e-12"))
    assert file.read_text() == "mine"
    assert export(shared_run, file, "--force").code == 0
    assert metadata(file)


def test_a_run_that_has_not_finished_and_a_folder_that_is_no_model_are_refused(
    shared_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shared_run, run)
    (run / MARKER).write_text("")
    assert "the run has not finished" in refusal(export(run, tmp_path / "file.onnx"))
    (tmp_path / "empty").mkdir()
    assert "no model folder: config.json is missing" in refusal(export(tmp_path / "empty", tmp_path / "file.onnx"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, shared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal(export(shared_run, tmp_path / "file.onnx"))
    assert line == f'export: the package {package} is not installed. Run: pip install "twinbud[export]".'


def change(image: Path) -> None:
    Image.new("L", (32, 32), 7).save(image)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, r"test images of the run are missing: .*\. Restore them, or export RUN/model"),
        (change, r"the test image has changed since training\. Restore it, or export RUN/model"),
        (lambda path: path.write_bytes(b""), r"the file is empty \(0 bytes\)\. Repair or remove the file\.$"),
    ],
)
def test_test_images_that_are_missing_or_changed_are_named(
    damage: Callable[[Path], None], said: str, shared_run: Path, shared_images: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "images"
    shutil.copytree(shared_run, run)
    shutil.copytree(shared_images, data)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(shared_images), str(data)), encoding="utf-8")
    damage(data / next(row["image_path"] for row in rows(run / "split.csv") if row["split"] == "test"))
    with pytest.raises(TwinbudError, match=said):
        twinbud.export(run, output=tmp_path / "file.onnx", measure_compiled=False, show_progress=False)
    assert not (tmp_path / "file.onnx").exists()
