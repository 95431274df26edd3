"""Many runs as one experiment: recipe, plan, records, tables and figures.

The package itself can be called: ``twinbud.study("recipe.yaml")`` is ``twinbud.study.api.study("recipe.yaml")``.
"""

import sys
from types import ModuleType
from typing import Any

from twinbud.study.api import study


class _CallablePackage(ModuleType):
    """A function ``twinbud.study`` would hide this package from ``import twinbud.study.run``; so it is callable."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return study(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
