"""NIfTI volumes: any storage order, type and byte order gives the same slices; all else is refused in a line."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import pytest

from helpers.dicom_files import dicom
from helpers.limits import PIXELS, decode_and_measure, decode_mutations
from helpers.volumes import (
    CHANGES,
    brain,
    nifti,
    seeds,
    storage_orders,
    stored,
    volume_mutation,
    with_fields,
)
from twinbud.config.reading import Axis, Plane
from twinbud.core.errors import TwinbudError
from twinbud.data.formats import decoding, mapped, volume
from twinbud.data.formats import nifti as nifti_module
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import ImageFile, decode, read_file
from twinbud.data.formats.nifti import NiftiReader

NUM_MUTATIONS = 150
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def slices(contents: bytes, axis: Axis = "axial", volume: int | None = None, window: str | None = None) -> np.ndarray:
    """All slices of a file, (N, H, W, 3)."""
    plane = Plane(axis, volume)
    file = ImageFile(contents, max_megapixels=PIXELS, plane=plane)
    count = NiftiReader(plane).describe(contents).num_frames
    return np.stack([file.decode(frame, window, name="scan.nii") for frame in range(count)])


def refusal(contents: bytes, frame: int | None = 0, volume: int | None = None, window: str | None = None) -> str:
    """What is said of a file that must be refused."""
    with pytest.raises(BrokenImageError) as caught:
        decode(
            contents, name="scan.nii", max_megapixels=PIXELS, frame=frame, window=window, plane=Plane("axial", volume)
        )
    assert str(caught.value).startswith("scan.nii: the file ")
    return str(caught.value).removeprefix("scan.nii: the file ")


# What a file stands for


@pytest.mark.parametrize("axis", get_args(Axis))
def test_every_storage_order_gives_the_same_slices_bit_for_bit(axis: Axis) -> None:
    expected = slices(nifti(*stored(brain(), (0, 1, 2), (1, 1, 1))), axis)
    for axes, signs in storage_orders():
        samples, affine = stored(brain(), axes, signs)
        assert np.array_equal(slices(nifti(samples, affine), axis), expected), (axes, signs)
    assert not any(np.array_equal(np.flip(expected, place), expected) for place in range(3))  # it has no symmetry


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", ["NIfTI-1", "NIfTI-2"])
def test_every_type_byte_order_and_version_gives_the_same_slices(kind: str, endian: str) -> None:
    expected = slices(nifti(brain()))
    for name in TYPES:
        samples = brain(dtype=name)
        for packed in (False, True):
            assert np.array_equal(slices(nifti(samples, kind=kind, endian=endian, packed=packed)), expected), name


def test_the_values_are_those_of_nibabels_closest_canonical_image() -> None:
    """An oblique, scaled, left-handed volume: nibabel reorients and scales it, and numpy windows it."""
    turn = np.array([[-0.1, -0.8, 0.05], [0.2, -0.1, -2.9], [0.9, 0.1, 0.3]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    contents = nifti(brain(), affine, scaling=(0.5, -20.0), packed=True)
    values = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(gzip.decompress(contents))).get_fdata()
    shown = np.rint((np.clip(values, -10, 40) + 10) * (255 / 50))
    for index, image in enumerate(slices(contents, "axial", window="15,50")):
        assert np.array_equal(image[..., 0], shown[::-1, ::-1, index].T)
    for index, image in enumerate(slices(contents, "sagittal", window="15,50")):
        assert np.array_equal(image[..., 0], shown[index, ::-1, ::-1].T)


def test_the_sform_wins_over_the_qform_and_a_file_without_both_lies_as_nibabel_says() -> None:
    turned = np.diag([-1.0, -1, 1, 1])
    image = nibabel.Nifti1Image(brain(), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.set_qform(turned, 1)
    both = image.to_bytes()
    plain = slices(nifti(brain()))
    assert np.array_equal(slices(both), plain)
    assert np.array_equal(slices(with_fields(both, sform_code=0)), plain[:, ::-1, ::-1])
    neither = with_fields(both, sform_code=0, qform_code=0)
    assert nibabel.aff2axcodes(nibabel.Nifti1Image.from_bytes(neither).affine) == ("L", "A", "S")
    assert np.array_equal(slices(neither), plain[:, :, ::-1])


@pytest.mark.parametrize(
    ("axis", "columns", "rows"),
    [("axial", (1, 0, 0), (0, 1, 0)), ("coronal", (1, 0, 0), (0, 0, -1)), ("sagittal", (0, 1, 0), (0, 0, -1))],
)
def test_a_dicom_series_and_the_volume_made_of_it_are_the_same_images(
    axis: Axis, columns: tuple[int, int, int], rows: tuple[int, int, int]
) -> None:
    """Along DICOM's standard planes, which say where columns and rows go in LPS+, and from the same range of values."""
    pixels = np.random.default_rng(0).integers(100, 4000, (4, 6, 7)).astype(np.uint16)
    pixels[:, 0, :2] = 90, 4010
    affine = np.zeros((4, 4))
    x, y, z = columns, rows, tuple(np.abs(np.cross(columns, rows)))
    for place, direction in enumerate((x, y, z)):  # LPS+ to RAS+ turns the first two axes round
        affine[:3, place] = np.array(direction) * (-1, -1, 1)
    affine[3, 3] = 1
    volume = slices(nifti(pixels.transpose(2, 1, 0), affine, packed=True), axis, window="auto")
    upwards = affine[:3, 2].sum() > 0
    for index, image in enumerate(pixels if upwards else pixels[::-1]):
        alone = decode(dicom(image), name="slice.dcm", max_megapixels=1, window="auto")
        assert np.array_equal(alone, volume[index])


