"""What networks in stages share: their blocks with the layers between stages, and the depths of their students."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from twinbud.models.families.base import TimmModel


def stage_blocks(name: str, stages: Iterable[TimmModel]) -> dict[str, nn.Module]:
    """Return the downsampling layer, if any, and the blocks of each stage, in order.

    Args:
        name: The attribute of the network that holds the stages.
        stages: The stages, each with ``downsample`` and ``blocks``.
    """
    found: dict[str, nn.Module] = {}
    for number, stage in enumerate(stages):
        if not isinstance(stage.downsample, nn.Identity):
            found[f"{name}.{number}.downsample"] = stage.downsample
        found |= {f"{name}.{number}.blocks.{place}": block for place, block in enumerate(stage.blocks)}
    return found


def student_depths(architecture: str, depths: tuple[int, ...], pair_depths: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the depths of a teacher's student: those of its pair, if it has one, and no more than its own.

    A teacher saved with fewer blocks than its name says has no more to give.

    Args:
        architecture: timm's name of the teacher.
        depths: The teacher's.
        pair_depths: Those of the students of some teachers, by timm's name without a tag.
    """
    paired = pair_depths.get(architecture.partition(".")[0], depths)
    return [min(pair) for pair in zip(paired, depths, strict=True)]
