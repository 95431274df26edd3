"""Decoding is a border: whatever comes as an image file becomes pixels, or is refused by its name."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from helpers.command import refusal, twinbud
from helpers.limits import MAX_MIB, PIXELS, decode_mutations, judge
from helpers.mutations import (
    JPEG_CHANGES,
    PNG_CHANGES,
    SIGNATURE,
    chunk,
    join_jpeg,
    mutation,
    seeds,
    split_jpeg,
    split_png,
)
from twinbud.data.formats import decoding as decoding_module
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import decode
from twinbud.data.image_store import load_images
from twinbud.data.index import ImageRef

NUM_MUTATIONS = 300


def refused(contents: bytes, max_megapixels: float = PIXELS) -> str:
    """What ``decode`` says of a file that it must refuse."""
    with pytest.raises(BrokenImageError) as caught:
        decode(contents, name="scan.png", max_megapixels=max_megapixels)
    assert str(caught.value).startswith("scan.png: the file ")
    return str(caught.value)


def test_damaged_png_and_jpeg_files_become_pixels_or_are_refused_by_name() -> None:
    """No crash, no warning, no other exception, no file over 5 s or 512 MiB; ``make soak`` takes 10,000."""
    counts, failures = decode_mutations(range(NUM_MUTATIONS))
    assert not failures, "\n".join(failures)
    assert min(counts["decoded"], counts["refused"]) > NUM_MUTATIONS / 10  # else the damage would prove nothing
    assert counts.total() == NUM_MUTATIONS


def test_a_mutation_is_a_function_of_its_seed_and_all_kinds_occur() -> None:
    stories = " ".join(mutation(seed).story for seed in range(NUM_MUTATIONS))
    assert [mutation(seed) for seed in range(20)] == [mutation(seed) for seed in range(20)]
    assert len({mutation(seed).contents for seed in range(NUM_MUTATIONS)}) > 0.9 * NUM_MUTATIONS
    assert all(change.__name__ in stories for change in (*PNG_CHANGES, *JPEG_CHANGES))
    assert all(name in stories for name in seeds())


def test_the_seeds_are_sound_and_their_parts_put_together_are_the_file() -> None:
    for name, contents in seeds().items():
        again = join(name, contents)
        assert again == contents, name
        expected = "refused" if name == "png-animated" else "decoded"
        assert judge(contents, "scan.png") == expected, name


def join(name: str, contents: bytes) -> bytes:
    if name.startswith("jpeg"):
        return join_jpeg(split_jpeg(contents))
    return SIGNATURE + b"".join(chunk(kind, data) for kind, data in split_png(contents))


def test_an_interlaced_png_is_read_like_a_plain_one() -> None:
    buffer = BytesIO()
    image = decode(seeds()["png-interlaced"], name="", max_megapixels=1)
    Image.fromarray(image).save(buffer, "PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), name="", max_megapixels=1), image)
    np.testing.assert_array_equal(decode(seeds()["png-rgb"], name="", max_megapixels=1), np.rot90(image, -1))


def tiff(frames: int, side: int = 1) -> bytes:
    """A TIFF of one gray strip and a chain of directories, each with a place for the next."""
    entries = (
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, side), (279, 4, side * side),
    )  # fmt: skip
    size = 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    chain = b"".join(
        directory + struct.pack("<I", 8 + size * number if number < frames else 0) for number in range(1, frames + 1)
    )
    return b"II*\0" + struct.pack("<I", 8) + chain


DISGUISED: dict[str, bytes] = {
    "Photoshop": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 40, 40, 8, 3) + bytes(5000),
    "GD": b"\xff\xff" + struct.pack(">HHBI", 40, 40, 1, 0xFFFFFFFF) + bytes(6400),
    "GD2": b"gd2\0" + struct.pack(">HHHHHHH", 2, 40, 40, 64, 1, 1, 1) + bytes(500),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n(%pipe%touch canary) (w) file\n",
    "EPS behind a DOS header": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<IIIIIIH", 30, 200, 0, 0, 0, 0, 0xFFFF)
    + b"%!PS" * 50,
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 40, 40, 0, 0, 0) + b";",
    "PDF": b"%PDF-1.7\n1 0 obj\n<< /OpenAction << /S /Launch >> >>\nendobj\n",
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "ICO": struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 100, 22) + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(100),
    "NumPy": b"\x93NUMPY\x01\0" + bytes(100),
    "pickle": b"cos\nsystem\n(S'touch canary'\ntR.",
    "ZIP": b"PK\x03\x04" + bytes(100),
    "RIFF that is a sound": b"RIFF\x24\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("contents", DISGUISED.values(), ids=DISGUISED)
def test_a_file_in_disguise_is_refused_by_name(contents: bytes) -> None:
    assert re.search(r"the file is not a PNG, JPEG, [^.]* or \w+ image\.", refused(contents))


@pytest.mark.parametrize("signature", [SIGNATURE, b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF0000WEBP"])
@pytest.mark.parametrize("filling", [b"", b"\0", b"\xff", b"%!PS\n"])
def test_a_signature_and_nothing_behind_it_is_refused(signature: bytes, filling: bytes) -> None:
    assert judge(signature + filling * 3000, "scan.png") == "refused"


def test_a_tiff_bomb_named_png_is_refused() -> None:
    assert "has 8000×8000 pixels (64.0 megapixels" in refused(tiff(1, 8000))
    assert "holds 1000 or more pages" in refused(tiff(100_000))


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    parts = split_jpeg(seeds()["jpeg-progressive"])
    large = [
        (marker, data[:3] + struct.pack(">HH", 5999, 5999) + data[7:] if marker == b"\xff\xc2" else data)
        for marker, data in parts
    ]
    last = max(place for place, (marker, _) in enumerate(large) if marker == b"\xff\xda")
    bomb = join_jpeg([*large[:last], *large[last : last + 2] * 5000, *large[last + 2 :]])
    assert "holds 50" in refused(bomb)
    assert judge(join_jpeg(parts) + b"\xff\xda" * 200, "scan.png") == "decoded"  # such bytes mean nothing there


@pytest.mark.parametrize("kind", ["gray", "RGB", "alpha", "palette", "16-bit", "progressive", "turned"])
def test_the_largest_image_that_is_taken_stays_within_the_memory(kind: str, tmp_path: Path) -> None:
    """In a process of its own: 5,999 × 5,999 pixels of the kinds that cost most."""
    modes = {"gray": "L", "alpha": "RGBA", "palette": "P", "16-bit": "I;16"}
    jpeg = kind in ("progressive", "turned")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from helpers.limits import judge, peak_mib
print(judge(Path(sys.argv[1]).read_bytes(), "scan"), peak_mib())
"""
    file = tmp_path / "large"
    image = Image.new(modes.get(kind, "RGB"), (5999, 5999))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(
        file,
        "JPEG" if jpeg else "PNG",
        **({"progressive": kind == "progressive", "subsampling": 0, "exif": exif} if jpeg else {"compress_level": 1}),
    )
    image.close()
    answer = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=True)
    verdict, mib = answer.stdout.split()
    assert verdict == "decoded"
    assert float(mib) <= MAX_MIB


