"""The generated phantom set: reproducible, balanced, and free of shortcuts to the class."""

import csv
import multiprocessing
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twinbud.core.cache import cache_folder
from twinbud.core.errors import TwinbudError
from twinbud.core.rng import numpy_stream
from twinbud.data.phantom import CLASSES, phantom_folder, phantom_slice
from twinbud.data.phantom.anatomy import draw_anatomy
from twinbud.data.phantom.lesions import draw_lesion
from twinbud.data.phantom.scanner import draw_acquisition, head_coordinates

SMALL: dict[str, Any] = {"patients_per_class": 2, "slices_per_patient": 2, "size": 48}


def test_a_slice_is_a_pure_function_of_its_arguments():
    first = phantom_slice(3, 1, "glioma", seed=5, size=96)
    phantom_slice(4, 0, "pituitary", size=96)
    assert first.dtype == np.uint8
    assert first.shape == (96, 96)
    np.testing.assert_array_equal(first, phantom_slice(3, 1, "glioma", seed=5, size=96))


@pytest.mark.parametrize("change", [{"patient": 4}, {"slice_index": 1}, {"label": "glioma"}, {"seed": 1}])
def test_every_argument_changes_the_slice(change: dict[str, Any]):
    arguments: dict[str, Any] = {"patient": 3, "slice_index": 0, "label": "notumor", "seed": 0, "size": 96}
    changed = phantom_slice(**(arguments | change))
    assert (phantom_slice(**arguments) != changed).mean() > 0.001


def test_two_slices_of_a_patient_share_a_head_and_two_patients_do_not():
    heads = [draw_anatomy(numpy_stream("phantom", 0, patient, "anatomy")) for patient in (0, 0, 1)]
    assert heads[0].level == heads[1].level != heads[2].level
    np.testing.assert_array_equal(heads[0].fields["fold"], heads[1].fields["fold"])
    within, between = [], []
    for patient in range(24):
        first, second = _brain(patient, 0), _brain(patient, 1)
        within.append(np.corrcoef(first, second)[0, 1])
        between.append(np.corrcoef(first, _brain(patient + 24, 1))[0, 1])
    assert np.mean(within) > np.mean(between) + 0.1


def _brain(patient: int, slice_index: int) -> np.ndarray:
    """The center of a head, sampled in head coordinates so that the pose has no effect."""
    taken = draw_acquisition(numpy_stream("phantom", 0, patient, "slice", slice_index))
    x, y = head_coordinates(taken, 112)
    pixels = phantom_slice(patient, slice_index, "notumor", size=112).astype(float)
    grid = np.linspace(-0.6, 0.6, 24)
    return np.array([pixels.flat[np.argmin((x - u) ** 2 + (y - v) ** 2)] for u in grid for v in grid])


@pytest.mark.parametrize("label", ["glioma", "meningioma", "pituitary"])
def test_a_tumor_changes_its_own_surroundings_and_nothing_else(label: str):
    changes_near = []
    for patient in range(8):
        stream = numpy_stream("phantom", 0, patient, "slice", 0)
        taken = draw_acquisition(stream)
        anatomy = draw_anatomy(numpy_stream("phantom", 0, patient, "anatomy"))
        lesion = draw_lesion(label, anatomy, numpy_stream("phantom", 0, patient, "lesion", label))
        x, y = head_coordinates(taken, 128)
        distance = np.hypot(x - lesion.x, y - lesion.y)
        healthy = phantom_slice(patient, 0, "notumor", size=128).astype(float)
        change = np.abs(phantom_slice(patient, 0, label, size=128) - healthy)
        changes_near.append(change[distance < 0.8 * lesion.radius].mean())
        # Only the faint ghost of a tumor reaches farther than mass effect, edema and dural tail.
        assert change[distance > 3 * lesion.radius + 0.1].mean() < 0.3
    assert np.mean(changes_near) > 10
    assert min(changes_near) > 2


