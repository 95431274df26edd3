"""Small students and the teachers that they were selected from."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from helpers.builders import CONVNEXT, DINOV3, SWIN, VIT, save_teacher
from twinbud.models.families.base import TimmModel
from twinbud.models.selection import PairRole
from twinbud.models.selection_io import Selection, select
from twinbud.models.student_pair import StudentPair, build_student_pair
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.least_squares import RefitBatch

TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"init_values": 0.5, **VIT}),
    "plain vit": ("vit_tiny_patch16_224", VIT),
    "distilled vit": ("deit_tiny_distilled_patch16_224", VIT),
    "vit with registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 2}),
    "vit with query norms": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}),
    "pooled vit": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}),
    "response norms": ("convnextv2_atto", CONVNEXT),
    "convnext": ("convnext_tiny", {"depths": [2, 2, 3, 2], "dims": CONVNEXT["dims"]}),
    "convolutions": ("convnext_tiny", {**CONVNEXT, "conv_mlp": True}),
    "dinov3": ("vit_small_patch16_dinov3", {"init_values": 0.5, **DINOV3}),
    "gated dinov3": ("vit_small_plus_patch16_dinov3", {"init_values": 0.5, **DINOV3}),
    "eva with three layers of queries, keys and values": ("eva02_base_patch14_224", DINOV3),
    "eva with shared keys": ("vit_base_patch16_sapiens2", {**DINOV3, "num_kv_heads": 2}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin with padding": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 3, "always_partition": True}),
    "mixer": ("small_mixer", {}),
    "resmlp": ("small_resmlp", {}),
    "gmlp": ("small_gmlp", {}),
}
WHOLE_HEADS = ("vit with query norms", *(kind for kind in TEACHERS if "dinov3" in kind or "eva" in kind))
"""Teachers whose heads cannot be made of parts of several."""


def batches(size: int, seed: int = 0, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, size, size, generator=generator) for _ in range(count)]


def refit_batches(size: int) -> list[RefitBatch]:
    """Three batches, one of them held out."""
    return [RefitBatch(batch, is_held_out=number == 0) for number, batch in enumerate(batches(size, count=3))]


def beside(kind: str, pair_role: PairRole = "student", **settings: Any) -> ChannelMap:
    """A selected student and its teacher, as the stage puts them side by side; to be changed at will."""
    selection, student_pair, teacher = _selected(kind, **settings)
    network = student_pair.student if pair_role == "student" else student_pair.auxiliary
    assert network is not None
    return ChannelMap(
        student=copy.deepcopy(network).eval(),
        teacher=copy.deepcopy(teacher),
        family=selection.student_spec.family,
        plan=selection.plan,
        pair_role=pair_role,
    )


@cache
def _selected(kind: str, **settings: Any) -> tuple[Selection, StudentPair, TimmModel]:
    architecture, arguments = TEACHERS[kind]
    if kind in WHOLE_HEADS:
        settings = {"attention": "heads", **settings}
    with TemporaryDirectory() as folder:
        teacher_info = read_teacher_info(save_teacher(Path(folder) / "teacher", architecture, **arguments))
        selection = select(teacher_info, **settings)
        teacher = open_teacher_at(teacher_info, selection.student_spec.family, image_size(kind))
    return selection, build_student_pair(selection, image_size=image_size(kind), num_classes=2), teacher


def image_size(kind: str) -> int:
    """In pixels."""
    return 28 if "vit" in kind else 64 if kind.startswith(("conv", "response")) else 32


def whole(kind: str = "plain vit") -> ChannelMap:
    """A teacher beside a student that is all of it."""
    pair = beside(kind)
    widths = {
        name: replace(width, student_size=width.teacher_size, student_indices=tuple(range(width.teacher_size)))
        for name, width in pair.plan.widths.items()
    }
    return ChannelMap(
        student=copy.deepcopy(pair.teacher).requires_grad_(True),
        teacher=pair.teacher,
        family=pair.family,
        plan=replace(pair.plan, widths=widths),
        pair_role="student",
    )
