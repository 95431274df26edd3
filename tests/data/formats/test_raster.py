"""What each kind of image file becomes, and what each broken one is called."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import create_transform

from twinbud.data.formats import decoding as decoding_module
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import decode, digest
from twinbud.data.formats.raster import RasterReader
from twinbud.data.preprocessing import resize


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(contents: bytes, max_megapixels: float = 100) -> np.ndarray:
    return decode(contents, name="scan", max_megapixels=max_megapixels)


def pattern(height: int = 12, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_comes_back_bit_by_bit(kind: str) -> None:
    pixels = read(encoded(Image.fromarray(pattern()), kind))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, pattern())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "MPO"])
def test_lossy_kinds_are_what_pillow_reads(kind: str) -> None:
    contents = encoded(Image.fromarray(pattern()), kind)
    np.testing.assert_array_equal(read(contents), np.asarray(Image.open(BytesIO(contents)).convert("RGB")))


def test_8_bit_gray_is_repeated_and_never_stretched() -> None:
    gray = np.array([[10, 20], [30, 40]], np.uint8)
    np.testing.assert_array_equal(read(encoded(Image.fromarray(gray))), np.stack([gray] * 3, axis=2))


def test_1_bit_becomes_black_and_white() -> None:
    pixels = read(encoded(Image.fromarray(np.array([[False, True]]))))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 255])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[100, 1100], [350, 600]], np.uint16), "PNG"),
        (np.array([[100, 1100], [350, 600]], np.uint16), "TIFF"),
        (np.array([[-400, 600], [-150, 100]], np.int32), "TIFF"),
        (np.array([[-0.5, 0.5], [-0.25, 0.0]], np.float32), "TIFF"),
    ],
)
def test_wide_grays_are_scaled_from_their_own_minimum_to_their_own_maximum(values: np.ndarray, kind: str) -> None:
    pixels = read(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 255], [64, 128]])
    assert (pixels == pixels[:, :, :1]).all()


def test_a_constant_wide_gray_becomes_black() -> None:
    assert not read(encoded(Image.fromarray(np.full((3, 3), 4000, np.uint16)))).any()


def test_big_endian_tiff_reads_like_little_endian() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 1, 513))
    np.testing.assert_array_equal(read(encoded(image, "TIFF"))[0, :, 0], [0, 255])


def test_16_bit_tiff_that_stores_white_as_zero_is_inverted() -> None:
    values = Image.fromarray(np.array([[100, 1100]], np.uint16))
    contents = bytearray(encoded(values, "TIFF"))
    tag = contents.index(struct.pack("<HHI", 262, 3, 1))
    contents[tag + 8] = 0
    np.testing.assert_array_equal(read(bytes(contents))[0, :, 0], [255, 0])


def test_transparency_is_composited_on_black() -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    pixels = read(encoded(Image.fromarray(rgba)))
    np.testing.assert_array_equal(pixels[0, 0], [200, 100, 50])
    np.testing.assert_array_equal(pixels[0, 1], [0, 0, 0])
    np.testing.assert_allclose(pixels[0, 2], [100, 50, 25], atol=1)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_color_becomes_black(mode: str) -> None:
    image = Image.new("RGB", (2, 1), (90, 90, 90))
    image.putpixel((1, 0), (200, 200, 200))
    image = image.convert(mode) if mode != "P" else image.quantize(2)
    key = image.getpixel((0, 0))
    pixels = read(encoded(image, transparency=key))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 200])


def test_palette_and_cmyk_become_rgb() -> None:
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    np.testing.assert_array_equal(read(encoded(palette))[0, 0], [10, 200, 30])
    cmyk = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")
    np.testing.assert_array_equal(read(cmyk)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = pattern()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    np.testing.assert_array_equal(read(contents), upright)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_named(kind: str) -> None:
    contents = encoded(Image.fromarray(pattern(64, 64)), kind)
    with pytest.raises(BrokenImageError, match=r"^scan: the file is (truncated|damaged)"):
        read(contents[: len(contents) // 2])


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(BrokenImageError, match=r"^glioma/a\.png: the file is empty \(0 bytes\)\. .*--skip-broken"):
        decode(file, name="glioma/a.png", max_megapixels=1)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match=r"^a\.png: the file does not exist \(was it moved or removed\?\)"):
        decode(tmp_path / "a.png", name="a.png", max_megapixels=1)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="the file cannot be opened"):
        decode(tmp_path, name="a.png", max_megapixels=1)


@pytest.mark.parametrize("contents", [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0", b"GIF89a", b"RIFF0000WAVE", b"\x00" * 200])
def test_a_disguised_file_is_named(contents: bytes) -> None:
    with pytest.raises(BrokenImageError, match=r"^scan: the file is not a PNG, JPEG, [^.]* or \w+ image\."):
        read(contents)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(BrokenImageError) as caught:
        read(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 10) + b"IDAT" + b"x" * 14)
    assert "the file has 50000×50000 pixels (2500.0 megapixels; the limit is 100)" in str(caught.value)
    assert "--max-megapixels" in str(caught.value)


def test_pillows_own_pixel_limit_neither_warns_nor_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = encoded(Image.fromarray(pattern(20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(contents).shape == (20, 20, 3)


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.fromarray(pattern())))
    monkeypatch.setattr(decoding_module, "MAX_FILE_BYTES", 10)
    with pytest.raises(BrokenImageError, match="the file is larger than"):
        decode(file, name="a.png", max_megapixels=1)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_a_stack_is_refused_with_its_number_of_frames(kind: str) -> None:
    frames = [Image.fromarray(pattern(8, 8)), Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (9, 9, 9))]
    contents = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(BrokenImageError, match=r"the file holds 3 frames instead of a single image\. Save the frames"):
        read(contents)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0, value]], np.float32))
    with pytest.raises(BrokenImageError, match=r"the file holds values that are not finite"):
        read(encoded(image, "TIFF"))


@pytest.mark.parametrize("shape", [(37, 91), (300, 120), (64, 64), (5, 7), (30, 64)])
@pytest.mark.parametrize("size", [64, 112])
def test_resize_gives_the_pixels_of_timms_own_transform(shape: tuple[int, int], size: int) -> None:
    image = pattern(*shape)
    transform: Any = create_transform(
        input_size=(3, size, size),
        crop_pct=1.0,
        crop_mode="squash",
        interpolation="bicubic",
        normalize=False,
        use_prefetcher=True,  # leaves uint8 pixels
    )
    expected = np.asarray(transform(Image.fromarray(image)))
    assert expected.dtype == np.uint8
    np.testing.assert_array_equal(resize(image, size).transpose(2, 0, 1), expected)


def test_digest_is_of_the_pixels_not_of_the_file() -> None:
    gray = Image.fromarray(pattern()[:, :, 0])
    as_gray, as_rgb = read(encoded(gray)), read(encoded(gray.convert("RGB"), "BMP"))
    assert digest(as_gray) == digest(as_rgb)
    assert digest(as_gray) != digest(np.ascontiguousarray(as_gray.transpose(1, 0, 2)))
    assert digest(as_gray) != digest(255 - as_gray)
    blank = np.zeros((4, 6, 3), np.uint8)
    assert digest(blank) != digest(blank.reshape(6, 4, 3))


def test_a_fault_of_a_reader_is_not_called_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_wrongly(*_: object, **__: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(RasterReader, "read", read_wrongly)
    with pytest.raises(BrokenImageError) as error:
        read(encoded(Image.fromarray(pattern())))
    assert "the file cannot be decoded: RasterReader failed (TypeError: 'NoneType' object is" in str(error.value)
    assert "damaged" not in str(error.value)
