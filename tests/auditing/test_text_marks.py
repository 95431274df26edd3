"""Text-like marks in pixels are found where text is drawn, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import twinbud
from helpers.dicom_files import dicom
from twinbud.auditing.page import summary_lines
from twinbud.auditing.text_findings import NUM_DRAWS, dependence
from twinbud.auditing.text_marks import text_boxes
from twinbud.data.phantom import CLASSES, phantom_slice

LETTERS = list("ABCDEFGHKLMNPRSTUVXYZ0123456789")


def written(pixels: np.ndarray, text: str, place: tuple[int, int], size: int, value: int = 255) -> np.ndarray:
    """Return gray or color pixels with a text drawn over them."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.text(place, text, fill=value if pixels.ndim == 2 else (value,) * 3, font=ImageFont.load_default(size))
    return np.asarray(image)


def test_text_of_12_points_or_more_beside_a_head_is_found_where_it_is() -> None:
    """Smaller letters touch, and text across the skull has no quiet surrounding: docs/audit.md counts both."""
    generator = np.random.default_rng(0)
    heads = [np.pad(phantom_slice(number, 0, label, size=192), 96) for number, label in enumerate(CLASSES)]
    found, cases = 0, 0
    for size in (12, 14, 16, 20, 28, 40):
        for number in range(10):
            text = "".join(generator.choice(LETTERS, 7))
            left, top = int(generator.integers(2, 180)), int(generator.choice([4, 384 - 2 * size]))
            boxes = text_boxes(written(heads[number % 4], text, (left, top), size))
            cases += 1
            found += bool(boxes) and all(
                left <= box.left < box.right <= left + 7 * size and top <= box.top < box.bottom <= top + 2 * size
                for box in boxes
            )
    assert found >= 0.95 * cases


@pytest.mark.parametrize(("background", "ink"), [(0, 255), (120, 255), (255, 0), (150, 0)])
def test_bright_and_dark_text_is_found_on_any_gray(background: int, ink: int) -> None:
    pixels = np.full((100, 200), background, np.uint8)
    assert len(text_boxes(written(pixels, "NAME 42", (40, 40), 16, ink))) == 1
    color = np.repeat(pixels[..., None], 3, axis=2)
    assert text_boxes(written(color, "NAME 42", (40, 40), 16, ink)) == text_boxes(
        written(pixels, "NAME 42", (40, 40), 16, ink)
    )


def test_two_hundred_phantoms_have_no_text() -> None:
    for number in range(50):
        pixels = phantom_slice(number, number % 3, CLASSES[number % 4], size=128)
        assert not any(text_boxes(np.rot90(pixels, turns)) for turns in range(4))


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_text(seed: int) -> None:
    generator = np.random.default_rng(seed)
    assert text_boxes(generator.integers(0, 256, (256, 256), np.uint8)) == ()
    assert text_boxes(np.where(generator.random((256, 256)) < 0.002, 255, 0).astype(np.uint8)) == ()


def test_edges_and_calipers_and_rulers_are_no_text() -> None:
    image = Image.new("L", (256, 256), 40)
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 20, 230, 120), outline=255)
    draw.ellipse((60, 130, 200, 240), outline=255, fill=120)
    for left, top in ((60, 60), (150, 90), (100, 40)):
        draw.line((left - 4, top, left + 4, top), fill=255)
        draw.line((left, top - 4, left, top + 4), fill=255)
    for tick in range(16):
        draw.line((246, 10 + 15 * tick, 252, 10 + 15 * tick), fill=255)
        draw.line((10 + 15 * tick, 246, 10 + 15 * tick, 252), fill=255)
    assert text_boxes(np.asarray(image)) == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1, 3), (31, 400), (32, 32, 3), (40, 3000), (0, 9)])
def test_any_shape_is_searched(shape: tuple[int, ...]) -> None:
    assert text_boxes(np.zeros(shape, np.uint8)) == ()


def test_the_work_is_linear_in_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import ndimage

    filtered: list[int] = []
    opening = ndimage.grey_opening

    def counted(image: np.ndarray, **options: Any) -> np.ndarray:
        filtered.append(image.size)
        return opening(image, **options)

    monkeypatch.setattr(ndimage, "grey_opening", counted)
    for side in (256, 1024):
        filtered.clear()
        text_boxes(np.zeros((side, side), np.uint8))
        assert sum(filtered) <= 2 * (4 / 3) * side**2, "two signs, at the full, half and quarter size"


def test_marks_in_one_class_only_depend_on_the_class_and_evenly_spread_ones_do_not() -> None:
    labels = ["ab"[number % 2] for number in range(40)]
    everywhere = np.arange(40)
    in_one = np.array([label == "a" for label in labels])
    assert dependence(in_one, labels, everywhere) == pytest.approx(1 / (1 + NUM_DRAWS), abs=2e-3)
    assert dependence(everywhere < 20, labels, everywhere) == 1
    assert dependence(in_one & False, labels, everywhere) is None
    assert dependence(in_one | True, labels, everywhere) is None


def test_the_p_value_agrees_with_fishers_exact_test() -> None:
    from scipy.special import comb

    marked = np.array([True] * 7 + [False] * 5 + [True] * 2 + [False] * 10)
    labels = ["a"] * 12 + ["b"] * 12
    marked_of_a = np.arange(10)  # of 12 images of class a, and of 9 marked ones among 24
    chances = np.asarray(comb(12, marked_of_a) * comb(12, 9 - marked_of_a) / comb(24, 9))
    expected = chances[chances <= chances[7] * 1.000001].sum()
    assert dependence(marked, labels, np.arange(24)) == pytest.approx(expected, abs=0.02)


def test_many_images_of_one_patient_count_once() -> None:
    patients = np.repeat([0, 1, 2, 3], [30, 1, 1, 1])
    labels = ["a"] * 30 + ["b"] * 3
    found = dependence(patients == 0, labels, patients)
    assert found is not None
    assert found > 0.1


def test_the_audit_names_marked_images_and_those_that_deny_it_and_quotes_no_text(tmp_path: Path) -> None:
    plain = [phantom_slice(number, 0, "glioma", size=96) for number in range(8)]
    for number, pixels in enumerate(plain):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        marked = written(np.pad(pixels, 16), "CANARY", (4, 2), 14) if number in (0, 2) else np.pad(pixels, 16)
        (folder / f"{number}.dcm").write_bytes(
            dicom(marked, PatientID=f"canary{number}", BurnedInAnnotation="NO" if number < 2 else "YES")
        )
    audit = twinbud.audit(tmp_path / "data", output=tmp_path / "audit", pixel_cache=False, show_progress=False)
    text = json.loads((tmp_path / "audit" / "audit.json").read_text())["text_in_pixels"]
    assert text["num_images"] == 2
    assert text["by_class"] == {"a": {"num_images": 2, "share": 0.5}, "b": {"num_images": 0, "share": 0.0}}
    assert [image["path"] for image in text["images"]] == ["a/0.dcm", "a/2.dcm"]
    assert all(box["top"] < 20 for image in text["images"] for box in image["boxes"])
    assert text["undeclared"] == ["a/0.dcm"]
    lines = [line for line in summary_lines(audit) if "text" in line]
    assert lines[0].startswith("2 images may show text, and so names or dates (a 50.0%, b 0.0%;")
    assert lines[1] == "1 DICOM image with text-like marks though BurnedInAnnotation is NO: 'a/0.dcm'."
    everything = "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    assert "canary" not in everything.lower()