def test_a_scaled_file_is_the_file_of_its_values() -> None:
    samples = brain(dtype="u1")
    plain = slices(nifti(samples.astype("f4") * 4 - 1024), window="-900,300")
    assert np.array_equal(slices(nifti(samples, scaling=(4.0, -1024.0)), window="-900,300"), plain)
    unscaled = slices(nifti(samples))
    for slope in (0.0, float("nan"), float("inf")):  # by nibabel's rule no scaling
        assert np.array_equal(slices(nifti(samples, scaling=(slope, 7.0))), unscaled)
    assert "scl_inter is not finite" in refusal(nifti(samples, scaling=(1.0, float("inf"))))


def test_colors_stay_as_they_are() -> None:
    color = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    color["R"], color["B"] = np.arange(24).reshape(4, 3, 2), 9
    for packed in (False, True):
        read = slices(nifti(color, packed=packed))
        assert read.shape == (2, 3, 4, 3)
        for channel, name in enumerate("RGB"):
            assert np.array_equal(read[1, :, :, channel], color[name][::-1, ::-1, 1].T)


def test_one_range_holds_for_all_slices_of_a_volume() -> None:
    samples = np.zeros((4, 4, 10), np.int16)
    samples[...] = np.arange(1, 11)
    assert [image.max() for image in slices(nifti(samples))] == [0, 28, 57, 85, 113, 142, 170, 198, 227, 255]


def test_a_volume_of_a_time_series_is_the_file_of_that_volume() -> None:
    series = brain((9, 8, 7, 3))
    series[..., 2] *= 2
    for packed in (False, True):
        for number in range(3):
            expected = slices(nifti(series[..., number]))
            assert np.array_equal(slices(nifti(series, packed=packed), volume=number), expected)


def test_a_series_of_one_volume_and_a_single_slice_are_volumes() -> None:
    assert np.array_equal(slices(nifti(brain()[..., None])), slices(nifti(brain())))
    assert np.array_equal(slices(nifti(brain()[..., None, None])), slices(nifti(brain())))
    assert np.array_equal(slices(nifti(brain()[:, :, 3])), slices(nifti(brain()[:, :, 3:4])))


def test_auto_is_the_full_range_and_dicom_the_robust_one() -> None:
    samples = brain()
    samples[4, 4, 3] = 20_000
    bright = slices(nifti(samples), window="auto")
    assert np.count_nonzero(bright == 255) == 3
    assert np.array_equal(slices(nifti(samples), window="dicom"), slices(nifti(samples)))
    assert np.count_nonzero(slices(nifti(samples)) == 255) >= 3


# What is refused


def test_a_time_series_without_a_choice_of_its_volume_is_refused() -> None:
    text = refusal(nifti(brain((9, 8, 7, 3))))
    assert text.startswith(
        "holds 3 volumes (9×8×7×3 voxels). Save one of them as a 3-D file, or train with --volume 0 to 2"
    )
    assert "has no volume 3 (number of volumes: 3)" in refusal(nifti(brain((9, 8, 7, 3))), volume=3)
    fix = "Give files with a volume 3, or train with --volume 0 to 2"
    assert fix in refusal(nifti(brain((9, 8, 7, 3))), volume=3)
    assert "has no volume 1 (number of volumes: 1)" in refusal(nifti(brain()), volume=1)


