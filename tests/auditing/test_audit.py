"""The audit finds what was planted: copies, leaks, wrong labels, marks, negatives, broken files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import twinbud
from twinbud.auditing import probes
from twinbud.auditing.facts import FileFacts, read_facts
from twinbud.auditing.findings import Audit
from twinbud.auditing.page import write_audit
from twinbud.auditing.probes import Probe, border_probe, corrected, least_p_value, metadata_probes
from twinbud.core.errors import TwinbudError

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5


def scan(seed: int) -> np.ndarray:
    """Return a bright disc on black with structures of its own, uint8."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    detail = gaussian_filter(noise, 1.2)
    return np.where(np.hypot(ROWS, COLUMNS) < 0.42, 120 + 30 * detail / detail.std(), 0).clip(0, 255).astype(np.uint8)


def save(folder: Path, name: str, pixels: np.ndarray) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return name


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    """An audit of 48 images of two classes with one of each flaw, and its folder."""
    folder = tmp_path_factory.mktemp("planted")
    lines = ["image_path,label,patient_id,split"]
    for number in range(48):
        label, part = ("ill", "well")[number % 2], "test" if number >= 40 else "train"
        pixels = scan(number)
        if label == "ill":
            pixels[2:6, 2:22] = 255  # a burnt-in mark
        lines.append(f"{save(folder, f'{number:02}.png', pixels)},{label},canary{number:02},{part}")
    lines.append(f"{save(folder, 'copy.png', scan(1))},ill,canary01,train")  # identical to 01, which is well
    brighter = (scan(3) * 0.8 + 20).astype(np.uint8)
    lines.append(f"{save(folder, 'near.png', brighter)},well,canary98,test")  # 03 trains
    lines.append(f"{save(folder, 'negative.png', 255 - scan(5))},well,canary99,train")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    lines.append("broken.png,well,canary97,train")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "NUM_SHUFFLES", 79)  # enough for a corrected p-value of 3/80
        found = twinbud.audit(folder / "images.csv", output=folder / "audit", pixel_cache=False, show_progress=False)
    return found, folder / "audit"


def test_the_planted_copies_leaks_and_labels_are_found_and_no_others(planted: tuple[Audit, Path]) -> None:
    found = planted[0].to_json()
    assert found["identical"] == [["01.png", "copy.png"]]
    assert [(p["first"]["path"], p["second"]["path"]) for p in found["near_duplicates"]] == [("03.png", "near.png")]
    assert [(p["first"]["split"], p["second"]["split"]) for p in found["leaks"]] == [("train", "test")]
    assert [(p["first"]["label"], p["second"]["label"]) for p in found["contradictory_labels"]] == [("well", "ill")]
    assert found["inverted"] == ["negative.png"]
    assert [file["path"] for file in found["left_out"]] == ["broken.png"]
    assert found["counts"]["class"] == {"well": 26, "ill": 25}
    assert found["patients_in_two_parts"] == 0


def test_a_mark_in_the_border_is_reported_and_equal_sizes_are_not(planted: tuple[Audit, Path]) -> None:
    found = {probe.name: probe for probe in planted[0].probes}
    assert found["the border of the image"].is_suspicious
    assert found["size"].reason == "it is the same for all images"


def test_page_and_json_hold_the_findings_and_no_patient(planted: tuple[Audit, Path]) -> None:
    found, folder = planted
    assert sorted(path.name for path in folder.iterdir()) == ["audit.html", "audit.json"]
    assert json.loads((folder / "audit.json").read_text()) == found.to_json()
    page = (folder / "audit.html").read_text()
    assert "1 pair of the same picture with different labels (1 with identical pixels)." in page
    assert page.count('class="double"') == 4, "the leak, the contradiction, the near-duplicate and the identical pair"
    assert "http" not in page.replace("http-equiv", "")
    assert "canary" not in page + (folder / "audit.json").read_text()


def test_the_least_p_value_is_stated_only_where_something_was_measured(
    planted: tuple[Audit, Path], tmp_path: Path
) -> None:
    stated = "can be no less than 0.0"
    assert stated in (planted[1] / "audit.html").read_text()
    unmeasured = tuple(replace(probe, p_value=None) for probe in planted[0].probes)
    write_audit(replace(planted[0], probes=unmeasured), tmp_path / "audit", force=False, max_megapixels=36)
    assert "can be no less than" not in (tmp_path / "audit" / "audit.html").read_text()


def test_an_earlier_output_is_not_replaced_unasked(planted: tuple[Audit, Path]) -> None:
    with pytest.raises(TwinbudError, match="--force"):
        twinbud.audit("phantom", output=planted[1], show_progress=False)


def test_a_border_without_marks_predicts_nothing() -> None:
    thumbnails = np.stack([scan(number) for number in range(60)])
    probe = border_probe(thumbnails, ["ab"[number % 2] for number in range(60)], np.arange(60))
    assert probe.balanced_accuracy is not None
    assert not corrected([probe])[0].is_suspicious