def test_no_global_statistic_gives_the_class_away():
    """Logistic regression on intensity, spread, percentiles and areas stays near chance (0.25)."""
    statistics, labels = [], []
    for patient in range(320):
        label = CLASSES[patient % len(CLASSES)]
        pixels = phantom_slice(patient, 0, label, size=112).astype(float)
        percentiles = np.percentile(pixels, [1, 5, 10, 25, 50, 75, 90, 95, 99])
        areas = [(pixels > 40).mean(), (pixels > pixels.mean()).mean()]
        roughness = np.abs(np.diff(pixels, axis=0)).mean()
        statistics.append([pixels.mean(), pixels.std(), *percentiles, *areas, roughness])
        labels.append(label)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    assert cross_val_score(model, np.array(statistics), np.array(labels), cv=5).mean() < 0.45


def test_labels_csv_names_every_file_and_the_classes_are_balanced(tmp_path: Path):
    folder = phantom_folder(root=tmp_path / "set", **SMALL)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_path", "label", "patient_id"]
    assert {row["image_path"] for row in rows} == {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    assert all(row["image_path"].split("/")[0] == row["label"] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, 4)
    labels_of: dict[str, set[str]] = {}
    for row in rows:
        labels_of.setdefault(row["patient_id"], set()).add(row["label"])
    assert all(len(labels) == 1 for labels in labels_of.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_files_hold_the_slices_and_a_smaller_set_is_a_subset(tmp_path: Path):
    large = phantom_folder(root=tmp_path / "large", **SMALL)
    small = phantom_folder(root=tmp_path / "small", **(SMALL | {"patients_per_class": 1}))
    paths = [path.relative_to(small) for path in small.rglob("*.png")]
    assert all((small / path).read_bytes() == (large / path).read_bytes() for path in paths)
    path = next((large / "glioma").glob("*_patient0004_slice1.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), phantom_slice(4, 1, "glioma", size=48))


def test_a_complete_set_is_reused_and_a_half_written_one_rebuilt(tmp_path: Path):
    folder = phantom_folder(root=tmp_path / "set", **SMALL)
    victim = next(folder.rglob("*.png"))
    before = victim.read_bytes(), victim.stat().st_mtime_ns
    phantom_folder(root=folder, **SMALL)
    assert victim.stat().st_mtime_ns == before[1]
    victim.unlink()
    phantom_folder(root=folder, **SMALL)
    assert victim.read_bytes() == before[0]
    (folder / "labels.csv").unlink()
    phantom_folder(root=folder, **SMALL)
    assert (folder / "labels.csv").is_file()
    phantom_folder(root=folder, **(SMALL | {"size": 40}))
    with Image.open(next(folder.rglob("*.png"))) as image:
        assert image.size == (40, 40)


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path):
    (tmp_path / "glioma").mkdir()
    (tmp_path / "glioma" / "real.jpg").write_bytes(b"precious")
    with pytest.raises(
        TwinbudError, match=r"the folder holds 'glioma.real\.jpg', which does not belong to a phantom set"
    ):
        phantom_folder(root=tmp_path, **SMALL)
    assert (tmp_path / "glioma" / "real.jpg").read_bytes() == b"precious"


def test_two_processes_may_build_the_same_set(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    # the package's own function: spawned processes cannot import a test module whose package a library also has
    build = partial(phantom_folder, root=tmp_path / "set", **SMALL)
    workers = [context.Process(target=build) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list((tmp_path / "set").rglob("*.png"))) == 16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "own"))
    assert phantom_folder(**SMALL).is_relative_to(tmp_path / "own" / "phantom")
    monkeypatch.delenv("TWINBUD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "twinbud"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "twinbud"


def test_wrong_arguments_are_explained(tmp_path: Path):
    with pytest.raises(TwinbudError, match=r"phantom label: '.*' is not one of .*Did you mean 'glioma'"):
        phantom_slice(0, 0, "gliom")
    with pytest.raises(TwinbudError, match="phantom patients_per_class: 0 is below 1"):
        phantom_folder(patients_per_class=0, root=tmp_path)
