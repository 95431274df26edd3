"""Cache of resources that several runs of one process share: image index, images, initial weights."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

from twinbud.config.schema import RunConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.teacher import TeacherInfo
from twinbud.models.teacher_fingerprint import teacher_fingerprint

Kind = Literal["index", "images", "near_duplicates", "initialization"]
Resource = TypeVar("Resource")

_MAX_ENTRIES: dict[Kind, int] = {"index": 1, "images": 1, "near_duplicates": 1, "initialization": 8}
"""Maximum number of entries by kind: images can take a gigabyte, the weights of a small student do not."""

_RETRY_SECONDS = 60.0
"""Seconds before a failed resource is retried, so that not every run waits for the timeout of a hub."""


class ResourceCache:
    """Caches resources by kind and key, and errors for one minute."""

    def __init__(self) -> None:
        self.entries: dict[Kind, OrderedDict[Hashable, object]] = {kind: OrderedDict() for kind in _MAX_ENTRIES}

    def get_or_create(self, kind: Kind, key: Hashable, create: Callable[[], Resource]) -> Resource:
        """Return the cached resource, or create and cache it.

        Args:
            kind: Kind of resource; the least recently used entries of a kind are removed first.
            key: All settings that the resource depends on.
            create: Creates the resource, which must not be modified afterwards.

        Raises:
            TwinbudError: ``create`` raises it, or raised it less than a minute ago.
        """
        entries = self.entries[kind]
        failure = entries.get(key)
        if isinstance(failure, _Failure) and time.monotonic() - failure.time_seconds > _RETRY_SECONDS:
            del entries[key]
        if key not in entries:
            while len(entries) >= _MAX_ENTRIES[kind]:
                entries.popitem(last=False)  # before the new entry is created, so that memory never holds both
            try:
                entries[key] = create()
            except TwinbudError as error:
                entries[key] = _Failure(error, time.monotonic())
        entries.move_to_end(key)
        entry = entries[key]
        if isinstance(entry, _Failure):
            raise entry.error
        return cast(Resource, entry)


@dataclass(frozen=True)
class _Failure:
    """Error of a failed creation, with its monotonic time in seconds."""

    error: TwinbudError
    time_seconds: float


def source_key(config: RunConfig) -> Hashable:
    """Return the settings that the image index depends on: the data settings without those of the split."""
    return replace(
        config.data,
        fraction=1.0,
        subset="stratified",
        split_seed=0,
        split_duplicates=False,
        near_duplicates="ignore",
        develop=False,
    )


def images_key(config: RunConfig) -> Hashable:
    """Return the settings that the decoded images depend on."""
    return source_key(config), config.training.image_size


def initialization_key(config: RunConfig, tuned_teacher: TeacherInfo | None = None) -> Hashable:
    """Return what the initial weights depend on; the seed counts only for random selection."""
    is_random = config.model.rule.startswith("random")
    seed = config.training.seed if is_random else None
    tuned = teacher_fingerprint(tuned_teacher.name) if tuned_teacher else None
    return config.model, config.auxiliary, config.training.image_size, seed, tuned
