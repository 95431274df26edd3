"""Real PNG and JPEG files, and structure-aware damage to them: a pure function of a seed."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from twinbud.config.reading import Plane

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Part = tuple[bytes, bytes]
"""A PNG chunk's type and data; or a JPEG segment's marker and its bytes, length field and all."""

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, and the distance of rows and of columns, of each pass."""
_BARE = frozenset({0x01, *range(0xD0, 0xDA)})
"""JPEG markers without a length."""


@dataclass(frozen=True)
class Mutation:
    """A damaged file, what was done to which, and which image of it to read."""

    contents: bytes
    story: str
    frame: int | None = None
    plane: Plane | None = None


def mutation(seed: int) -> Mutation:
    """The damaged file of a seed: a real file, and one to three changes of its structure or its bytes."""
    generator = random.Random(seed)
    name = generator.choice(sorted(seeds()))
    contents = seeds()[name]
    changes = PNG_CHANGES if name.startswith("png") else JPEG_CHANGES
    story = [name]
    for _ in range(generator.choice((1, 1, 2, 3))):
        change = generator.choice(changes)
        contents = change(contents, generator)
        story.append(change.__name__)
    return Mutation(contents, f"seed {seed}: {' > '.join(story)}")


@cache
def seeds() -> dict[str, bytes]:
    """Sound files of every kind of PNG and JPEG, by name."""
    generator = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40), np.arange(56)) * 2
    rgb = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2) + generator.integers(0, 20, (40, 56, 3))
    color = Image.fromarray(rgb.astype(np.uint8))
    gray, palette = color.convert("L"), color.quantize(16)
    wide = Image.fromarray((smooth * 200).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    thumbnail = Image.Exif()
    thumbnail[0x0112] = 3
    return {
        "png-gray": _saved(gray, "PNG"),
        "png-bits": _saved(gray.convert("1"), "PNG"),
        "png-rgb": _saved(color, "PNG", dpi=(72, 72), icc_profile=b"profile" * 50, exif=exif),
        "png-palette": _saved(palette, "PNG", transparency=3),
        "png-palette-alpha": _saved(palette, "PNG", transparency=bytes(range(16))),
        "png-alpha": _saved(color.convert("RGBA"), "PNG"),
        "png-gray-alpha": _saved(color.convert("LA"), "PNG"),
        "png-16": _saved(wide, "PNG"),
        "png-interlaced": _interlaced(rgb.astype(np.uint8)),
        "png-animated": _saved(gray, "PNG", save_all=True, append_images=[gray.transpose(Image.Transpose.ROTATE_180)]),
        "jpeg-gray": _saved(gray, "JPEG"),
        "jpeg-baseline": _saved(color, "JPEG", subsampling=2),
        "jpeg-progressive": _saved(color, "JPEG", progressive=True, subsampling=0),
        "jpeg-restarts": _saved(color, "JPEG", restart_marker_blocks=2, optimize=True),
        "jpeg-cmyk": _saved(color.convert("CMYK"), "JPEG"),
        "jpeg-exif": _saved(color, "JPEG", exif=exif, comment=b"scan", icc_profile=b"profile" * 50),
        "jpeg-thumbnail": _saved(color, "JPEG", exif=thumbnail.tobytes() + _saved(gray, "JPEG")),
    }


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _interlaced(rgb: np.ndarray) -> bytes:
    """An Adam7 PNG, which Pillow reads and does not write."""
    rows = b"".join(
        b"\0" + line.tobytes() for top, left, down, right in _ADAM7 for line in rgb[top::down, left::right] if line.size
    )
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 1)
    return join_png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


# PNG


