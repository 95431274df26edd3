"""A missing optional package is named in one line."""

from __future__ import annotations

import sys

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.core.extras import import_extra


@pytest.mark.parametrize("module", ["absent", "absent.part"])
def test_the_package_of_a_missing_module_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "absent", None)
    with pytest.raises(TwinbudError) as caught:
        import_extra(module, "more", where="folds")
    assert str(caught.value) == 'folds: the package absent is not installed. Run: pip install "twinbud[more]".'