def test_a_slice_that_is_not_there_is_refused() -> None:
    assert "has no frame 7 (number of frames: 7)" in refusal(nifti(brain()), frame=7)
    assert "holds 7 slices (9×8×7 voxels) instead of a single image" in refusal(nifti(brain()), frame=None)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"datatype": 32}, "holds complex samples (64 bits). Save it as"),
        ({"datatype": 1792}, "holds complex samples (128 bits). Save it as"),
        ({"datatype": 2304}, "holds RGBA samples. Save it as"),
        ({"datatype": 1536}, "holds 128-bit floating-point samples. Save it as"),
        ({"datatype": 1}, "holds 1-bit samples. Save it as"),
        ({"datatype": 99}, "holds samples of an unknown type (99). Save it as"),
        ({"dim_0": 5, "dim_5": 3}, "has 5 dimensions (9×8×7×1×3). Save the volumes to use as 3-D files"),
        ({"dim_0": 1}, "has a single dimension (9), so it is no image"),
        ({"dim_0": 0}, "has a damaged header (number of dimensions: 0)"),
        ({"dim_2": -4}, "has a damaged header (size in voxels: 9×-4×7)"),
        ({"intent_code": 3006}, "is a CIFTI file, whose values lie on surfaces instead of in images"),
        ({"intent_code": 1002}, "holds no image: it is a map of labels"),
        ({"vox_offset": 12}, "has a damaged header (vox_offset: 12)"),
        ({"vox_offset": np.nan}, "has a damaged header (vox_offset: nan)"),
        ({"vox_offset": 4096}, "is truncated"),
        ({"magic": b"ni1"}, "is half of a NIfTI-1 pair (.hdr and .img). Convert it with nibabel"),
        ({"magic": b""}, "is an ANALYZE 7.5 header (.hdr), which does not tell left from right. Convert it"),
        ({"srow_x": np.nan}, "has a damaged header (no valid orientation)"),
        ({"srow_x": 0}, "has a damaged header (its orientation leaves out an axis)"),
        ({"dim_3": 8}, "is truncated"),
        ({"dim_1": 6000, "dim_2": 6000, "dim_3": 32767}, "is truncated"),
        ({"dim_1": 6000, "dim_2": 6001}, "has 6000×6001 pixels (36.0 megapixels; the limit is 36)"),
    ],
)
def test_what_is_no_volume_is_refused_with_its_description(fields: dict[str, Any], reason: str) -> None:
    contents = nifti(brain(), **fields)
    assert refusal(contents).startswith(reason)
    if "vox_offset" not in fields and "dim_1" not in fields and "dim_3" not in fields:
        assert refusal(gzip.compress(contents)).startswith(reason)


def test_a_window_that_shows_nothing_is_refused_with_the_values() -> None:
    assert "is all black in the window bone (-500 to 1300)" not in refusal(nifti(brain()), window="4000,100")
    assert "is all black in the window 4000,100 (3950 to 4050): its values are 0 to " in refusal(
        nifti(brain()), window="4000,100"
    )
    assert "holds the same value in all voxels (0)" in refusal(nifti(np.zeros((4, 4, 4), np.int16)))


