"""``twinbud families``: the families that are described, and the widths of one network."""

from __future__ import annotations

import json

import pytest

from helpers.command import refusal, twinbud
from twinbud.cli.family_display import show_families
from twinbud.models.families.registry import FAMILIES
from twinbud.models.family_listing import FamilyInfo, PairInfo
from twinbud.models.teacher import read_teacher_info


def test_every_family_is_listed_with_examples_that_open(capsys: pytest.CaptureFixture[str]) -> None:
    families = {family["name"]: family for family in json.loads(twinbud("families", "--json").out)}
    assert list(families) == [family.name for family in FAMILIES]
    for family in FAMILIES:
        assert [(pair["teacher"], pair["student"]) for pair in families[family.name]["pairs"]] == list(family.pairs)
        assert family.pairs
    first = families["ViT"]["pairs"][0]
    assert (first["teacher"], first["student"]) == ("vit_small_patch16_224.augreg_in21k", "vit_tiny_patch16_224")
    assert [round(first[f"{role}_parameters"] / 1e6) for role in ("teacher", "student")] == [
        22,
        6,
    ]  # Table 1: 22 M, 5 M
    assert first["num_disjoint"] == first["num_widths"] == 25  # the residual stream, and two in each of 12 blocks
    pair = PairInfo(**first)
    show_families([FamilyInfo(name="ViT", members="ViT and others", recovery=True, pairs=(pair,))], as_json=False)
    shown = capsys.readouterr().out
    assert shown.startswith(
        "ViT and others; recovery: yes\n  vit_small_patch16_224.augreg_in21k → vit_tiny_patch16_224: "
    )
    assert "\n    25 of 25 widths are wide enough for two disjoint subsets\n" in shown
    assert "--family auto" in shown


def test_the_widths_of_a_network_are_shown_with_their_tensors_and_proved() -> None:
    found = json.loads(twinbud("families", "small_regnety", "--family", "auto", "--json").out)
    assert found["choice"] == "auto"
    assert found["relative_change"] <= 1e-9
    widths = {width["name"]: width for width in found["widths"]}
    squeeze = widths["channels/s2.b1.se.fc1"]
    assert squeeze["size"] == 2
    assert squeeze["places"] == ["s2.b1.se.fc1.weight[0]", "s2.b1.se.fc1.bias[0]", "s2.b1.se.fc2.weight[1]"]
    assert "s1.b1.conv2.conv.weight[0]·4" in widths["groups/s1.b1.conv1.conv"]["places"]


def test_a_width_is_one_line_for_people() -> None:
    lines = twinbud("families", "test_vit").out.splitlines()
    assert lines[0] == "test_vit: 0.3 M parameters, 13 widths, described (ViT)"
    assert lines[1].startswith("proved: permuting all widths changes the output by ")
    assert lines[2].startswith("  residual (64): cls_token[2], pos_embed[2], ")
    assert len(lines) == 2 + 13


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("regnety_002",), "selection from a RegNet: its widths are not described (described: ViT, "),
        (("nonsense",), "NAME: 'nonsense' is not "),
        (("regnety_02", "--family", "auto"), "Did you mean 'regnety_"),
        (("regnety_002", "--family", "find"), "--family"),
    ],
)
def test_a_wrong_name_or_family_is_one_line(words: tuple[str, ...], problem: str) -> None:
    assert problem in refusal(twinbud("families", *words))


def test_the_tip_for_a_network_without_a_family_is_to_find_its_widths() -> None:
    assert "Use --family auto" in refusal(twinbud("families", "regnety_002"))
    assert read_teacher_info("regnety_002").architecture == "regnety_002"
