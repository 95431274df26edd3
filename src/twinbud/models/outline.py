"""Networks of shapes without numbers, on torch's meta device: they cost neither time nor memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel

INITIALIZERS = frozenset(
    {"uniform_", "normal_", "constant_", "kaiming_uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"}
)
"""Operations that change nothing but numbers, of which tensors on the meta device have none."""


def outline(architecture: str, where: str, /, **arguments: Any) -> TimmModel:
    """Build a network on the meta device.

    Args:
        architecture: timm's name.
        where: The file or option that the arguments come from, for the error.
        **arguments: Passed to ``timm.create_model``.

    Raises:
        TwinbudError: timm cannot build the architecture with these arguments.
    """
    with torch.device("meta"), _WithoutInitialization(), explained_arguments(architecture, where):
        return timm.create_model(architecture, pretrained=False, **arguments)


class _WithoutInitialization(TorchFunctionMode):
    """Skips the initialization of weights, which is nine tenths of the time that timm takes on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, torch.Tensor) and target.is_meta and func.__name__ in INITIALIZERS:
            return target
        return func(*args, **kwargs)


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


def classifiers(architecture: str) -> tuple[str, ...]:
    """Return timm's names of an architecture's classifier layers."""
    config = timm.get_pretrained_cfg(architecture)
    names = config.classifier if config else "head"
    return (names,) if isinstance(names, str) else tuple(names or ())


def count_parameters(model: nn.Module) -> int:
    """Return the number of elements in a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def input_size(model: TimmModel) -> int:
    """Return the side of the images that ``model`` was built for, in pixels."""
    embedding = getattr(model, "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    return size[-1] if isinstance(size, tuple) else model.pretrained_cfg["input_size"][-1]
