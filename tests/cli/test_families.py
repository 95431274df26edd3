"""``twinbud families``: the families that are described, and the widths of one network."""

from __future__ import annotations

import json

import pytest

from helpers.command import refusal, twinbud
from twinbud.models.families import FAMILIES
from twinbud.models.teacher import read_teacher_info


def test_every_family_is_listed_with_examples_that_open() -> None:
    answer = twinbud("families")
    assert answer.code == 0
    for family in FAMILIES:
        assert family.members in answer.out
        assert family.pairs
        for teacher, student in family.pairs:
            assert f"{teacher} → {student}: " in answer.out


def test_the_paper_s_first_pair_has_its_published_sizes() -> None:
    families = {family["name"]: family for family in json.loads(twinbud("families", "--json").out)}
    pair = families["ViT"]["pairs"][0]
    assert (pair["teacher"], pair["student"]) == ("vit_small_patch16_224.augreg_in21k", "vit_tiny_patch16_224")
    assert [round(pair[f"{role}_parameters"] / 1e6) for role in ("teacher", "student")] == [22, 6]  # Table 1: 22 M, 5 M
    assert pair["num_disjoint"] == pair["num_widths"] == 25  # the residual stream, and two widths in each of 12 blocks


def test_the_widths_of_a_network_are_shown_with_their_tensors_and_proved() -> None:
    found = json.loads(twinbud("families", "regnety_002", "--family", "auto", "--json").out)
    assert found["choice"] == "auto"
    assert found["relative_change"] <= 1e-9
    widths = {width["name"]: width for width in found["widths"]}
    squeeze = widths["channels/s1.b1.se.fc1"]
    assert squeeze["size"] == 8
    assert squeeze["places"] == ["s1.b1.se.fc1.weight[0]", "s1.b1.se.fc1.bias[0]", "s1.b1.se.fc2.weight[1]"]
    assert "s1.b1.conv2.conv.weight[0]·8" in widths["groups/s1.b1.conv1.conv"]["places"]


def test_a_width_is_one_line_for_people() -> None:
    lines = twinbud("families", "vit_tiny_patch16_224").out.splitlines()
    assert lines[0] == "vit_tiny_patch16_224: 5.5 M parameters, 25 widths, described (ViT)"
    assert lines[1].startswith("proved: permuting all widths changes the output by ")
    assert lines[2].startswith("  residual (192): cls_token[2], pos_embed[2], ")
    assert len(lines) == 27


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("regnety_002",), "weights of a RegNet cannot be selected"),
        (("regnety_02", "--family", "auto"), "Did you mean 'regnety_"),
        (("regnety_002", "--family", "find"), "--family"),
    ],
)
def test_a_wrong_name_or_family_is_one_line(words: tuple[str, ...], problem: str) -> None:
    assert problem in refusal(twinbud("families", *words))


def test_the_tip_for_a_network_without_a_family_is_to_find_its_widths() -> None:
    assert "Use --family auto" in refusal(twinbud("families", "regnety_002"))
    assert read_teacher_info("regnety_002").architecture == "regnety_002"
