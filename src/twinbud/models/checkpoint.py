"""Find a network's tensors in the content of a checkpoint, whatever they are nested in and prefixed with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from twinbud.models.families.base import State

_DEEPEST = 4
"""Levels of dictionaries that are searched."""
_PREFERRED = ("ema", "teacher")
"""Names of averaged weights, which are taken if several entries fit, as timm does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundState:
    """The tensors of one network in a checkpoint.

    Attributes:
        path: Keys that lead to their dictionary; empty if the checkpoint is that dictionary.
        prefix: What stood before each timm name, such as "module." or "backbone."; may be empty.
        tensors: The tensors by timm's names.
        left_out: Names of tensors in the same dictionary that do not belong to the network.
    """

    path: tuple[str, ...]
    prefix: str
    tensors: State
    left_out: tuple[str, ...]


def find_states(content: Any, body: Collection[str], classifier: Collection[str]) -> list[FoundState]:
    """Find every dictionary that holds a whole network, the preferred one first.

    Args:
        content: What a checkpoint file holds: tensors by name, or dictionaries of them.
        body: timm's names of the tensors that must be there; empty to find every dictionary of tensors.
        classifier: timm's names of tensors that may be there too.
    """
    found = []
    for path, state in _states(content):
        prefix = common_prefix(state, body) if body else ""
        if prefix is not None:
            names = [*(body or state), *(name for name in classifier if prefix + name in state)]
            tensors = {name: state[prefix + name] for name in names}
            left_out = tuple(sorted(state.keys() - {prefix + name for name in names}))
            found.append(FoundState(path=path, prefix=prefix, tensors=tensors, left_out=left_out))
    return sorted(found, key=lambda state: not any(word in key for key in state.path for word in _PREFERRED))


def common_prefix(names: Collection[str], body: Collection[str]) -> str | None:
    """Return the shortest prefix with which all of ``body`` is in ``names``, or None if there is none."""
    anchor = next(iter(body))
    prefixes = {name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")}
    whole = [prefix for prefix in prefixes if all(prefix + name in names for name in body)]
    return min(whole, key=len, default=None)


def _states(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every dictionary with tensors in it, and the keys that lead there."""
    if not isinstance(content, Mapping) or len(path) > _DEEPEST:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items():
        yield from _states(value, (*path, str(key)))
