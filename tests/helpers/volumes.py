"""NIfTI files made by nibabel, which is not what reads their samples, and structure-aware damage to them."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from itertools import permutations, product
from typing import Any, Literal, get_args

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Extension

from helpers.mutations import Mutation, add_garbage, cut_short, flip_bytes
from twinbud.config.reading import Axis, Plane

KINDS: dict[str, Any] = {"NIfTI-1": nibabel.Nifti1Image, "NIfTI-2": nibabel.Nifti2Image}
_GZIP = b"\x1f\x8b"


def brain(shape: tuple[int, ...] = (9, 8, 7), dtype: str = "i2") -> np.ndarray:
    """A volume without symmetry in RAS+: a bright body of positive values on a background of zeros."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[:3]), indexing="ij")
    inside = (x - 0.1) ** 2 + y**2 + (z + 0.1) ** 2 < 0.9
    values = np.where(inside, 60 + 20 * x + 13 * y + 7 * z + np.random.default_rng(0).integers(0, 9, x.shape), 0)
    values = np.stack([values + step for step in range(shape[3])], axis=3) if len(shape) > 3 else values
    return np.floor(values).astype(dtype)


def nifti(
    samples: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    kind: str = "NIfTI-1",
    endian: str = "<",
    packed: bool = False,
    scaling: tuple[float, float] | None = None,
    extension: bytes = b"",
    **fields: Any,
) -> bytes:
    """The bytes of a NIfTI file.

    Args:
        samples: Samples as they are stored.
        affine: From voxels to RAS+; None for the identity.
        kind: A name of ``KINDS``.
        endian: Byte order, ``<`` or ``>``.
        packed: Whether to compress with gzip.
        scaling: Slope and intercept, written into the header without a change of the samples.
        extension: Content of a header extension of type "comment".
        fields: Other fields of the header, set in the finished file.
    """
    image_type = KINDS[kind]
    header = image_type.header_class(endianness=endian)
    header.set_data_dtype(samples.dtype)
    image = image_type(samples, np.eye(4) if affine is None else affine, header=header)
    if extension:
        image.header.extensions.append(Nifti1Extension("comment", extension))
    contents = image.to_bytes()
    values = dict(zip(("scl_slope", "scl_inter"), scaling, strict=True)) if scaling else {}
    contents = with_fields(contents, **values, **fields)
    return gzip.compress(contents, 1) if packed else contents


def with_fields(contents: bytes, **fields: Any) -> bytes:
    """The file, not compressed, with some fields of its header set; an index follows the name: ``dim_4=2``."""
    dtype = header_type(contents)
    head = np.frombuffer(contents[: dtype.itemsize], dtype).copy()
    with np.errstate(all="ignore"):
        for name, value in fields.items():
            field, _, index = name.rpartition("_")
            if name in (dtype.names or ()):
                head[name] = value
            else:
                head[field][0, int(index)] = value
    return head.tobytes() + contents[dtype.itemsize :]


