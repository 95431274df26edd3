"""Optional packages: imported where they are used, and named in one line where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from twinbud.core.errors import TwinbudError


def import_extra(package: str, extra: str, *, where: str, otherwise: str = "") -> Any:
    """Import an optional package.

    Args:
        package: Name of the package.
        extra: The extra of twinbud that installs it.
        where: What needs it, for the error.
        otherwise: How to do without, as a clause that follows "or", for the error's advice.

    Returns:
        The module.

    Raises:
        TwinbudError: The package is not installed, or a package that it needs is not.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        needed = "" if missing == package.partition(".")[0] else f", which {package} needs,"
        fix = f'Run: pip install "twinbud[{extra}]"' + (f"; or {otherwise}" if otherwise else "")
        raise TwinbudError(f"the package {missing}{needed} is not installed", where=where, fix=fix) from error
