"""Folds of the labelled images: each image once, no group in two, no test image at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from twinbud.config.data_config import DataConfig
from twinbud.config.schema import Fold
from twinbud.core.errors import TwinbudError
from twinbud.data.cross_fitting import assign_folds, take_fold
from twinbud.data.index import ImageIndex, ImageRef, ImageRow
from twinbud.data.split import Split, make_split


def index_of(num_images: int, *, patients: bool = False) -> tuple[ImageIndex, list[str]]:
    """Three classes in turn; image 2k and 2k + 1 are of patient k; images 0 and 3 have the same pixels."""
    rows = tuple(
        ImageRow(
            path=f"{number:03}.png",
            image=ImageRef(Path(f"{number:03}.png")),
            label="abc"[number % 3],
            patient_id=str(number // 2) if patients else None,
        )
        for number in range(num_images)
    )
    digests = [f"pixels {3 if number == 0 else number}" for number in range(num_images)]
    return ImageIndex(source="images", classes=("a", "b", "c"), rows=rows), digests


def folds_of(split: Split, image_index: ImageIndex, digests: list[str], count: int) -> list[Split]:
    return [
        take_fold(split, image_index, digests, blank=(), fold=Fold(number=number, count=count), split_seed=0)
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("patients", [False, True])
def test_each_labelled_image_is_measured_once_by_a_model_that_has_not_learned_from_it(patients: bool) -> None:
    image_index, digests = index_of(120, patients=patients)
    split = make_split(image_index, digests, DataConfig(data="images", fraction=0.5), seed=0)
    folds = folds_of(split, image_index, digests, 4)
    measured = [row for fold in folds for row in fold.test]
    assert sorted(measured) == list(split.labelled)
    for fold in folds:
        assert not set(fold.test) & set(fold.train)
        assert set(fold.labelled) == set(split.labelled) - set(fold.test)
        assert set(fold.labelled) <= set(fold.train)
        assert sorted({*fold.train, *fold.test, *fold.held_out}) == list(range(120))


@pytest.mark.parametrize("patients", [False, True])
def test_no_fold_opens_the_test_part(patients: bool) -> None:
    image_index, digests = index_of(120, patients=patients)
    split = make_split(image_index, digests, DataConfig(data="images", fraction=0.5), seed=0)
    for fold in folds_of(split, image_index, digests, 3):
        assert set(split.test) <= set(fold.held_out)


def test_no_patient_and_no_copy_is_measured_on_and_learned_from_even_without_label() -> None:
    image_index, digests = index_of(120, patients=True)
    split = make_split(image_index, digests, DataConfig(data="images", fraction=0.5), seed=0)
    for fold in folds_of(split, image_index, digests, 3):
        sides = [
            {image_index.rows[row].patient_id for row in part} | {digests[row] for row in part}
            for part in (fold.test, fold.train)
        ]
        assert not sides[0] & sides[1]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=8, max_size=60),
    num_groups=st.integers(4, 60),
    count=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_every_fold_learns_from_every_class_and_no_group_is_divided(
    labels: list[str], num_groups: int, count: int, seed: int
) -> None:
    names, groups = np.array(labels), np.random.default_rng(seed).integers(num_groups, size=len(labels))
    assume(max(len(set(groups[names == name])) for name in set(labels)) >= count)
    folds = assign_folds(names, groups, count, seed)
    for group in set(groups.tolist()):
        assert len(set(folds[groups == group].tolist())) == 1
    for number in range(1, count + 1):
        assert set(names[folds != number]) == set(labels)


def test_more_folds_than_images_of_any_class_are_refused() -> None:
    with pytest.raises(TwinbudError, match=r"5 folds, but no class has .* more than 3 .*Give at most 3"):
        assign_folds(np.array(list("aaabbb")), np.arange(6), 5, 0)
