"""Where generated and downloaded files are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Twinbud's cache: ``$TWINBUD_CACHE``, else ``$XDG_CACHE_HOME/twinbud``, else ``~/.cache/twinbud``.

    The folder is named, not created.
    """
    if chosen := os.environ.get("TWINBUD_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "twinbud"
    return Path.home() / ".cache" / "twinbud"
