"""A run is measured on nothing that it learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twinbud.core.errors import TwinbudError
from twinbud.data.image_store import ImageStore
from twinbud.data.index import ImageIndex, ImageRef, ImageRow
from twinbud.data.split_file import SplitRow
from twinbud.evaluation.leakage import changed_images, has_the_paths, never_learned_from, own_test_part


def index_of(*names: str, patients: dict[str, str] | None = None) -> ImageIndex:
    rows = [
        ImageRow(path=name, image=ImageRef(Path(name)), label="a", patient_id=(patients or {}).get(name))
        for name in names
    ]
    return ImageIndex(source="data", rows=tuple(rows), classes=("a", "b"), to_train=False)


def pixels_of(*digests: str) -> ImageStore:
    return ImageStore(image_size=1, digests=digests, pixels=tuple(torch.zeros(1, 1, 1) for _ in digests))


def split_row(name: str, digest: str | None, split: Any = "train", **values: Any) -> SplitRow:
    row = {"label": "a", "patient_id": None, "labelled": split == "train", **values}
    return SplitRow(image_path=name, split=split, digest=digest, **row)


def left_out(image_index: ImageIndex, image_store: ImageStore, split: list[SplitRow]) -> dict[str, str]:
    kept, kept_store = never_learned_from(image_index, image_store, split)
    assert len(kept.rows) == len(kept_store)
    return {file.path: file.reason for file in kept.ignored}


def test_unlabelled_training_images_are_left_out_like_the_labelled() -> None:
    """Their labels were not used, but which images are unlabelled is chance, and a later run may use them."""
    split = [split_row("1", "one"), split_row("2", "two", labelled=False), split_row("3", "three", "test")]
    found = left_out(index_of("x", "y", "z"), pixels_of("one", "two", "three"), split)
    assert found == dict.fromkeys(("x", "y"), "identical to a training image of the run")


def test_other_images_of_a_training_patient_are_left_out_and_of_a_test_patient_kept() -> None:
    split = [
        split_row("1", "one", patient_id="P1"),
        split_row("2", "two", "test", patient_id="P2"),
        split_row("3", "three", "val", patient_id="P3"),
        split_row("4", "four"),
    ]
    patients = {"x": "P1", "y": "P2", "z": "P3"}
    found = left_out(index_of("w", "x", "y", "z", patients=patients), pixels_of("5", "6", "7", "8"), split)
    assert found == {"x": "of training patient 'P1'"}


def test_images_without_a_known_patient_on_either_side_are_kept() -> None:
    assert left_out(index_of("x"), pixels_of("9"), [split_row("1", "one"), split_row("2", None)]) == {}


def test_nothing_left_to_measure_on_is_an_error() -> None:
    with pytest.raises(
        TwinbudError, match="all 1 images are excluded: 1 identical to training images, 0 of training patients"
    ):
        never_learned_from(index_of("x"), pixels_of("one"), [split_row("1", "one")])


def test_images_that_changed_are_named_and_those_without_a_checksum_are_not() -> None:
    split = [split_row("a", "1", "test"), split_row("b", "2", "test"), split_row("c", None, "test")]
    assert changed_images(index_of("a", "b", "c"), pixels_of("1", "3", "4"), split) == ["b"]


def test_the_own_test_part_is_what_was_held_out_and_all_of_it() -> None:
    split = [split_row("a", "1"), split_row("b", "2", "test"), split_row("c", "3", "val")]
    assert [row.path for row in own_test_part(index_of("a", "b", "c"), split).rows] == ["b"]
    with pytest.raises(TwinbudError, match="test images of the run are missing: 'b'"):
        own_test_part(index_of("a", "c"), split)


def test_a_moved_set_is_known_by_its_paths() -> None:
    split = [split_row("a", "1"), split_row("b", "2", "test")]
    assert has_the_paths(index_of("a", "b"), split)
    assert not has_the_paths(index_of("a"), split)
    assert not has_the_paths(index_of("a", "b", "c"), split)


@pytest.mark.parametrize("spelling", ["1", "1.0", " 001", "\u200b001", "\uff11"])
def test_a_training_patient_in_another_spelling_is_left_out(spelling: str) -> None:
    split = [split_row("1", "one", patient_id="001"), split_row("2", "two", patient_id="2")]
    index = index_of("x", "y", patients={"x": spelling, "y": "3"})
    reason = left_out(index, pixels_of("8", "9"), split)["x"]
    assert reason.startswith("of training patient '")
    assert reason.endswith("', spelled '001' in the run")


def test_ids_that_stand_for_a_missing_value_are_no_patient() -> None:
    split = [split_row("1", "one", patient_id="unknown"), split_row("2", "two", patient_id="nan")]
    assert left_out(index_of("x", patients={"x": "nan"}), pixels_of("9"), split) == {}
