"""What several runs of one process have in common, opened once: images, teachers, selections."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError

Kind = Literal["index", "images", "initialization"]
Made = TypeVar("Made")

_KEPT: dict[Kind, int] = {"index": 1, "images": 1, "initialization": 8}
"""How many of each are kept: a set of images may fill a gigabyte, the weights of a small student do not."""


_TRIED_AGAIN_SECONDS = 60.0
"""A hub that does not answer costs its timeout this often, and not once a run."""


class ResourceCache:
    """Remembers what was opened and, for a minute, what could not be, for the next run that asks for the same."""

    def __init__(self) -> None:
        self.made: dict[Kind, OrderedDict[Hashable, object]] = {kind: OrderedDict() for kind in _KEPT}

    def once(self, kind: Kind, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` gave when it was first called for this key.

        Args:
            kind: What it is; of each kind only the latest few are kept.
            key: All that decides it.
            make: Opens it; what it returns must not be changed by those who share it.

        Raises:
            TwinbudError: ``make`` raised it, now or less than a minute ago.
        """
        kept = self.made[kind]
        trouble = kept.get(key)
        if isinstance(trouble, _Trouble) and time.monotonic() - trouble.when > _TRIED_AGAIN_SECONDS:
            del kept[key]
        if key not in kept:
            while len(kept) >= _KEPT[kind]:
                kept.popitem(last=False)  # before its successor is opened, so that both never fill the memory
            try:
                kept[key] = make()
            except TwinbudError as error:
                kept[key] = _Trouble(error, time.monotonic())
        kept.move_to_end(key)
        found = kept[key]
        if isinstance(found, _Trouble):
            raise found.error
        return cast(Made, found)


@dataclass(frozen=True)
class _Trouble:
    """What could not be opened, and when that was tried."""

    error: TwinbudError
    when: float


def source_key(config: RunConfig) -> Hashable:
    """All that decides which images are listed: the data settings, less how the images are divided."""
    return replace(config.data, fraction=1.0, subset="stratified", split_seed=0, split_duplicates=False, develop=False)


def images_key(config: RunConfig) -> Hashable:
    """All that decides the decoded images."""
    return source_key(config), config.training.image_size


def initialization_key(config: RunConfig) -> Hashable:
    """All that decides where S and S′ start; the seed does so where the selection is random."""
    is_random = config.model.rule.startswith("random")
    seed = config.training.seed if is_random else None
    return config.model, config.auxiliary, config.training.image_size, seed
