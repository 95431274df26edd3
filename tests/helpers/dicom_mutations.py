"""Sound DICOM files of every kind, and structure-aware damage to them: a pure function of a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from helpers.dicom_files import BIG_ENDIAN, IMPLICIT, JPEG, JPEG_12, LOSSLESS, dicom
from helpers.mutations import Mutation

_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC", b"UR", b"OL", b"OD", b"OV", b"SV", b"UV")
_NUMBERS = (0x0002, 0x0006, 0x0010, 0x0011, 0x0100, 0x0101, 0x0102, 0x0103)
"""Elements of group 0028 that say how pixels are stored."""
_EXTREMES = (0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 24, 32, 64, 255, 256, 4096, 32767, 32768, 65535)
_LENGTHS = (0, 1, 3, 255, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_SYNTAXES = (*LOSSLESS, JPEG, JPEG_12, "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.91", "1.2.3")
Element = tuple[int, int, int]
"""Offsets of an element's start, of its value, and of its end."""
Change = Callable[[bytes, random.Random], bytes]


def dicom_mutation(seed: int) -> Mutation:
    """The damaged file of a seed: a sound one, and one to three changes of its structure or its bytes."""
    generator = random.Random(seed)
    name = generator.choice(sorted(dicom_seeds()))
    contents, story = dicom_seeds()[name], [name]
    for _ in range(generator.choice((1, 1, 2, 3))):
        change = generator.choice(_CHANGES)
        contents = change(contents, generator) or b"\0"
        story.append(change.__name__)
    return Mutation(contents, f"seed {seed}: {' > '.join(story)}")


@cache
def dicom_seeds() -> dict[str, bytes]:
    """Sound files by name: gray, color, palette, several frames, tables and groups, in all lossless syntaxes."""
    ramp = np.add.outer(np.arange(40), np.arange(56))
    gray, color = (ramp * 40).astype(np.uint16), np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2).astype(np.uint8)
    window: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 1500, "RescaleSlope": 2, "RescaleIntercept": -10}
    files = {f"gray-{syntax}": dicom(gray, syntax, bits=12, **window) for syntax in LOSSLESS}
    files |= {f"color-{syntax}": dicom(color, syntax) for syntax in LOSSLESS}
    files["jpeg"], files["jpeg-12"] = dicom(ramp.astype(np.uint8), JPEG), dicom(gray, JPEG_12, bits=12)
    files["frames"] = dicom(np.stack([gray] * 3), frames=True, bits=12)
    files["signed"] = dicom(gray.astype(np.int16) - 500, PhotometricInterpretation="MONOCHROME1")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], (np.arange(256) * 255).tolist()
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    palette: dict[str, Any] = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(256))))
    }
    small = ramp.astype(np.uint8)
    files["palette"] = dicom(small, PhotometricInterpretation="PALETTE COLOR", **palette)
    files["tables"] = dicom(small, ModalityLUTSequence=Sequence([table]), VOILUTSequence=Sequence([table]))
    group, voi = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 100, 200
    group.FrameVOILUTSequence = Sequence([voi])
    groups: dict[str, Any] = {"PerFrameFunctionalGroupsSequence": Sequence([group] * 3)}
    files["groups"] = dicom(np.stack([gray] * 3), IMPLICIT, frames=True, **groups)
    files["bare"] = dicom(gray, preamble=False)
    files["bare-big"] = dicom(gray, BIG_ENDIAN, preamble=False)
    return files


def elements_of(contents: bytes) -> list[Element]:
    """The elements at the top of a file with explicit VR, as far as they can be followed; others have few."""
    place, found = (132, []) if contents[128:132] == b"DICM" else (0, [])
    while place + 12 <= len(contents):
        vr = contents[place + 4 : place + 6]
        if not (vr.isalpha() and vr.isupper()):
            break
        if vr in _LONG:
            start, length = place + 12, struct.unpack_from("<I", contents, place + 8)[0]
        else:
            start, length = place + 8, struct.unpack_from("<H", contents, place + 6)[0]
        end = len(contents) if length == 0xFFFFFFFF else min(start + length, len(contents))
        found.append((place, start, end))
        place = end
    return found or [(0, 0, len(contents))]


def _numbers(contents: bytes, generator: random.Random) -> bytes:
    chosen = generator.choice(_NUMBERS)
    tag = struct.pack("<HH", 0x0028, chosen)
    place = contents.find(tag + b"US")
    place = place + 8 if place >= 0 else contents.find(tag) + 8
    return contents[:place] + struct.pack("<H", generator.choice(_EXTREMES)) + contents[place + 2 :]


