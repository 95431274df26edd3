"""A run that a study requested, with its record once there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RequestedRun:
    """A run that a study requested, and its result.

    Attributes:
        run_id: See ``twinbud.study.run_id``.
        profile: The profile that supplies the defaults of its settings.
        coordinates: Its value on each axis of the recipe.
        is_default: Whether it is the run of a sweep that has the default value.
        record: Its record, or None.
        reason: Why it failed, if it has no record and its last attempt failed.
    """

    run_id: str
    profile: str
    coordinates: Mapping[str, Any]
    is_default: bool = False
    record: Mapping[str, Any] | None = None
    reason: str | None = None

    @property
    def sampling(self) -> int:
        """The number of its draw of labelled images."""
        return int(self.coordinates["sampling"])

    def to_json(self) -> dict[str, Any]:
        """Return the request without its result, as a plan holds it."""
        return {
            "run_id": self.run_id,
            "profile": self.profile,
            "coordinates": dict(self.coordinates),
            "is_default": self.is_default,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RequestedRun:
        """Read what ``to_json`` returned.

        Raises:
            KeyError: A key is missing.
            TypeError: A value has another type.
            ValueError: A value has another type, or is none that a study writes.
        """
        run = cls(
            run_id=content["run_id"],
            profile=content["profile"],
            coordinates=dict(content["coordinates"]),
            is_default=content["is_default"],
        )
        at = run.coordinates
        names = (run.run_id, run.profile, at["data"], at["pair"], at["method"], at.get("sweep", ""))
        if not all(isinstance(name, str) for name in names) or not (run.run_id.isascii() and run.run_id.isalnum()):
            raise ValueError("a name is no text, or no run has such an id")
        if type(at["sampling"]) is not int or type(at["fraction"]) not in (int, float):
            raise ValueError("a sampling or a fraction is no number")
        if type(run.is_default) is not bool or ("sweep" in at) != ("value" in at):
            raise ValueError("a sweep has no setting, or no value")
        if any(isinstance(value, list | dict) for value in at.values()):
            raise ValueError("a coordinate has several values")
        return run
