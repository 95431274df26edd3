"""Errors of one line."""

from __future__ import annotations

import copy
import pickle

import pytest

from twinbud.core.errors import TwinbudError
from twinbud.data.formats.base import BrokenImageError


@pytest.mark.parametrize(
    "error",
    [TwinbudError("'x' is no y", where="--z", fix="Give a y"), BrokenImageError("the file is empty", name="a.png")],
)
def test_an_error_of_another_process_reads_as_it_did_there(error: TwinbudError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