def _num_frames(contents: bytes, generator: random.Random) -> bytes:
    place = contents.find(b"\x28\0\x02\0")
    text = generator.choice([b"0 ", b"-1", b"2 ", b"99999999", b"1e300 ", b"nan ", b"4294967296", b"x "])
    element = b"\x28\0\x08\0IS" + struct.pack("<H", len(text)) + text
    return contents[:place] + element + contents[place:]


def _photometric(contents: bytes, generator: random.Random) -> bytes:
    names = (b"MONOCHROME1", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"PALETTE COLOR", b"YBR_ICT", b"ARGB", b"")
    old = next((name for name in (b"MONOCHROME2", b"RGB ", b"PALETTE COLOR") if name in contents), b"RGB")
    return contents.replace(old, generator.choice(names).ljust(len(old))[: len(old)], 1)


def _syntax(contents: bytes, generator: random.Random) -> bytes:
    place = contents.find(b"\x02\0\x10\0UI")
    if place < 0:
        return contents
    (length,) = struct.unpack_from("<H", contents, place + 6)
    uid = generator.choice(_SYNTAXES).encode()
    uid += b"\0" * (len(uid) % 2)
    return contents[: place + 6] + struct.pack("<H", len(uid)) + uid + contents[place + 8 + length :]


def _length(contents: bytes, generator: random.Random) -> bytes:
    place, start, _ = generator.choice(elements_of(contents))
    width = 4 if start - place == 12 else 2
    length = struct.pack("<I", generator.choice(_LENGTHS))[:width]
    return contents[: start - width] + length + contents[start:]


def _drop(contents: bytes, generator: random.Random) -> bytes:
    place, _, end = generator.choice(elements_of(contents))
    return contents[:place] + contents[end:]


_MAX_REPEATED_BYTES = 64 * 2**20


def _repeat(contents: bytes, generator: random.Random) -> bytes:
    """Repeat an element; one that is large already (nested by another change) less often: files are not that large."""
    place, _, end = generator.choice(elements_of(contents))
    count = min(generator.choice((1, 2, 500)), max(1, _MAX_REPEATED_BYTES // max(1, end - place)))
    return contents[:end] + contents[place:end] * count + contents[end:]


def _nest(contents: bytes, generator: random.Random) -> bytes:
    """Insert sequences in sequences, closed or not, of a tag that is read or of one that is not."""
    place, _, _ = generator.choice(elements_of(contents))
    tag = generator.choice((b"\x28\0\x00\x30", b"\x28\0\x10\x30", b"\x00\x52\x30\x92", b"\x09\0\x10\x10"))
    level = tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    depth = generator.choice((1, 10, 100, 5000, 50_000))
    return contents[:place] + level * depth + closing * generator.choice((0, depth)) + contents[place:]


def _many(contents: bytes, generator: random.Random) -> bytes:
    """Insert a great many small elements or empty items."""
    place, _, _ = generator.choice(elements_of(contents))
    item = generator.choice((b"\x09\0\x10\x10UN\0\0\0\0\0\0", b"\xfe\xff\x00\xe0\0\0\0\0", b"\x28\0\x50\x10DS\0\0"))
    return contents[:place] + item * generator.choice((10, 1000, 100_000)) + contents[place:]


def _truncate(contents: bytes, generator: random.Random) -> bytes:
    return contents[: generator.randrange(len(contents))]


def _flip(contents: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(contents)
    for _ in range(generator.choice((1, 1, 4, 64))):
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    return bytes(damaged)


def _flip_pixels(contents: bytes, generator: random.Random) -> bytes:
    """Change bytes of the pixel data, where the headers of compressed frames are."""
    start = max(contents.rfind(b"\xe0\x7f\x10\0"), 0)
    damaged = bytearray(contents)
    for _ in range(generator.choice((1, 2, 8))):
        damaged[generator.randrange(start, min(len(damaged), start + generator.choice((40, 200, 10_000))))] = (
            generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        )
    return bytes(damaged)


def _insert(contents: bytes, generator: random.Random) -> bytes:
    place = generator.randrange(len(contents))
    return contents[:place] + generator.randbytes(generator.choice((1, 2, 4, 300))) + contents[place:]


_CHANGES: tuple[Change, ...] = (
    _numbers, _numbers, _num_frames, _photometric, _syntax, _length, _length, _drop, _repeat, _nest, _many, _truncate,
    _flip, _flip, _flip_pixels, _flip_pixels, _insert,
)  # fmt: skip
