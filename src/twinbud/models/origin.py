"""Where a run starts from: an architecture and, unless the start is random, weights of a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from twinbud.config import Auxiliary, RunConfig
from twinbud.models.blueprint import Blueprint, design_student
from twinbud.models.selected import Selection, load_selection, select
from twinbud.models.teacher import read_teacher_card
from twinbud.models.twins import Twins, build_baseline, build_twins


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What S and S′ are built from.

    Attributes:
        design: The architecture of S and S′.
        selection: What they inherit; None in CM2-CM4.
        auxiliary: Which S′ is built.
    """

    design: Blueprint
    selection: Selection | None
    auxiliary: Auxiliary

    def build(self, config: RunConfig, *, num_classes: int, device: torch.device) -> Twins:
        """S and, where there is one, S′ on the device they train on."""
        training, model = config.training, config.model
        assert training.drop_path != "auto", "drop_path is resolved before building"
        common = {
            "image_size": training.image_size,
            "num_classes": num_classes,
            "drop_path": training.drop_path,
            "seed": training.seed,
        }
        if self.selection is not None:
            twins = build_twins(self.selection, auxiliary=self.auxiliary, **common)
        else:
            twins = build_baseline(self.design, model.method, layer_scale=model.layer_scale, **common)
        for network in (twins.student, twins.auxiliary):
            if network is not None:
                network.to(device)
        return twins


def open_origin(config: RunConfig) -> Origin:
    """The students' architecture and the weights they inherit; the baselines CM2-CM4 open no teacher weights.

    Raises:
        TwinbudError: See ``select``, ``load_selection`` and ``Blueprint.timm_arguments``.
    """
    model = config.model
    selection = _open_selection(config) if model.method in ("dual", "selection") else None
    if selection is not None:
        design = selection.blueprint
    elif model.selected is not None:
        design = load_selection(model.selected).blueprint
    else:
        design = design_student(read_teacher_card(model.teacher or ""), model.student)
    design.timm_arguments(config.training.image_size)
    return Origin(design=design, selection=selection, auxiliary=config.auxiliary)


def _open_selection(config: RunConfig) -> Selection:
    model, two_subsets = config.model, config.auxiliary in ("other", "frozen")
    if model.selected is not None:
        selection = load_selection(model.selected)
        return selection if two_subsets else replace(selection, auxiliary=None)
    return select(
        read_teacher_card(model.teacher or ""),
        model.student,
        rule=model.rule,
        attention=model.attention,
        seed=config.training.seed,
        swap_roles=model.swap_roles,
        twins=two_subsets,
    )
