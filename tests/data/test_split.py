"""No patient and no picture on two sides; fractions nested; the same split whatever the disk's order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.folds import connected_groups
from twinbud.data.index import ImageIndex, ImageRef, ImageRow
from twinbud.data.split import Split, check_split_file, fingerprint, make_split
from twinbud.data.split_file import SPLIT_COLUMNS, read_split, write_split
from twinbud.data.split_notes import NO_PATIENTS


def index_of(labels: str, patients: list[Any] | None = None, splits: list[Any] | None = None) -> ImageIndex:
    rows = [
        ImageRow(
            path=f"{number:05d}.png",
            image=ImageRef(Path(f"{number:05d}.png")),
            label=label,
            patient_id=None if patients is None or patients[number] is None else str(patients[number]),
            split=None if splits is None else splits[number],
        )
        for number, label in enumerate(labels)
    ]
    return ImageIndex(source="data", rows=tuple(rows), classes=tuple(sorted(set(labels))))


def unique(image_index: ImageIndex) -> list[str]:
    return [row.path for row in image_index.rows]


def split_of(
    image_index: ImageIndex,
    digests: list[str] | None = None,
    *,
    seed: int = 0,
    blank: Collection[str] = (),
    near_pairs: Sequence[tuple[int, int]] = (),
    **changes: Any,
) -> Split:
    digests = digests or unique(image_index)
    return make_split(image_index, digests, DataConfig(**changes), seed=seed, blank=blank, near_pairs=near_pairs)


def save_split(path: Path, image_index: ImageIndex, split: Split) -> None:
    write_split(path, split.rows(image_index, unique(image_index)))


def counts(image_index: ImageIndex, indices: tuple[int, ...]) -> Counter[str]:
    return Counter(image_index.rows[index].label for index in indices)


SETS = st.integers(2, 4).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.integers(0, 30), st.integers(0, 40)), min_size=4, max_size=80
    )
)
"""(class, patient, picture) of each image."""


@settings(max_examples=150, deadline=None)
@given(images=SETS, by_patient=st.booleans(), split_seed=st.integers(0, 5))
def test_no_patient_and_no_picture_is_in_two_parts(
    images: list[tuple[int, int, int]], by_patient: bool, split_seed: int
) -> None:
    image_index = index_of(
        "".join("abcd"[image[0]] for image in images), [image[1] for image in images] if by_patient else None
    )
    digests = [str(image[2]) for image in images]
    try:
        split = split_of(image_index, digests, split_seed=split_seed)
    except TwinbudError:
        return  # one class, or one that cannot be divided: these have tests of their own
    assert sorted(split.train + split.test) == list(range(len(images)))
    assert set(counts(image_index, split.train)) == set(counts(image_index, split.test)) == set(image_index.classes)
    for kind in [1, 2] if by_patient else [2]:
        sides = [{images[index][kind] for index in part} for part in (split.train, split.test)]
        assert not sides[0] & sides[1]
    assert split.by_patient == by_patient


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=2, max_size=4), split_seed=st.integers(0, 5))
def test_every_class_of_two_images_or_more_is_on_both_sides(sizes: list[int], split_seed: int) -> None:
    image_index = index_of("".join(name * size for name, size in zip("abcd", sizes, strict=False)))
    split = split_of(image_index, split_seed=split_seed)
    for name, size in zip("abcd", sizes, strict=False):
        in_test = counts(image_index, split.test)[name]
        assert 1 <= in_test < size
        assert max(sizes) < 5 or abs(in_test - size / 5) <= 1


def test_the_split_is_stratified_80_20() -> None:
    image_index = index_of("a" * 100 + "b" * 50 + "c" * 10)
    assert counts(image_index, split_of(image_index).test) == {"a": 20, "b": 10, "c": 2}


def test_groups_are_chains_of_patients_and_pictures() -> None:
    groups = connected_groups(["p", "p", "q", "r", "s"], ["1", "2", "2", "3", "3"])
    np.testing.assert_array_equal(groups, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(connected_groups(["x", "y"], ["y", "x"]), [0, 1])


def test_a_patient_and_a_duplicate_together_bind_a_chain() -> None:
    image_index = index_of("ab" * 20, [number // 2 for number in range(40)])
    digests = unique(image_index)
    digests[3] = digests[0]  # patients 0 and 1 share a picture
    for split_seed in range(5):
        split = split_of(image_index, digests, split_seed=split_seed)
        assert len({index in split.test for index in range(4)}) == 1


def test_split_duplicates_drops_the_pictures_and_keeps_the_patients() -> None:
    image_index = index_of("ab" * 50)
    digests = [str(number // 2 // 2) for number in range(100)]
    plain = split_of(image_index, digests, split_duplicates=True)
    assert plain.train == split_of(image_index).train
    assert any("in more than one part, because --split-duplicates is set" in note for note in plain.notes)
    patients = [number // 4 for number in range(100)]
    split = split_of(index_of("ab" * 50, patients), digests, split_duplicates=True)
    assert not {patients[index] for index in split.train} & {patients[index] for index in split.test}


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    image_index = index_of("ab" * 30, [number // 3 for number in range(60)])
    shuffled = replace(image_index, rows=tuple(reversed(image_index.rows)))
    assert shuffled == image_index
    assert split_of(shuffled) == split_of(image_index)


def test_the_split_depends_on_split_seed_and_the_labels_used_on_seed() -> None:
    image_index = index_of("ab" * 50)
    first = split_of(image_index, fraction=0.2)
    assert split_of(image_index, fraction=0.2) == first
    other = split_of(image_index, fraction=0.2, seed=1)
    assert other.train == first.train
    assert other.labelled != first.labelled
    assert split_of(image_index, split_seed=1).test != first.test


@pytest.mark.parametrize("subset", ["stratified", "plain"])
def test_fractions_are_nested(subset: str) -> None:
    image_index = index_of("a" * 200 + "b" * 90 + "c" * 20)
    fractions = (0.02, 0.05, 0.1, 0.5, 1.0)
    splits = [split_of(image_index, fraction=fraction, subset=subset, seed=0) for fraction in fractions]
    for small, large in itertools.pairwise(splits):
        assert set(small.labelled) < set(large.labelled) <= set(large.train)
    assert splits[-1].labelled == splits[-1].train


def test_a_stratified_fraction_keeps_every_class() -> None:
    image_index = index_of("a" * 200 + "b" * 90 + "c" * 20)
    assert counts(image_index, split_of(image_index, fraction=0.01).labelled) == {"a": 2, "b": 1, "c": 1}
    assert counts(image_index, split_of(image_index, fraction=0.1).labelled) == {"a": 16, "b": 7, "c": 2}


def test_a_plain_fraction_takes_its_share_of_all() -> None:
    image_index = index_of("a" * 200 + "b" * 200)
    assert len(split_of(image_index, fraction=0.1, subset="plain").labelled) == 32


def test_a_plain_fraction_of_one_class_is_an_error() -> None:
    image_index = index_of("a" * 20 + "b" * 20)
    with pytest.raises(TwinbudError) as caught:
        split_of(image_index, fraction=0.01, subset="plain")
    assert "--fraction 0.01 --subset plain --seed 0: the labelled images (1) are all of class 'b'" in str(caught.value)
    assert "Give a larger --fraction, or --subset stratified." in str(caught.value)


def test_a_class_of_one_patient_cannot_be_split() -> None:
    image_index = index_of("a" * 10 + "b" * 5, [*range(10), 77, 77, 77, 77, 77])
    with pytest.raises(TwinbudError) as caught:
        split_of(image_index)
    assert str(caught.value) == (
        "data: the 5 images of class 'b' are all of patient '77', who cannot be in both train and test. "
        "Add images of other patients, leave the class out, or give a split that has the class in train only."
    )


def test_all_images_of_one_patient_cannot_be_split() -> None:
    with pytest.raises(TwinbudError, match="the 2 images of class 'a' are all of patient '1'"):
        split_of(index_of("aabb", [1, 1, 1, 1]))


def test_a_given_split_is_kept_and_val_is_never_trained_on() -> None:
    image_index = index_of("ab" * 6, splits=["train"] * 6 + ["val"] * 2 + ["test"] * 4)
    split = split_of(image_index)
    assert (split.train, split.val, split.test) == ((0, 1, 2, 3, 4, 5), (6, 7), (8, 9, 10, 11))
    assert split.given
    assert set(split.labelled) <= set(split.train)
    assert "the split is the one given" in split.notes


def test_duplicates_across_a_given_split_are_counted() -> None:
    image_index = index_of("abababab", splits=["train"] * 4 + ["test"] * 4)
    digests = ["0", "1", "2", "0", "0", "1", "6", "7"]
    split = split_of(image_index, digests)
    assert split.notes == (
        NO_PATIENTS,
        "the split is the one given",
        "2 groups of identical images found (3 extra copies): 2 of them in more than one part, as in the given split",
        "1 group of identical images with different labels",
    )


def test_a_given_train_part_without_test_gives_a_fifth_of_itself() -> None:
    patients = [number // 2 for number in range(40)]
    image_index = index_of("aabb" * 10, patients, ["train"] * 32 + ["val"] * 8)
    split = split_of(image_index)
    assert split.val == tuple(range(32, 40))
    assert len(split.test) == 6
    assert sorted(split.train + split.test) == list(range(32))
    assert not {patients[index] for index in split.train} & {patients[index] for index in split.test}
    assert "the given split has no test part: a fifth of its train part became one" in split.notes


def test_a_class_that_a_given_test_part_lacks_is_noted() -> None:
    split = split_of(index_of("abcabab", splits=["train"] * 5 + ["test"] * 2))
    assert "the given test part has no image of c" in split.notes


def test_notes_say_what_was_done() -> None:
    assert split_of(index_of("ab" * 10)).notes == (NO_PATIENTS, "0 groups of identical images found")
    image_index = index_of("ab" * 10, [*range(18), None, None])
    digests = [*unique(image_index)[:-1], unique(image_index)[1]]
    assert split_of(image_index, digests).notes == (
        "split by patient: no patient is in two parts (18 patients)",
        "the patient of 2 images is not known: each counts as a patient of its own",
        "1 group of identical images found (1 extra copy): each group is in one part only",
    )
    assert NO_PATIENTS == "no patient column: split by image, figures may be optimistic"


def test_a_split_file_gives_the_same_split_back(tmp_path: Path) -> None:
    image_index = index_of("ab" * 20, [f"p;{number // 2}" for number in range(40)])
    split = split_of(image_index, fraction=0.3)
    file = tmp_path / "split.csv"
    save_split(file, image_index, split)
    assert tuple(file.read_text("utf-8").splitlines()[0].split(",")) == SPLIT_COLUMNS
    rows = read_split(file)
    assert [row.image_path for row in rows] == unique(image_index)
    assert [row.digest for row in rows] == unique(image_index)
    assert [row.patient_id for row in rows] == [row.patient_id for row in image_index.rows]
    assert [index for index, row in enumerate(rows) if row.labelled] == list(split.labelled)
    again = split_of(image_index, split=file, fraction=0.3, split_seed=9)
    assert again.given
    assert (again.train, again.val, again.test, again.labelled) == (split.train, (), split.test, split.labelled)
    given_otherwise = index_of("ab" * 20, splits=["train"] * 30 + ["test"] * 10)
    assert split_of(given_otherwise, split=file).test == split.test


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    image_index = index_of("ab" * 4)
    save_split(tmp_path / "split.csv", image_index, split_of(image_index))
    return tmp_path / "split.csv"


def test_paths_missing_on_either_side_of_a_split_file_are_named(split_file: Path) -> None:
    text = split_file.read_text("utf-8").replace("00003.png", "moved.png")
    split_file.write_text(text, "utf-8")
    with pytest.raises(TwinbudError) as caught:
        split_of(index_of("ab" * 4), split=split_file)
    assert str(caught.value) == (
        f"--split {split_file} for data: the data lacks images of the split ('moved.png') and the split lacks images "
        "of the data ('00003.png'). Give the split of the same data, or leave out --split."
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("image_path", "file", "missing columns: 'image_path' (the header has 'file', 'label', 'patient_id'"),
        ("00003.png", "00002.png", "row 5: the image '00002.png' appears a second time."),
        (",train,", ",,", "column 'split' is blank. Write train, val or test."),
        (",train,", ",learn,", "column 'split': 'learn' is not the name of a part. Write one of train, training"),
    ],
)
def test_a_wrong_split_file_is_an_error(split_file: Path, old: str, new: str, expected: str) -> None:
    split_file.write_text(split_file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(TwinbudError) as caught:
        read_split(split_file)
    assert expected in str(caught.value)


def test_a_missing_split_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"the CSV cannot be read \(No such file or directory\)\. Check the path\."):
        split_of(index_of("aabb"), split=tmp_path / "none.csv")


@pytest.mark.parametrize("skip_broken", [False, True])
def test_a_split_file_is_checked_before_anything_is_decoded(split_file: Path, skip_broken: bool) -> None:
    """Images that are not in it may yet be left out as broken, so that with --skip-broken they are no error yet."""
    more = index_of("ab" * 4 + "a")
    config = DataConfig(split=split_file, skip_broken=skip_broken)
    if skip_broken:
        check_split_file(more, config)
    else:
        with pytest.raises(TwinbudError, match="the split lacks images of the data"):
            check_split_file(more, config)
    with pytest.raises(TwinbudError, match="the CSV cannot be read"):
        check_split_file(more, replace(config, split=split_file.with_name("none.csv")))
    check_split_file(more, DataConfig())


def test_a_split_that_cannot_be_written_leaves_the_earlier_one_whole(
    tmp_path: Path,
) -> None:
    image_index, file = index_of("aaabbb"), tmp_path / "split.csv"
    save_split(file, image_index, split_of(image_index))
    before = file.read_bytes()
    odd = replace(image_index, rows=tuple(replace(row, label=f"\udce9{row.label}") for row in image_index.rows))
    with pytest.raises(UnicodeEncodeError):
        save_split(file, odd, split_of(image_index))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_split_file_with_a_patient_on_both_sides_is_an_error(split_file: Path) -> None:
    with pytest.raises(
        TwinbudError, match=r"^--split .*the given split has patients in more than one part: .* leave out --split"
    ):
        split_of(index_of("ab" * 4, [0] * 8), split=split_file)


def test_seven_thousand_images_with_duplicates_are_split_80_20() -> None:
    image_index = index_of("abcd" * 1750)
    digests = [
        str(number // 4 * 4 + number % 4 if number > 800 else number // 8 * 4 + number % 4) for number in range(7000)
    ]
    assert 1300 < len(split_of(image_index, digests).test) < 1500


@settings(max_examples=60, deadline=None)
@given(split_seed=st.integers(0, 5), seed=st.integers(0, 5), given_split=st.booleans())
def test_developing_divides_the_training_part_again_and_closes_the_test_part(
    split_seed: int, seed: int, given_split: bool
) -> None:
    """Of 40 patients with two pictures each, some of them shared; the split is ours or comes with the data."""
    labels = "aabb" * 20
    patients = [number // 2 for number in range(80)]
    splits = ["test" if number >= 60 else "train" for number in range(80)] if given_split else None
    image_index = index_of(labels, patients, splits)
    digests = [str(number % 53 if not given_split else number) for number in range(80)]
    common: dict[str, Any] = {"split_seed": split_seed, "fraction": 0.5}
    whole = split_of(image_index, digests, seed=seed, **common)
    inner = split_of(image_index, digests, seed=seed, develop=True, **common)
    assert inner.held_out == whole.test
    assert not whole.held_out
    assert sorted((*inner.train, *inner.test)) == sorted(whole.train)
    assert set(inner.labelled) <= set(inner.train)
    parts = [inner.train, inner.test, inner.held_out]
    for names in (patients, digests):
        used = [{names[index] for index in part} for part in parts]
        assert all(not one & other for one, other in itertools.combinations(used, 2))
    assert any("is held out" in note for note in inner.notes)


def test_a_class_that_cannot_be_divided_twice_is_told_of_develop() -> None:
    with pytest.raises(
        TwinbudError, match=r"class 'b' has one image, .* leave out --develop, which divides the training"
    ):
        split_of(index_of("a" * 10 + "bb"), develop=True)


def test_what_a_run_learns_from_depends_on_what_its_recovery_may_see() -> None:
    split = split_of(index_of("ab" * 20), fraction=0.25)
    assert split.seen_by("none") == split.seen_by("labelled") == split.labelled
    assert split.seen_by("unlabelled") == split.train


def test_a_split_file_with_a_held_out_part_is_read_but_not_used_again(tmp_path: Path) -> None:
    image_index = index_of("ab" * 20)
    split = split_of(image_index, develop=True)
    path = tmp_path / "split.csv"
    save_split(path, image_index, split)
    assert {row.split for row in read_split(path)} == {"train", "test", "held-out"}
    with pytest.raises(TwinbudError, match="is in the part 'held-out': the split is that of a run with --d") as caught:
        split_of(image_index, split=path)
    assert str(caught.value).endswith("Give the split.csv of a run without --develop.")


def slices_of_patients(num_patients: int, num_slices: int, shared: dict[int, str]) -> tuple[ImageIndex, list[str]]:
    """Patients of two classes with slices of their own, but for those in ``shared``: slice number to digest."""
    numbers = range(num_patients * num_slices)
    image_index = index_of(
        "".join("ab"[number // num_slices % 2] for number in numbers), [number // num_slices for number in numbers]
    )
    return image_index, [shared.get(number % num_slices, str(number)) for number in numbers]


def without_patients(image_index: ImageIndex) -> ImageIndex:
    return replace(image_index, rows=tuple(replace(row, patient_id=None) for row in image_index.rows))


@pytest.mark.parametrize("by_patient", [True, False])
def test_blank_slices_connect_nothing(by_patient: bool) -> None:
    image_index, digests = slices_of_patients(20, 4, {3: "black", 0: "white"})
    image_index = image_index if by_patient else without_patients(image_index)
    split = split_of(image_index, digests, blank={"black", "white"})
    assert 14 <= len(split.test) <= 18
    assert "40 blank images with identical copies: they may be in more than one part" in split.notes
    assert "0 groups of identical images found" in split.notes
    if by_patient:
        patients = [{image_index.rows[index].patient_id for index in part} for part in (split.train, split.test)]
        assert not patients[0] & patients[1]


def test_an_image_in_all_patients_is_named_and_the_advice_helps() -> None:
    image_index, digests = slices_of_patients(20, 4, {3: "logo"})
    with pytest.raises(TwinbudError) as caught:
        split_of(image_index, digests)
    assert str(caught.value) == (
        "data: the 40 images of class 'a' cannot be divided, because they are connected by '00003.png' (the same image "
        "in 20 patients). If that image says nothing about a patient (a logo, a localizer), leave its copies out or "
        "add --split-duplicates; else add images of other patients."
    )
    assert len(split_of(image_index, digests, split_duplicates=True).test) == 16
    left_out = {index: "logo" for index, digest in enumerate(digests) if digest == "logo"}
    kept = image_index.without(left_out)
    assert len(split_of(kept).test) == 12


def test_a_class_of_one_patient_is_split_as_the_error_advises() -> None:
    image_index = index_of("a" * 10 + "b" * 5, [*range(10), 77, 77, 77, 77, 77])
    in_train_only = [("test" if row.label == "a" and row.path < "00003" else "train") for row in image_index.rows]
    given = index_of("a" * 10 + "b" * 5, [*range(10), 77, 77, 77, 77, 77], in_train_only)
    assert split_of(given).test == (0, 1, 2)
    with_others = index_of("a" * 10 + "b" * 6, [*range(10), 77, 77, 77, 77, 77, 78])
    assert split_of(with_others).test


def test_a_large_set_of_copies_does_not_make_a_large_test_part() -> None:
    image_index, digests = slices_of_patients(20, 4, {3: "logo"})
    split = split_of(without_patients(image_index), digests)
    assert len(split.test) / len(digests) <= 0.3
    assert (
        "20 images of 80 stay on one side because of '00003.png' (the same image in 20 files); leave that image out, "
        "or set --split-duplicates, if it says nothing about a patient"
    ) in split.notes


def test_patients_that_share_an_image_stay_together_and_are_named() -> None:
    image_index, digests = slices_of_patients(20, 4, {})
    digests[5] = digests[0]
    split = split_of(image_index, digests)
    assert len({index in split.test for index in range(8)}) == 1
    note = "1 group of identical images in several patients, who stay together: most of all '00000.png' (the same image"
    assert any(text.startswith(note) for text in split.notes)


@pytest.mark.parametrize("spellings", [("001", "1", "1.0"), ("P7", "p7 ", "P\u200b7"), ("le\u0301", "l\xe9", "L\xe9")])
def test_patient_ids_that_differ_in_spelling_are_one_patient(spellings: tuple[str, ...]) -> None:
    others = [f"q{number // 3}" for number in range(57)]
    image_index = index_of("aab" * 20, [*spellings, *others])
    splits = [split_of(image_index, split_seed=split_seed) for split_seed in range(5)]
    assert all(len({index in split.test for index in range(3)}) == 1 for split in splits)
    notes = splits[0].notes
    assert "split by patient: no patient is in two parts (20 patients)" in notes
    assert any(note.startswith("patient ids that differ only in spelling count as one patient: ") for note in notes)


def test_a_patient_spelled_twice_on_both_sides_of_a_given_split_is_an_error() -> None:
    image_index = index_of("abab", ["001", "2", "1.0", "3"], ["train", "train", "test", "test"])
    with pytest.raises(
        TwinbudError, match=r"more than one part: '001' = '1\.0' in test and train\. .*remove the split"
    ):
        split_of(image_index)


def test_ids_that_a_spreadsheet_rounded_are_noted() -> None:
    notes = split_of(index_of("ab" * 10, ["1.23457E+11", *range(19)])).notes
    assert "patient ids in scientific notation may have lost digits in a spreadsheet: '1.23457E+11'" in notes


@pytest.mark.parametrize(
    "names", [("im\r0.png", " a.png", "a.png "), ('"', "a,b;c\td", "=1+1"), ("split", "label", "\xe9")]
)
def test_odd_names_come_back_from_a_split_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    rows = [
        ImageRow(path=f"{name}{number}{name}", image=ImageRef(Path("x")), label=name, patient_id=f"{name}{number}")
        for number in range(10)
        for name in names
    ]
    image_index = ImageIndex(source="data", rows=tuple(rows), classes=names)
    split = split_of(image_index)
    save_split(tmp_path / "split.csv", image_index, split)
    assert list(read_split(tmp_path / "split.csv")) == split.rows(image_index, unique(image_index))
    assert split_of(image_index, split=tmp_path / "split.csv").test == split.test


def test_the_order_of_classes_is_part_of_the_fingerprint() -> None:
    image_index = index_of("ab" * 10)
    split = split_of(image_index)
    turned = replace(image_index, classes=("b", "a"))
    assert fingerprint(image_index, unique(image_index), split) != fingerprint(turned, unique(image_index), split)


def test_no_near_duplicates_are_on_two_sides_even_in_a_chain() -> None:
    image_index = index_of("ab" * 60)
    chain = [(number, number + 2) for number in range(0, 20, 2)]
    for seed in range(5):
        split = split_of(image_index, near_pairs=chain, near_duplicates="group", split_seed=seed)
        assert len({number in split.test for number in range(0, 22, 2)}) == 1
        assert split.near_pairs == tuple(chain)
        assert "1 group of near-duplicates found (11 images): each group is in one part only" in split.notes
    plain = [split_of(image_index, near_pairs=chain, split_seed=seed) for seed in range(5)]
    assert plain == [split_of(image_index, split_seed=seed) for seed in range(5)], "ignored where not asked for"


@pytest.mark.parametrize("way", ["near", "identical"])
def test_a_given_split_with_a_picture_on_both_sides_is_refused_unless_told(way: str) -> None:
    image_index = index_of("abab" * 3, splits=["train"] * 8 + ["test"] * 4)
    digests = unique(image_index)
    pairs: dict[str, Any] = {"near_pairs": [(0, 2), (3, 9)]} if way == "near" else {}
    if way == "identical":
        digests[9] = digests[3]
    with pytest.raises(TwinbudError) as caught:
        split_of(image_index, digests, near_duplicates="group", **pairs)
    line = str(caught.value)
    assert "1 pair shows the same picture in two parts of the split" in line
    assert "'00003.png' (train) = '00009.png' (test)" in line
    assert "00002" not in line, "that pair is in one part"
    assert "--near-duplicates ignore" in line
    assert split_of(image_index, digests, near_duplicates="ignore", **pairs).test == (8, 9, 10, 11)
