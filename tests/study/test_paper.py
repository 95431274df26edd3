"""The paper's results as printed, and the differences between runs and those of the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from twinbud.data.datasets.registry import DATASETS, DatasetEntry
from twinbud.study.paper import ComparisonContext, differences, paper_accuracy, paper_cost

VIT, CONVNEXT = "vit_small -> vit_tiny", "convnext_tiny -> convnext_femto"
BRAIN = ("glioma", "meningioma", "notumor", "pituitary")
PAPER_CONTEXT = ComparisonContext(
    data="brain-mri",
    classes=BRAIN,
    num_images=7020,
    teacher="vit_small_patch16_224.augreg_in21k",
    student="vit_tiny_patch16_224",
    paper_pair=VIT,
    settings={"image_size": 224, "alpha": 0.6, "beta": 0.9, "temperature": 4.0},
    epochs=300,
)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        (("tables 2-4", "chest-xray", VIT, "Ours", 0.01), (0.750, 0.012)),
        (("tables 2-4", "lung-ct", CONVNEXT, "CM4", 0.1), (0.868, 0.005)),
        (("tables 2-4", "brain-mri", CONVNEXT, "CM1", 0.05), (0.766, 0.017)),
        (("table 5", "lung-ct", CONVNEXT, "Ours_Swap", 0.01), (0.787, 0.013)),
        (("table 6", "brain-mri", VIT, "Ours (CS-KD)", 0.05), (0.792, 0.012)),
        (("table 7", "brain-mri", VIT, "Ours (random w/o consistency)", 0.05), (0.771, 0.028)),
        (("table 6", "brain-mri", CONVNEXT, "CM1", 0.05), None),
        (("tables 2-4", "brain-mri", VIT, "Ours", 0.2), None),
    ],
)
def test_accuracies_are_those_of_the_paper(place: Any, number: tuple[float, float] | None) -> None:
    assert paper_accuracy(*place) == number


def test_costs_are_those_of_the_paper() -> None:
    cost = paper_cost("table 8", "brain-mri", VIT, "CM1", 0.01)
    assert cost == {"peak_memory_mib": 2378, "train_seconds": 670}


def test_a_run_like_the_papers_has_no_difference() -> None:
    assert differences(PAPER_CONTEXT) == {}


@pytest.mark.parametrize(
    ("changes", "names", "expected"),
    [
        ({"classes": BRAIN[:3]}, ["classes"], "glioma, meningioma, notumor instead of glioma"),
        ({"num_images": 1124}, ["images"], "1,124 instead of 7,023"),
        ({"teacher": "dinov2-small", "student": "half"}, ["pair"], "dinov2-small → half instead of vit_small"),
        ({"epochs": 40}, ["epochs"], "40 instead of 300"),
        ({"settings": {**PAPER_CONTEXT.settings, "image_size": 112}}, ["image size"], "112 instead of 224 pixels"),
        ({"settings": {**PAPER_CONTEXT.settings, "alpha": 0.2, "beta": 0.5}}, ["alpha", "beta"], "0.2 instead of 0.6"),
        ({"paper_pair": CONVNEXT}, ["pair", "temperature"], "4 instead of 3"),
    ],
    ids=str,
)  # fmt: skip
def test_each_difference_has_a_name_and_a_description(changes: dict[str, Any], names: list[str], expected: str) -> None:
    found = differences(replace(PAPER_CONTEXT, **changes))
    assert list(found) == names
    assert expected in "; ".join(found.values())


@pytest.mark.parametrize("entry", [entry for entry in DATASETS if entry.kaggle], ids=lambda entry: entry.name)
def test_the_sets_of_the_paper_have_its_results_under_their_public_names(entry: DatasetEntry) -> None:
    assert paper_accuracy("tables 2-4", entry.name, VIT, "Ours", 0.1) is not None
    context = replace(PAPER_CONTEXT, data=entry.name, classes=entry.classes, num_images=entry.num_images)
    assert differences(context) == {}


def test_an_image_set_that_is_not_in_the_paper_has_no_difference() -> None:
    assert differences(replace(PAPER_CONTEXT, data="phantom", classes=("a", "b"), num_images=800)) == {}