def split_png(contents: bytes) -> list[Part]:
    """Chunks of a PNG, as far as they can be told apart; what follows is the last part, of type ``rest``."""
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(contents):
        length = int.from_bytes(contents[place : place + 4], "big")
        if place + 12 + length > len(contents):
            break
        chunks.append((contents[place + 4 : place + 8], contents[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks + ([(b"rest", contents[place:])] if place < len(contents) else [])


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with a right length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def join_png(chunks: list[Part]) -> bytes:
    """A PNG of these chunks."""
    return SIGNATURE + b"".join(data if kind == b"rest" else chunk(kind, data) for kind, data in chunks)


def png_header(contents: bytes, **fields: int) -> bytes:
    """The PNG with some fields of its IHDR replaced: width, height, depth, color, compression, filter, interlace."""
    names = ("width", "height", "depth", "color", "compression", "filter", "interlace")
    chunks = split_png(contents)
    for place, (kind, data) in enumerate(chunks):
        if kind == b"IHDR" and len(data) >= 13:
            values = dict(zip(names, struct.unpack(">IIBBBBB", data[:13]), strict=True)) | fields
            chunks[place] = (kind, struct.pack(">IIBBBBB", *values.values()))
            break
    return join_png(chunks)


def _drop(parts: list[Part], generator: random.Random) -> None:
    if parts:
        del parts[generator.randrange(len(parts))]


def _duplicate(parts: list[Part], generator: random.Random) -> None:
    if parts:
        place = generator.randrange(len(parts))
        parts[place:place] = [parts[place]] * generator.choice((1, 2, 50))


def _swap(parts: list[Part], generator: random.Random) -> None:
    if parts:
        one, other = generator.randrange(len(parts)), generator.randrange(len(parts))
        parts[one], parts[other] = parts[other], parts[one]


def _cut_part(parts: list[Part], generator: random.Random) -> None:
    if parts:
        place = generator.randrange(len(parts))
        kind, data = parts[place]
        parts[place] = (kind, data[: generator.randrange(len(data) + 1)])


def _garble_part(parts: list[Part], generator: random.Random) -> None:
    """Bytes changed inside a part, whose checksum is made right again where it has one."""
    if parts:
        place = generator.randrange(len(parts))
        kind, data = parts[place]
        parts[place] = (kind, flip_bytes(data, generator))


def _on_chunks(change: Callable[[list[Part], random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def changed(contents: bytes, generator: random.Random) -> bytes:
        chunks = split_png(contents)
        change(chunks, generator)
        return join_png(chunks)

    changed.__name__ = change.__name__.strip("_")
    return changed


def flip_bytes(contents: bytes, generator: random.Random) -> bytes:
    """One to eight bytes set to others."""
    garbled = bytearray(contents)
    for _ in range(generator.randint(1, 8) if garbled else 0):
        garbled[generator.randrange(len(garbled))] = generator.choice(
            (0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256))
        )
    return bytes(garbled)


def cut_short(contents: bytes, generator: random.Random) -> bytes:
    return contents[: generator.randrange(len(contents) + 1)]


def add_garbage(contents: bytes, generator: random.Random) -> bytes:
    garbage = generator.choice((b"\0", b"\xff", b"\xff\xd8", b"\xff\xd9", generator.randbytes(251)))
    return contents + garbage * generator.choice((1, 1000, 2**20 // len(garbage)))


def raw_length(contents: bytes, generator: random.Random) -> bytes:
    """A chunk's length field set to another; its checksum as it was."""
    return _overwrite(contents, generator, 0, struct.pack(">I", _odd_number(generator)))


def raw_type(contents: bytes, generator: random.Random) -> bytes:
    kind = generator.choice((b"IDAT", b"IEND", b"IHDR", b"PLTE", b"tRNS", b"fdAT", b"\0\0\0\0", b"____", b"init"))
    return _overwrite(contents, generator, 4, kind)


def raw_checksum(contents: bytes, generator: random.Random) -> bytes:
    return _overwrite(contents, generator, -4, generator.randbytes(4))


def _overwrite(contents: bytes, generator: random.Random, offset: int, new: bytes) -> bytes:
    ends = accumulate(12 + len(data) for kind, data in split_png(contents) if kind != b"rest")
    place = len(SIGNATURE) + generator.choice([0, *ends]) + offset
    return contents[:place] + new + contents[place + len(new) :]


def _odd_number(generator: random.Random) -> int:
    return generator.choice((0, 1, 2, 12, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, generator.randrange(2**32)))


def huge_header(contents: bytes, generator: random.Random) -> bytes:
    sizes = (5999, 36_000, 2**20, 2**31 - 1, 2**32 - 1)
    sides = generator.choice(((5999, 5999), (generator.choice(sizes), generator.choice(sizes)), (36_000_000, 1)))
    return png_header(contents, width=sides[0], height=sides[1])


def odd_header(contents: bytes, generator: random.Random) -> bytes:
    name = generator.choice(("width", "height", "depth", "color", "compression", "filter", "interlace"))
    return png_header(contents, **{name: generator.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))})


def palette_out_of_range(contents: bytes, generator: random.Random) -> bytes:
    """A palette of fewer colors than the pixels name, of none, or of a length that is no color's."""
    chunks = [(kind, data) for kind, data in split_png(contents) if kind != b"PLTE"]
    chunks.insert(min(1, len(chunks)), (b"PLTE", generator.randbytes(generator.choice((0, 1, 3, 4, 768, 769, 5000)))))
    return png_header(join_png(chunks), color=3, depth=generator.choice((1, 2, 4, 8)))


def broken_stream(contents: bytes, generator: random.Random) -> bytes:
    """The pixels' zlib stream damaged inside, under a right checksum."""
    chunks = split_png(contents)
    for place, (kind, data) in enumerate(chunks):
        if kind in (b"IDAT", b"fdAT"):
            chunks[place] = (kind, generator.choice((flip_bytes, cut_short))(data, generator))
    return join_png(chunks)


def other_stream(contents: bytes, generator: random.Random) -> bytes:
    """Another zlib stream in the pixels' place: none, one row, far too many, or a stored one of odd filters."""
    size = generator.choice((0, 1, 57, 40 * 57, 10**6))
    rows = generator.choice((b"\0", b"\5", b"\xff")) * size
    chunks = [(kind, data) for kind, data in split_png(contents) if kind != b"IDAT"]
    chunks.insert(max(0, len(chunks) - 1), (b"IDAT", zlib.compress(rows, generator.choice((0, 9)))))
    return join_png(chunks)


def pixel_bomb(contents: bytes, generator: random.Random) -> bytes:
    """Zeros that inflate to far more than the header asks for, or to all of a large image."""
    side = generator.choice((40, 2000))
    chunks = [
        (kind, data) for kind, data in split_png(png_header(contents, width=side, height=side)) if kind != b"IDAT"
    ]
    chunks.insert(max(0, len(chunks) - 1), (b"IDAT", _zeros()))
    return join_png(chunks)


def text_bomb(contents: bytes, generator: random.Random) -> bytes:
    kind, head = generator.choice(
        ((b"zTXt", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0"), (b"iCCP", b"profile\0\0"), (b"tEXt", b"key\0"))
    )
    chunks = split_png(contents)
    chunks[1:1] = [(kind, head + _zeros())] * generator.choice((1, 70))
    return join_png(chunks)


def odd_animation(contents: bytes, generator: random.Random) -> bytes:
    chunks = split_png(contents)
    frames = struct.pack(">II", _odd_number(generator), generator.randrange(3))
    control = struct.pack(
        ">IIIIIHHBB", *(generator.choice((0, 1, 40, _odd_number(generator))) for _ in range(5)), 1, 1, 9, 9
    )
    chunks[1:1] = [(b"acTL", frames), (b"fcTL", control)][: generator.choice((1, 2))]
    return join_png(chunks)


@cache
def _zeros() -> bytes:
    """32 MiB of zeros in 32 KiB."""
    return zlib.compress(bytes(2**25), 9)


# JPEG


def split_jpeg(contents: bytes) -> list[Part]:
    """Segments of a JPEG; a scan's data is a part of its own, of marker ``scan``."""
    parts: list[Part] = []
    place = 0
    while place + 2 <= len(contents) and contents[place] == 0xFF:
        marker = contents[place + 1]
        length = 0 if marker in _BARE else int.from_bytes(contents[place + 2 : place + 4], "big")
        parts.append((contents[place : place + 2], contents[place + 2 : place + 2 + length]))
        place += 2 + length
        if marker == 0xDA:
            end = place
            while end + 1 < len(contents) and not (
                contents[end] == 0xFF and contents[end + 1] not in (0, *range(0xD0, 0xD8))
            ):
                end += 1
            parts.append((b"scan", contents[place:end]))
            place = end
    return parts + ([(b"scan", contents[place:])] if place < len(contents) else [])


def join_jpeg(parts: list[Part]) -> bytes:
    """A JPEG of these segments."""
    return b"".join(data if marker == b"scan" else marker + data for marker, data in parts)


def _on_segments(change: Callable[[list[Part], random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def changed(contents: bytes, generator: random.Random) -> bytes:
        parts = split_jpeg(contents)
        change(parts, generator)
        return join_jpeg(parts)

    changed.__name__ = change.__name__.strip("_")
    return changed


def _edit(contents: bytes, markers: set[int], edit: Callable[[bytearray], None]) -> bytes:
    parts = split_jpeg(contents)
    for place, (marker, data) in enumerate(parts):
        if marker != b"scan" and marker[1] in markers and len(data) > 8:
            body = bytearray(data)
            edit(body)
            parts[place] = (marker, bytes(body))
    return join_jpeg(parts)


def segment_length(contents: bytes, generator: random.Random) -> bytes:
    parts = [part for part in split_jpeg(contents) if len(part[1]) >= 2 and part[0] != b"scan"]
    if not parts:
        return contents
    marker, data = generator.choice(parts)
    length = generator.choice((0, 1, 2, 3, 0xFFFF, max(0, len(data) - 1), min(0xFFFF, len(data) + 1)))
    return contents.replace(marker + data, marker + struct.pack(">H", length) + data[2:], 1)


def frame_size(contents: bytes, generator: random.Random) -> bytes:
    sides = generator.choice(((5999, 5999), (65_500, 540), (65_535, 65_535), (0, 40), (40, 0), (1, 1), (540, 65_500)))
    return _edit(
        contents, set(range(0xC0, 0xC4)), lambda body: body.__setitem__(slice(3, 7), struct.pack(">HH", *sides))
    )


def frame_kind(contents: bytes, generator: random.Random) -> bytes:
    """Another process (lossless, arithmetic), precision, number of components or sampling."""
    choice, value = generator.choice((0, 1, 2, 3)), generator.choice((0, 1, 2, 3, 4, 0x11, 0x14, 0x41, 0xFF))
    if choice == 0:
        parts = split_jpeg(contents)
        kinds = (b"\xff\xc1", b"\xff\xc3", b"\xff\xc5", b"\xff\xc9", b"\xff\xca", b"\xff\xc2", b"\xff\xc0")
        new = generator.choice(kinds)
        return join_jpeg([(new if marker in (b"\xff\xc0", b"\xff\xc2") else marker, data) for marker, data in parts])
    return _edit(contents, {0xC0, 0xC2}, lambda body: body.__setitem__((0, 2, 7, 9)[choice] % len(body), value))


def bad_tables(contents: bytes, generator: random.Random) -> bytes:
    """Quantisation or Huffman tables of zeros, of ones everywhere, or garbled."""

    def edit(body: bytearray) -> None:
        kind = generator.randrange(3)
        body[3:] = (bytes(len(body) - 3), b"\xff" * (len(body) - 3), flip_bytes(bytes(body[3:]), generator))[kind]

    return _edit(contents, {generator.choice((0xC4, 0xDB))}, edit)


def cut_scan(contents: bytes, generator: random.Random) -> bytes:
    """A scan's data cut short or garbled, with all that follows it."""
    return join_jpeg(
        [
            (marker, generator.choice((cut_short, flip_bytes))(data, generator) if marker == b"scan" else data)
            for marker, data in split_jpeg(contents)
        ]
    )


def restart_markers(contents: bytes, generator: random.Random) -> bytes:
    """A restart interval that does not hold, and restart markers where none belong."""
    parts = split_jpeg(contents)
    interval = struct.pack(">HH", 4, generator.choice((0, 1, 7, 0xFFFF)))
    parts.insert(min(1, len(parts)), (b"\xff\xdd", interval))
    for place, (marker, data) in enumerate(parts):
        if marker == b"scan" and data:
            middle = generator.randrange(len(data))
            restart = bytes([0xFF, generator.randrange(0xD0, 0xD8)]) * generator.choice((1, 8, 1000))
            parts[place] = (marker, data[:middle] + restart + data[middle:])
    return join_jpeg(parts)


def many_scans(contents: bytes, generator: random.Random) -> bytes:
    """The last scan sent again and again over a large image."""
    large = _edit(contents, {0xC0, 0xC2}, lambda body: body.__setitem__(slice(3, 7), struct.pack(">HH", 5999, 5999)))
    parts = split_jpeg(generator.choice((large, contents)))
    scans = [place for place, (marker, _) in enumerate(parts) if marker == b"\xff\xda"]
    if not scans:
        return contents
    again = parts[scans[-1] : scans[-1] + 2]
    return join_jpeg(parts[: scans[-1]] + again * generator.choice((2, 100, 5000)) + parts[scans[-1] + 2 :])


def nested_thumbnails(contents: bytes, generator: random.Random) -> bytes:
    """The file inside its own application segments, level in level, as far as a segment's length goes."""
    inner = contents
    for _ in range(generator.choice((1, 3, 30))):
        payload = generator.choice((b"Exif\0\0", b"JFXX\0\x10", b"MPF\0", b"ICC_PROFILE\0\x01\x01")) + inner
        marker = bytes([0xFF, generator.choice((0xE0, 0xE1, 0xE2))])
        if len(payload) > 65_000:
            break
        inner = b"\xff\xd8" + marker + struct.pack(">H", len(payload) + 2) + payload + contents[2:]
    return inner


def odd_exif(contents: bytes, generator: random.Random) -> bytes:
    """EXIF whose directory points out of itself, back at itself, or claims billions of values."""
    count, offset = _odd_number(generator), generator.choice((0, 8, _odd_number(generator)))
    entry = struct.pack(
        "<HHII", generator.choice((0x0112, 0x8769, 0x8825, 0x0201)), generator.randrange(14), count, offset
    )
    directory = struct.pack("<H", generator.choice((1, 2, 0xFFFF))) + entry * 2 + struct.pack("<I", offset)
    payload = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    parts = [part for part in split_jpeg(contents) if part[0] != b"\xff\xe1"]
    parts.insert(min(1, len(parts)), (b"\xff\xe1", struct.pack(">H", len(payload) + 2) + payload))
    return join_jpeg(parts)


PART_CHANGES = (_drop, _duplicate, _swap, _cut_part, _garble_part)
PNG_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_on_chunks(change) for change in PART_CHANGES),
    *(flip_bytes, cut_short, add_garbage, raw_length, raw_type, raw_checksum, huge_header, odd_header),
    *(palette_out_of_range, broken_stream, other_stream, pixel_bomb, text_bomb, odd_animation),
)
JPEG_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_on_segments(change) for change in PART_CHANGES),
    *(flip_bytes, cut_short, add_garbage, segment_length, frame_size, frame_kind, bad_tables, cut_scan),
    *(restart_markers, many_scans, nested_thumbnails, odd_exif),
)
