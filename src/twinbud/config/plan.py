"""What the plan of a folder of 'twinbud select' fixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinbud.config.fields import option_of
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_json

PLANNED = ("teacher", "student", "family", "rule", "attention", "swap_roles")
"""Settings that the plan of ``selected`` holds."""


def read_plan(folder: Path) -> dict[str, Any]:
    """Return these settings by name.

    Raises:
        TwinbudError: There is no plan.
    """
    try:
        plan = {"family": "described"} | read_json(folder / "plan.json")
        return {name: plan[name] for name in PLANNED} | {"student": plan["student"]["name"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Run: twinbud select --teacher T --output DIR"
        raise TwinbudError("the folder has no readable plan.json", where=str(folder), fix=fix) from error


def contradicts_plan(folder: Path, name: str, value: Any, planned: Any) -> TwinbudError:
    """Return the error for a setting that differs from the plan of ``selected``."""
    return TwinbudError(
        f"'{value}' contradicts {folder}, which was selected with '{planned}'",
        where=option_of(name),
        fix="Leave the option out, or run 'twinbud select' with it",
    )