def test_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 6001, 6000, 8, 0, 0, 0, 0)
    bomb = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert "has 6001×6000 pixels (36.0 megapixels; the limit is 36)" in refused(bomb)


def test_bytes_are_counted_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    with file.open("wb") as sparse:
        sparse.write(SIGNATURE)
        sparse.truncate(decoding_module.MAX_FILE_BYTES + 1)
    with pytest.raises(BrokenImageError, match=r"^x\.png: the file is larger than 208 MiB"):
        decode(file, name="x.png", max_megapixels=PIXELS)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


STRANGE = {
    "a pipe": pipe,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "the terminal's input": lambda path: path.symlink_to("/dev/stdin"),
    "a loop of links": loop,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_what_is_no_file_is_refused_by_name_and_not_waited_for(make: object, tmp_path: Path, shared_run: Path) -> None:
    assert callable(make)
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    make(tmp_path / "images" / "x.png")
    with pytest.raises(BrokenImageError, match=r"^x: the file (cannot be opened|does not exist)"):
        decode(tmp_path / "images" / "x.png", name="x", max_megapixels=PIXELS)
    line = refusal(twinbud("predict", shared_run, tmp_path / "images"))
    assert line.startswith(f"{tmp_path}/images/x.png: the file ")
    answer = twinbud("predict", shared_run, tmp_path / "images", "--skip-broken")
    assert answer.code == 0
    assert f"left out: {tmp_path}/images/x.png (" in answer.err


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path, shared_run: Path) -> None:
    (tmp_path / "images" / "x.png").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "x.png" / "a.png")
    (tmp_path / "images" / "x.png" / "again").symlink_to(tmp_path / "images")
    with pytest.raises(BrokenImageError, match="the file cannot be opened"):
        decode(tmp_path / "images" / "x.png", name="x.png", max_megapixels=PIXELS)
    answer = twinbud("predict", shared_run, tmp_path / "images")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2


def test_damaged_metadata_is_no_ones_business(tmp_path: Path) -> None:
    """Pillow warns of EXIF that it cannot read; warnings are errors in these tests."""
    contents = seeds()["jpeg-exif"]
    place = contents.index(b"MM\0*")
    damaged = contents[: place + 8] + struct.pack(">HHHII", 2, 0x0112, 3, 2**31, 2**31) + contents[place + 22 :]
    (tmp_path / "a.jpg").write_bytes(damaged)
    pixels, broken = load_images([ImageRef(tmp_path / "a.jpg")], image_size=8, max_megapixels=1, skip_broken=False)
    assert (len(pixels), broken) == (1, {})
