"""The examples of the docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if "    >>> " in path.read_text(encoding="utf-8") and "doctest: +SKIP" not in path.read_text(encoding="utf-8")
]
"""Those with examples. Examples of whole jobs need images, are marked +SKIP, and run in tests/runs/test_api.py."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