def test_a_size_that_differs_between_classes_is_suspicious_and_a_random_mode_is_not() -> None:
    generator = np.random.default_rng(0)
    labels = ["ab"[number % 2] for number in range(80)]
    facts = [
        FileFacts(width=200 + 40 * (label == "b"), height=200, mode=("L", "RGB")[generator.integers(2)])
        for label in labels
    ]
    probes = {probe.name: probe for probe in corrected(metadata_probes(facts, labels, np.arange(80)))}
    assert probes["size"].balanced_accuracy == 1
    assert probes["size"].is_suspicious
    assert not probes["mode"].is_suspicious


def test_images_of_one_patient_do_not_vouch_for_each_other() -> None:
    """Every patient has a size and a class of its own: known patients would give the class away, new ones do not."""
    patients = np.repeat(np.arange(20), 6)
    labels = ["ab"[patient % 2] for patient in patients]
    sizes = np.random.default_rng(1).permutation(20) * 10 + 100
    facts = [FileFacts(width=int(sizes[patient]), height=100) for patient in patients]
    (probe,) = corrected(metadata_probes(facts, labels, patients))
    assert probe.p_value is not None
    assert not probe.is_suspicious


def test_a_class_of_too_few_patients_is_not_measured() -> None:
    facts = [FileFacts(width=100 + number, height=100) for number in range(12)]
    (probe,) = metadata_probes(facts, ["ab"[number % 2] for number in range(12)], np.arange(12) // 4)
    assert probe == Probe(
        name="size", reason="too few images to judge: a class has fewer than 10 patients or groups of images"
    )


def test_noise_of_small_sets_is_marked_as_rarely_as_its_p_values_say() -> None:
    """Of 16 sets without any shortcut, one is expected at a p-value of 0.05 or less, and half at 0.5."""
    labels = ["ab"[number % 2] for number in range(24)]
    marked, likely = 0, 0
    for seed in range(16):
        sizes = np.random.default_rng(seed).integers(100, 300, 24)
        facts = [FileFacts(width=int(size), height=100) for size in sizes]
        (probe,) = corrected(metadata_probes(facts, labels, np.arange(24)))
        marked += probe.is_suspicious
        likely += probe.p_value is not None and probe.p_value <= 0.5
    assert marked <= 2
    assert 3 <= likely <= 13


def test_p_values_are_corrected_for_the_number_of_probes_measured() -> None:
    probes = [
        Probe(name="border", balanced_accuracy=0.9, chance=0.5, p_value=0.02),
        Probe(name="size", balanced_accuracy=0.9, chance=0.5, p_value=0.03),
        Probe(name="mode", reason="it is the same for all images"),
    ]
    assert [probe.corrected_p_value for probe in corrected(probes)] == [0.04, 0.06, None]
    assert [probe.is_suspicious for probe in corrected(probes)] == [True, False, False]
    assert [probe.is_suspicious for probe in corrected(probes[:1])] == [True]
    assert least_p_value(probes) == 2 / 200


def test_facts_of_a_dicom_file_are_its_own_and_no_more(tmp_path: Path) -> None:
    from helpers.dicom_files import dataset_of, file_of

    dataset = dataset_of(np.zeros((3, 5), np.uint8), Modality="CR", Manufacturer="ACME\x00<b>", PatientName="canary")
    (tmp_path / "a.dcm").write_bytes(file_of(dataset, "1.2.840.10008.1.2.1"))
    facts = read_facts(tmp_path / "a.dcm")
    assert (facts.size, facts.format, facts.modality, facts.manufacturer) == ("5 x 3", "DICOM", "CR", "ACME b")
    assert facts.compression == "Explicit VR Little Endian"
    assert "canary" not in str(facts)
    named = dataset_of(np.zeros((3, 5), np.uint8), Modality="CANARY", BurnedInAnnotation="CANARY")
    (tmp_path / "b.dcm").write_bytes(file_of(named, "1.2.840.10008.1.2.1"))
    facts = read_facts(tmp_path / "b.dcm")
    assert (facts.modality, facts.burned_in) == ("another one", "unknown")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_facts_of_a_volume_tell_its_format(tmp_path: Path, name: str) -> None:
    from helpers.volumes import nifti

    (tmp_path / name).write_bytes(nifti(np.zeros((3, 4, 5), np.int16), packed=name.endswith("gz")))
    assert read_facts(tmp_path / name).format == "NIfTI"


def test_several_labels_are_counted_by_combination(tmp_path: Path) -> None:
    lines = [f"{save(tmp_path, f'{number}.png', scan(number))},{number % 2},{number // 2 % 2}" for number in range(8)]
    (tmp_path / "images.csv").write_text("\n".join(["image_path,mass,effusion", *lines]) + "\n")
    found = twinbud.audit(
        tmp_path / "images.csv", label_columns="mass,effusion", pixel_cache=False, show_progress=False
    )
    assert found.to_json()["counts"]["class"] == {"no finding": 2, "mass": 2, "effusion": 2, "mass|effusion": 2}