def test_a_damaged_or_truncated_stream_is_refused() -> None:
    packed = nifti(brain(dtype="f8"), packed=True)
    assert refusal(packed[: len(packed) // 2]).startswith("is truncated (its gzip stream has no end)")
    assert refusal(packed[:-8] + bytes(8)).startswith("is damaged (its gzip stream)")
    assert refusal(nifti(brain())[:-1]).startswith("is truncated (1359 of 1360 bytes for 9×8×7 voxels)")
    assert refusal(gzip.compress(nifti(brain())[:-1])).startswith("is truncated (1359 of 1360 bytes")


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    head = nifti(brain(), dim_1=6000, dim_2=6000, dim_3=30_000)[:352]
    bomb = gzip.compress(head) + gzip.compress(bytes(2**25), 9) * 8
    tracemalloc.start()
    try:
        assert "is too large: 2059937 MiB for 6000×6000×30000 voxels" in refusal(bomb)
        lie = gzip.compress(nifti(brain(), dim_1=1000, dim_2=1000, dim_3=1000)[:352])
        assert "is truncated (at most " in refusal(lie)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_packed_file_with_more_volumes_than_memory_is_read_up_to_the_one_that_is_chosen() -> None:
    contents = nifti(brain((9, 8, 7, 3)), packed=True)
    longer = gzip.compress(with_fields(gzip.decompress(contents), dim_4=30_000) + bytes(2**20))
    assert np.array_equal(slices(longer, volume=2), slices(contents, volume=2))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("axis", get_args(Axis))
def test_a_volume_too_large_for_the_memory_gives_the_same_slices(
    axis: Axis, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"scan.nii{'.gz' * packed}"
    path.write_bytes(nifti(*stored(brain(dtype="f4"), (1, 2, 0), (1, -1, 1)), packed=packed))
    expected = slices(path.read_bytes(), axis)
    assert isinstance(read_file(path, "scan"), bytes)
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(mapped, "_STEP", 64)
    monkeypatch.setattr(volume, "_PART", 50)
    monkeypatch.setattr(volume, "_RELEASED", 2)
    contents = read_file(path, "scan")
    assert not isinstance(contents, bytes)
    assert mapped.sha256(contents) == hashlib.sha256(path.read_bytes()).digest()
    file = ImageFile(contents, max_megapixels=PIXELS, plane=Plane(axis))
    assert np.array_equal([file.decode(frame, name="scan") for frame in range(len(expected))], expected)


def test_a_packed_volume_that_would_fill_the_memory_is_unpacked_to_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = nifti(brain((9, 8, 7, 3)), packed=True)
    expected = slices(packed, "coronal", volume=1)
    monkeypatch.setattr(nifti_module, "MAX_UNPACKED_BYTES", 1000)
    assert np.array_equal(slices(packed, "coronal", volume=1), expected)
    assert refusal(gzip.compress(nifti(brain())[:-1])).startswith("is truncated (1359 of 1360 bytes")
    assert refusal(nifti(brain(dtype="f8"), packed=True)[:-8] + bytes(8)).startswith("is damaged (its gzip stream)")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert "for which a temporary file cannot be written (No such file or directory)" in refusal(packed, volume=0)


def test_a_volume_of_300_mib_is_decoded_in_less_memory_than_it_has(tmp_path: Path) -> None:
    """A sparse file of zeros but for its last slice; the process that decodes it holds the libraries, too."""
    path, side = tmp_path / "large.nii", 1000
    path.write_bytes(nifti(np.zeros((8, 8, 8), np.uint8), dim_1=side, dim_2=side, dim_3=300)[:352])
    with path.open("r+b") as file:
        file.truncate(352 + 300 * side**2)
        file.seek(352 + 299 * side**2)
        file.write(bytes(range(256)) * (side**2 // 256))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        height, mib = pool.apply(decode_and_measure, (path, 150, Plane("coronal")))
    assert height == 300
    assert mib < 260


def test_a_large_slice_is_refused_before_it_is_decoded() -> None:
    contents = nifti(np.zeros((200, 100, 1), np.uint8))
    with pytest.raises(BrokenImageError, match="has 200×100 pixels"):
        decode(contents, name="scan.nii", max_megapixels=0.01, frame=0)


def test_without_nibabel_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = nifti(brain())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(
        TwinbudError, match=r'the package nibabel is not installed\. Run: pip install "twinbud\[nifti\]"'
    ):
        decode(contents, name="scan.nii", max_megapixels=PIXELS, frame=0)


# Cost


def test_the_volume_is_unpacked_once_for_all_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = nifti_module.open_volume
    monkeypatch.setattr(nifti_module, "open_volume", lambda *given: opened.append(1) or original(*given))
    assert len(slices(nifti(brain(), packed=True))) == 7
    assert len(opened) == 1


def test_damaged_volumes_become_pixels_or_are_refused_by_name() -> None:
    """No crash, no warning, no other exception, no file over 5 s or 512 MiB; ``make soak`` takes 5,000."""
    counts, failures = decode_mutations(range(NUM_MUTATIONS), volume_mutation)
    assert not failures, "\n".join(failures)
    assert min(counts["decoded"], counts["refused"]) > NUM_MUTATIONS / 10  # else the damage would prove nothing
    assert counts.total() == NUM_MUTATIONS


def test_a_volume_mutation_is_a_function_of_its_seed_and_all_kinds_occur() -> None:
    stories = " ".join(volume_mutation(seed).story for seed in range(NUM_MUTATIONS))
    assert [volume_mutation(seed).contents for seed in range(20)] == [
        volume_mutation(seed).contents for seed in range(20)
    ]
    assert all(change.__name__ in stories for change in CHANGES)
    assert all(name in stories for name in seeds())
