"""Every layout of samples is read rightly or refused in one line; tifffile and OpenCV are the references."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers.mutations import SIGNATURE, chunk, join_png, split_png
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import decode

PICTURE = (np.add.outer(np.arange(40), np.arange(56)) * 2 + np.random.default_rng(0).integers(0, 20, (40, 56))).astype(
    np.uint8
)
"""(40, 56) uint8, 0 to about 206."""
COLOR = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], axis=2)


def read(contents: bytes) -> np.ndarray:
    return decode(contents, name="scan", max_megapixels=1)


def refusal(contents: bytes) -> str:
    with pytest.raises(BrokenImageError) as caught:
        read(contents)
    return str(caught.value)


def stretched(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: minimum to 0, maximum to 255, over all channels."""
    values = values.astype(np.float64)
    scaled = np.rint((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.stack([scaled] * 3, axis=2)


def repeated(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=2)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer, settings = BytesIO(), dict[str, Any]({"photometric": "minisblack"} | options)
    tifffile.imwrite(buffer, values, **settings)
    return buffer.getvalue()


def png(header: tuple[int, int], rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of bit depth and color type, from (H, bytes a row) uint8; OpenCV cannot write gray with alpha."""
    depth, color = header
    width = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * depth
    ihdr = struct.pack(">IIBBBBB", rows.shape[1] * 8 // width, rows.shape[0], depth, color, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    return join_png([(b"IHDR", ihdr), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")])


def opencv(contents: bytes) -> np.ndarray:
    """(H, W, 3) RGB as OpenCV decodes it, composited on black."""
    pixels = cv2.imdecode(np.frombuffer(contents, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    if pixels.ndim == 2:
        return repeated(pixels)
    if pixels.shape[2] == 3:
        return pixels[..., ::-1]
    return np.rint(pixels[..., 2::-1] * (pixels[..., 3:] / 255))


# TIFF: type of samples

WIDE = {
    "uint16": PICTURE.astype(np.uint16) * 16,
    "int16": PICTURE.astype(np.int16) * 100 - 9000,
    "uint32": PICTURE.astype(np.uint32) << 24,
    "int32": (PICTURE.astype(np.int32) - 100) * 2**24,
    "uint64": PICTURE.astype(np.uint64) << 50,
    "float16": PICTURE.astype(np.float16) / 7 - 3,
    "float32": PICTURE.astype(np.float32) / 7 - 3,
    "float64": PICTURE.astype(np.float64) * 1e-30,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 16)},
    "deflate": {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "LZW": {"compression": "lzw", "tile": (32, 16)},
    "PackBits": {"compression": "packbits", "rowsperstrip": 7},
}


@pytest.mark.parametrize(("kind", "option"), [*product(WIDE, OPTIONS)])
def test_wide_gray_tiff_is_scaled_from_its_minimum_to_its_maximum(kind: str, option: str) -> None:
    options = OPTIONS[option] | ({"predictor": False} if kind == "uint64" else {})
    contents = tiff(WIDE[kind], **options)
    np.testing.assert_array_equal(tifffile.imread(BytesIO(contents)), WIDE[kind])
    np.testing.assert_array_equal(read(contents), stretched(WIDE[kind]))
    inverted = tiff(WIDE[kind], **options | {"photometric": "miniswhite"})
    np.testing.assert_allclose(read(inverted), 255 - stretched(WIDE[kind]).astype(int), atol=1)


@pytest.mark.parametrize(("kind", "option", "planar"), [*product(WIDE, OPTIONS, ["contig", "separate"])])
def test_wide_color_tiff_shares_one_scale(kind: str, option: str, planar: str) -> None:
    values = np.stack([WIDE[kind], WIDE[kind][::-1], WIDE[kind][:, ::-1]], axis=2)
    stored = values if planar == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    options = OPTIONS[option] | ({"predictor": False} if kind == "uint64" else {})
    contents = tiff(stored, photometric="rgb", planarconfig=planar, **options)
    np.testing.assert_array_equal(read(contents), stretched(values))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_8_bit_tiff_keeps_its_values(option: str, planar: str) -> None:
    options = OPTIONS[option]
    np.testing.assert_array_equal(read(tiff(PICTURE, **options)), repeated(PICTURE))
    np.testing.assert_array_equal(
        read(tiff(PICTURE, **options | {"photometric": "miniswhite"})), repeated(255 - PICTURE)
    )
    signed = (PICTURE.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(read(tiff(signed, **options)), repeated(PICTURE))
    stored = COLOR if planar == "contig" else np.ascontiguousarray(COLOR.transpose(2, 0, 1))
    np.testing.assert_array_equal(read(tiff(stored, photometric="rgb", planarconfig=planar, **options)), COLOR)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_are_spread_evenly_over_the_range(bits: int, photometric: str) -> None:
    levels = PICTURE >> (8 - bits)
    expected = np.rint(levels / (2**bits - 1) * 255).astype(np.uint8)
    expected = 255 - expected if photometric == "miniswhite" else expected
    np.testing.assert_array_equal(read(tiff(levels, bitspersample=bits, photometric=photometric)), repeated(expected))


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_packed_bits_between_8_and_16_are_scaled(bits: int) -> None:
    values = PICTURE.astype(np.uint16) << (bits - 8)
    np.testing.assert_array_equal(read(tiff(values, bitspersample=bits)), stretched(values))


@pytest.mark.parametrize("kind", ["uint16", "float32"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("colors", [1, 3])
def test_alpha_of_wide_tiff_is_composited_on_black(kind: str, extra: str, colors: int) -> None:
    full = 1.0 if kind == "float32" else 65535
    color = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], axis=2)[..., :colors].astype(np.float64) / 255 * full
    opacity = np.linspace(0, 1, color.shape[1])[None, :, None] * np.ones((*color.shape[:2], 1))
    color[:, 0] = full  # hidden: its opacity is 0
    stored = color * opacity if extra == "assocalpha" else color
    values = (
        np.rint(np.concatenate([stored, opacity * full], axis=2)) if full > 1 else np.concatenate([stored, opacity], 2)
    )
    contents = tiff(values.astype(kind), photometric="rgb" if colors == 3 else "minisblack", extrasamples=[extra])
    visible = color[:, 1:]
    expected = (color - visible.min()) / (visible.max() - visible.min()) * 255 * opacity
    expected[:, 0] = 0
    np.testing.assert_allclose(read(contents), np.broadcast_to(expected, (*PICTURE.shape, 3)), atol=1)


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_alpha_of_8_bit_gray_tiff_is_composited_on_black(extra: str) -> None:
    opacity = np.tile(np.linspace(0, 255, PICTURE.shape[1]).astype(np.uint8), (len(PICTURE), 1))
    expected = np.rint(PICTURE * (opacity / 255))
    stored = PICTURE if extra == "unassalpha" else expected.astype(np.uint8)
    contents = tiff(np.stack([stored, opacity], axis=2), photometric="minisblack", extrasamples=[extra])
    np.testing.assert_allclose(read(contents), repeated(expected), atol=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_gray_of_a_png_has_the_bits_of_its_samples(depth: int) -> None:
    most = (1 << depth) - 1
    values = np.arange(256, dtype=np.uint8).reshape(16, 16) & most
    bits = (values[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    contents = png((depth, 0), np.packbits(bits.reshape(16, -1), axis=1), (b"tRNS", struct.pack(">H", most - 1 or 1)))
    expected = np.where(values == (most - 1 or 1), 0, values * (255 // most))
    np.testing.assert_array_equal(read(contents), repeated(expected))


def test_gray_stored_as_color_reads_like_gray() -> None:
    gray = PICTURE.astype(np.uint16) * 16
    color = repeated(gray)
    opaque = np.concatenate([color, np.full((*gray.shape, 1), 65535, np.uint16)], axis=2)
    ok, colored = cv2.imencode(".png", color)
    assert ok
    ok, with_alpha = cv2.imencode(".png", opaque)
    assert ok
    gray_alpha = np.stack([gray, np.full_like(gray, 65535)], axis=2).astype(">u2")
    files = [
        colored.tobytes(),
        with_alpha.tobytes(),
        png((16, 4), gray_alpha.view(np.uint8).reshape(40, -1)),
        tiff(color, photometric="rgb"),
        tiff(opaque, photometric="rgb", extrasamples=["unassalpha"]),
    ]
    for contents in files:
        np.testing.assert_array_equal(read(contents), stretched(gray))


# TIFF: what is refused


REFUSED: dict[str, tuple[bytes, str]] = {
    "pages": (tiff(np.stack([PICTURE] * 3)), "the file holds 3 frames instead of a single image"),
    "ImageJ": (
        tiff(np.zeros((5, 2, 8, 8), np.uint16), imagej=True, metadata={"axes": "ZCYX"}, photometric="minisblack"),
        "the file holds an ImageJ stack of 10 images (2 channels, 5 slices) instead of a single image",
    ),
    "volume": (
        tiff(np.zeros((4, 32, 32), np.uint8), volumetric=True, tile=(4, 16, 16)),
        "the file holds a volume of 4 slices instead of a single image",
    ),
    "channels": (
        tiff(np.stack([PICTURE] * 2, 2), planarconfig="contig"),
        "unsupported sample layout: 8-bit unsigned integer gray of 2 samples a pixel uncompressed (TIFF). Save it",
    ),
    "complex": (tiff(PICTURE.astype(np.complex64)), "64-bit complex gray uncompressed (TIFF)"),
    "Lab": (tiff(COLOR, photometric="cielab"), "8-bit unsigned integer CIE L*a*b* of 3 samples"),
    "Zstandard": (tiff(WIDE["uint16"], compression="zstd"), "16-bit unsigned integer gray Zstandard"),
    "12-bit JPEG": (
        tiff(PICTURE.astype(np.uint16) << 4, compression="jpeg", bitspersample=12),
        "12-bit unsigned integer gray JPEG",
    ),
    "infinite": (tiff(np.where(PICTURE > 9, np.inf, 1).astype(np.float32)), "holds values that are not finite"),
    "16-bit palette": (
        tiff(WIDE["uint16"], photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
        "16-bit unsigned integer palette",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_layout_is_refused_with_its_description(name: str) -> None:
    contents, words = REFUSED[name]
    line = refusal(contents)
    assert words in line
    assert line.startswith("scan: the file ")
    assert line.endswith("or give --skip-broken to leave it out and list it.")


def retagged(contents: bytes, tag: int, new: int, value: int | None = None) -> bytes:
    """A little-endian TIFF with the number, and possibly the value, of one tag changed."""
    (offset,) = struct.unpack_from("<I", contents, 4)
    (count,) = struct.unpack_from("<H", contents, offset)
    changed = bytearray(contents)
    for place in range(offset + 2, offset + 2 + 12 * count, 12):
        if struct.unpack_from("<H", contents, place) == (tag,):
            struct.pack_into("<H", changed, place, new)
            if value is not None:
                struct.pack_into("<I", changed, place + 8, value)
            return bytes(changed)
    raise AssertionError(tag)


def test_a_tiff_that_does_not_say_what_is_bright_is_refused() -> None:
    assert "has no PhotometricInterpretation tag" in refusal(retagged(tiff(PICTURE), 262, 60000))


@pytest.mark.parametrize(("tag", "value"), [(273, 0), (273, 10**6), (279, 10**6), (278, 0), (256, 57), (257, 4000)])
def test_a_tiff_of_missing_or_truncated_strips_is_refused(tag: int, value: int) -> None:
    assert "scan: the file is" in refusal(retagged(tiff(WIDE["uint16"]), tag, tag, value))


def test_a_tiff_of_oversized_tiles_is_refused_before_they_are_decoded() -> None:
    contents = tiff(WIDE["uint16"], tile=(16, 16), compression="zlib")
    huge = retagged(retagged(contents, 322, 322, 2**20), 323, 323, 2**20)
    assert "holds more than 208 MiB of samples" in refusal(huge)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_of_wide_tiff_is_that_of_8_bits(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    Image.fromarray(PICTURE).save(buffer, "TIFF", exif=exif)
    wide = tiff(PICTURE.astype(np.uint16), extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(read(wide), stretched(read(buffer.getvalue())[..., 0]))


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_color_png_keeps_all_its_bits(interlaced: bool) -> None:
    values = np.random.default_rng(1).integers(300, 4096, (40, 56, 3), dtype=np.uint16)
    contents = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    if interlaced:
        rows = b"".join(
            b"\0" + line.astype(">u2").tobytes()
            for top, left, down, right in (
                (0, 0, 8, 8),
                (0, 4, 8, 8),
                (4, 0, 8, 4),
                (0, 2, 4, 4),
                (2, 0, 4, 2),
                (0, 1, 2, 2),
                (1, 0, 2, 1),
            )
            for line in values[top::down, left::right]
        )
        header = struct.pack(">IIBBBBB", 56, 40, 16, 2, 0, 0, 1)
        contents = join_png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    np.testing.assert_array_equal(opencv(contents), values)
    np.testing.assert_array_equal(read(contents), stretched(values))


def test_significant_bits_of_a_png_change_nothing() -> None:
    values = repeated(PICTURE.astype(np.uint16) * 16).astype(">u2").view(np.uint8).reshape(40, -1)
    assert (read(png((16, 2), values, (b"sBIT", b"\x0c\x0c\x0c"))) == read(png((16, 2), values))).all()


@pytest.mark.parametrize("color", [0, 2])
def test_a_transparent_value_of_16_bits_is_black_and_does_not_count(color: int) -> None:
    gray = PICTURE.astype(np.uint16) * 16 + 500
    gray[:, :3] = 65535
    values = gray if color == 0 else repeated(gray)
    rows = values.astype(">u2").view(np.uint8).reshape(40, -1)
    pixels = read(png((16, color), rows, (b"tRNS", b"\xff\xff" * (1 if color == 0 else 3))))
    assert not pixels[:, :3].any()
    np.testing.assert_array_equal(pixels[:, 3:], stretched(gray[:, 3:]))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_palette_with_transparency_and_few_bits(depth: int) -> None:
    rows = np.random.default_rng(2).integers(0, 256, (40, 8), dtype=np.uint8)
    palette, opacity = bytes(range(3 * 2**depth)), bytes([0, 255][: 2**depth])
    contents = png((depth, 3), rows, (b"PLTE", palette), (b"tRNS", opacity))
    np.testing.assert_array_equal(read(contents), opencv(contents))
    gray = png((depth, 0), rows)
    np.testing.assert_array_equal(read(gray), opencv(gray))


METADATA = {
    "text": (b"tEXt", b"Comment\0" + b"x" * 2**21),
    "compressed text": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26))),
    "international text": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2**26))),
    "color profile": (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**22))),
    "short resolution": (b"pHYs", b"\0"),
    "short gamma": (b"gAMA", b""),
    "short chromaticity": (b"cHRM", b"\0" * 3),
    "short rendering": (b"sRGB", b""),
    "no Exif": (b"eXIf", b"no Exif at all"),
    "unknown method": (b"zTXt", b"Comment\0\7" + b"x"),
    "no animation": (b"acTL", b""),
    "private": (b"prVt", b"\0" * 100),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("intact", [True, False], ids=["intact", "wrong checksum"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_metadata_of_a_png_cannot_make_it_unreadable(name: str, intact: bool, after: bool) -> None:
    kind, data = METADATA[name]
    extra = chunk(kind, data)
    extra = extra if intact else extra[:-4] + b"\0\1\2\3"
    buffer = BytesIO()
    Image.fromarray(COLOR).save(buffer, "PNG")
    plain = buffer.getvalue()
    place = len(plain) - 12 if after else 33
    if name == "no animation" and intact:
        return  # an animation that is not damaged counts
    np.testing.assert_array_equal(read(plain[:place] + extra + plain[place:]), COLOR)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE", b"tRNS"])
def test_a_wrong_checksum_of_a_chunk_that_makes_pixels_is_refused(kind: bytes) -> None:
    buffer = BytesIO()
    Image.fromarray(COLOR).quantize(16).save(buffer, "PNG", transparency=3)
    parts = split_png(buffer.getvalue())
    damaged = SIGNATURE + b"".join(
        chunk(name, data)[:-4] + b"\0\1\2\3" if name == kind else chunk(name, data) for name, data in parts
    )
    assert "scan: the file is damaged" in refusal(damaged)


# JPEG, BMP, WebP


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_reads_like_opencv(mode: str, progressive: bool) -> None:
    buffer = BytesIO()
    Image.fromarray(COLOR).convert(mode).save(buffer, "JPEG", progressive=progressive, quality=95)
    np.testing.assert_allclose(read(buffer.getvalue()).astype(int), opencv(buffer.getvalue()), atol=3)


def test_12_bit_jpeg_is_refused() -> None:
    buffer = BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG")
    contents = bytearray(buffer.getvalue())
    contents[contents.index(b"\xff\xc0") + 4] = 12
    assert "scan: the file holds 12-bit JPEG samples. Save it as 16-bit gray" in refusal(bytes(contents))


def bmp(bits: int, rows: np.ndarray, *, compression: int = 0, masks: bytes = b"") -> bytes:
    """A BMP of (H, bytes a row) uint8, lowest row first."""
    info = struct.pack(
        "<IiiHHIIiiII", 40, rows.shape[1] * 8 // bits, rows.shape[0], 1, bits, compression, 0, 0, 0, 0, 0
    )
    start = 14 + 40 + len(masks)
    return b"BM" + struct.pack("<IHHI", start + rows.size, 0, 0, start) + info + masks + rows.tobytes()


def test_bmp_of_16_and_32_bits_reads_like_opencv() -> None:
    rows = np.random.default_rng(3).integers(0, 256, (40, 224), dtype=np.uint8)
    files = [
        bmp(24, rows[:, :168]),
        bmp(32, rows),
        bmp(16, rows),
        bmp(16, rows, compression=3, masks=struct.pack("<III", 0xF800, 0x07E0, 0x001F)),
    ]
    for contents in files:
        np.testing.assert_allclose(read(contents).astype(int), opencv(contents), atol=8)


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_with_alpha_is_composited_on_black(lossless: bool) -> None:
    opacity = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))
    buffer = BytesIO()
    Image.fromarray(np.dstack([COLOR, opacity])).save(buffer, "WEBP", lossless=lossless, exact=True)
    np.testing.assert_allclose(read(buffer.getvalue()), opencv(buffer.getvalue()), atol=1)
