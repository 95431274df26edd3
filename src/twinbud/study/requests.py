"""A run as a recipe requested it, with its record once there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RequestedRun:
    """A run that was asked for, and what became of it.

    Attributes:
        coordinates: Its place in the recipe.
        profile: Where its defaults came from.
        is_default: Whether it is the run of a sweep whose value is the default.
        record: Its record, or None.
        reason: Why there is none, if it failed.
    """

    coordinates: Mapping[str, Any]
    profile: str
    is_default: bool = False
    record: Mapping[str, Any] | None = None
    reason: str | None = None

    @property
    def sampling(self) -> int:
        """Which labels were drawn."""
        return int(self.coordinates["sampling"])