def header_type(contents: bytes) -> np.dtype[Any]:
    """The layout of a file's header, in its byte order."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = struct.unpack(f"{order}i", contents[:4])[0] if len(contents) >= 4 else 0
        if size in (348, 540):
            header = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
            return header.template_dtype.newbyteorder(order)
    return nibabel.Nifti1Header.template_dtype


def storage_orders() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All 48 ways to store three axes: which axis of RAS+ each stored axis is, and its direction."""
    return [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def stored(volume: np.ndarray, axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A RAS+ volume in another storage order, and its affine, with other spacings along each axis."""
    samples = np.transpose(volume, (*axes, *range(3, volume.ndim)))
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for place, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        spacing = (0.5, 0.8, 3.0)[axis]
        affine[axis, place] = sign * spacing
        if sign < 0:
            samples = np.flip(samples, place)
            affine[axis, 3] = spacing * (samples.shape[place] - 1)
    return samples, affine


# Damage

Change = Callable[[bytes, random.Random], bytes]


def volume_mutation(seed: int) -> Mutation:
    """The damaged file of a seed: a sound one, and one to three changes of its structure or its bytes."""
    generator = random.Random(seed)
    name = generator.choice(sorted(seeds()))
    contents = seeds()[name]
    story = [name]
    for _ in range(generator.choice((1, 1, 2, 3))):
        change = generator.choice(CHANGES)
        contents = change(contents, generator)
        story.append(change.__name__)
    plane = Plane(generator.choice(get_args(Axis)), generator.choice((None, 0, 0, 0)))
    return Mutation(contents, f"seed {seed}: {' > '.join(story)}", generator.randrange(7), plane)


@cache
def seeds() -> dict[str, bytes]:
    """Sound files of every kind, by name."""
    color = np.zeros((9, 8, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    color["R"], color["G"] = brain(dtype="u1"), 7
    oblique = np.array([[0.8, -0.6, 0, 4], [0.6, 0.8, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1]])
    return {
        "int16": nifti(brain()),
        "float32-gz": nifti(brain(dtype="f4"), oblique, packed=True),
        "float64-big": nifti(brain(dtype="f8"), endian=">"),
        "nifti2-gz": nifti(brain(dtype="u4"), kind="NIfTI-2", packed=True),
        "nifti2-big": nifti(brain(dtype="i8"), kind="NIfTI-2", endian=">", scaling=(0.5, -3.0)),
        "scaled": nifti(brain(dtype="u1"), scaling=(2.0, -1024.0), sform_code=0, qform_code=1),
        "rgb": nifti(color),
        "time-gz": nifti(brain((9, 8, 7, 3)), packed=True),
        "extension": nifti(brain(), extension=b"words of no interest" * 9),
        "pair": nifti(brain(), magic=b"ni1"),
    }


def _inside(change: Change) -> Change:
    """Apply a change to the unpacked file; a gzip stream that is damaged, or a bomb, stays as it is."""

    def changed(contents: bytes, generator: random.Random) -> bytes:
        if not contents.startswith(_GZIP):
            return change(contents, generator)
        unpacking = zlib.decompressobj(wbits=31)
        try:
            unpacked = unpacking.decompress(contents, 2**20)
        except zlib.error:
            return contents
        return gzip.compress(change(unpacked, generator), 1) if unpacking.eof else contents

    changed.__name__ = change.__name__.strip("_")
    return changed


def _odd(generator: random.Random) -> float:
    numbers = (0, 1, -1, 2, 7, 8, 348, 352, 540, 3000, 32767, -32768, 65535, 2**31 - 1, 1e-40, 1e38, -1e38)
    return generator.choice((*numbers, float("nan"), float("inf"), float("-inf"), generator.randrange(2**15)))


@_inside
def _odd_field(contents: bytes, generator: random.Random) -> bytes:
    """One number of the header set to another, by its name."""
    dtype = header_type(contents)
    if len(contents) < dtype.itemsize:
        return contents
    head = np.frombuffer(contents[: dtype.itemsize], dtype).copy()
    with np.errstate(all="ignore"):
        field = head[generator.choice([name for name in dtype.names or () if head[name].dtype.kind in "iuf"])]
        place = generator.randrange(field.size)
        value = _odd(generator)
        if field.dtype.kind in "iu":
            limits = np.iinfo(field.dtype)
            value = min(max(int(value), int(limits.min)), int(limits.max)) if np.isfinite(value) else limits.max
        field.reshape(-1)[place] = value
    return head.tobytes() + contents[dtype.itemsize :]


@_inside
def _huge_dimensions(contents: bytes, generator: random.Random) -> bytes:
    dtype = header_type(contents)
    if len(contents) < dtype.itemsize:
        return contents
    sizes = (1, 2, 9, 512, 6000, 32767)
    fields = {f"dim_{place}": generator.choice(sizes) for place in range(1, generator.choice((4, 5, 8)))}
    return with_fields(contents, dim_0=generator.choice((3, 3, 4, 5, 7)), **fields)


@_inside
def _odd_type(contents: bytes, generator: random.Random) -> bytes:
    """Another type of samples, so that a volume takes more or less bytes than there are."""
    codes = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 5)
    is_short = len(contents) < header_type(contents).itemsize
    return contents if is_short else with_fields(contents, datatype=generator.choice(codes))


@_inside
def _odd_offset(contents: bytes, generator: random.Random) -> bytes:
    places = (0, 1, 347, 352, 353, 544, len(contents), 2**20, 2**31, 2**40, -352)
    is_short = len(contents) < header_type(contents).itemsize
    return contents if is_short else with_fields(contents, vox_offset=generator.choice(places))


@_inside
def _odd_samples(contents: bytes, generator: random.Random) -> bytes:
    """Samples that are all equal, not finite, huge or garbled."""
    size = header_type(contents).itemsize + 4
    kinds = (b"\0", b"\xff", struct.pack("<f", float("nan")), struct.pack("<d", 1.7e308), struct.pack(">f", 1e38))
    filling = generator.choice(kinds)
    length = len(contents) - size
    if length <= 0:
        return contents
    body = (
        generator.randbytes(length) if generator.random() < 0.2 else (filling * (length // len(filling) + 1))[:length]
    )
    return contents[:size] + body


@_inside
def _half_swapped(contents: bytes, generator: random.Random) -> bytes:
    """The header in the other byte order, without or with its first field."""
    dtype = header_type(contents)
    if len(contents) < dtype.itemsize:
        return contents
    head = np.frombuffer(contents[: dtype.itemsize], dtype).byteswap().tobytes()
    start = generator.choice((0, 4))
    return contents[:start] + head[start:] + contents[dtype.itemsize :]


@_inside
def _extension_bomb(contents: bytes, generator: random.Random) -> bytes:
    """An extension whose length is wrong, and the flag that announces it."""
    size = header_type(contents).itemsize
    length = generator.choice((0, 8, 15, 2**31 - 1, -1))
    return contents[:size] + b"\1\0\0\0" + struct.pack("<ii", length, 6) + contents[size + 12 :]


def gzip_bomb(_: bytes, generator: random.Random) -> bytes:
    """A header that asks for a large volume, some near the limit, and few values that unpack to more or less of it."""
    side, depth = generator.choice((64, 500, 600, 1200)), generator.choice((200, 500, 30_000))
    head = with_fields(nifti(brain()), dim_1=side, dim_2=side, dim_3=depth)
    return gzip.compress(head[:352], 1) + _few_values() * generator.choice((1, 4, 16))


def broken_stream(contents: bytes, generator: random.Random) -> bytes:
    """The gzip stream damaged, cut, or with another one behind it."""
    packed = contents if contents.startswith(_GZIP) else gzip.compress(contents, 1)
    garbage = generator.choice((b"\0" * 512, b"\x1f\x8b\x08" + bytes(20), gzip.compress(b"more")))
    return generator.choice((flip_bytes, cut_short, lambda whole, _: whole + garbage))(packed, generator)


def packed_twice(contents: bytes, generator: random.Random) -> bytes:
    return gzip.compress(contents, generator.choice((0, 9)))


@cache
def _few_values() -> bytes:
    """A gzip member of 32 MiB, nearly all zeros, in 32 KiB."""
    return gzip.compress(bytes(2**25 - 8) + b"\1\2" * 4, 9)


CHANGES: tuple[Change, ...] = (
    *(_odd_field, _odd_field, _odd_field, _huge_dimensions, _odd_type, _odd_offset, _odd_samples, _half_swapped),
    *(_extension_bomb, gzip_bomb, broken_stream, packed_twice),
    *(_inside(flip_bytes), _inside(cut_short), _inside(add_garbage)),
)
