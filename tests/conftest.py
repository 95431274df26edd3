"""What every test shares: a cache of its own, and no terminal bars."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated sets go to a folder of this test session; converted teachers may be reused from the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TWINBUD_CACHE"] = str(folder)
    return folder
