"""Networks of shapes without numbers, on torch's meta device: they cost neither time nor memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel


def outline(architecture: str, where: str, /, **arguments: Any) -> TimmModel:
    """Build a network on the meta device.

    Args:
        architecture: timm's name.
        where: The file or option that the arguments come from, for the error.
        **arguments: Passed to ``timm.create_model``.

    Raises:
        TwinbudError: timm cannot build the architecture with these arguments.
    """
    with torch.device("meta"), explained_arguments(architecture, where):
        return timm.create_model(architecture, pretrained=False, **arguments)


@contextmanager
def explained_arguments(architecture: str, where: str) -> Iterator[None]:
    """Turn any failure of timm to build ``architecture`` with the arguments from ``where`` into one clear line.

    Raises:
        TwinbudError: timm failed.
    """
    try:
        yield
    except Exception as error:  # timm and torch meet wrong arguments with many unrelated types
        raise TwinbudError(
            f"timm cannot build {architecture} with these arguments ({error})",
            where=where,
            fix="Correct model_args in config.json, or copy the folder again",
        ) from error
