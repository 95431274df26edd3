"""What each profile changes in the defaults of the schema, which are the paper's."""

from __future__ import annotations

from typing import Any

from twinbud.config.schema import INHERITING_METHODS, Profile

DEFAULT_PROFILE: Profile = "best"
"""Taken where none is named: what we recommend, beyond the paper."""

_QUICK: dict[str, Any] = {
    "image_size": 112,
    "epochs": 40,
    "min_steps": 300,
    "learning_rate": 5e-4,
    "warmup": 0.1,
    "clip_norm": 1.0,
}
PROFILES: dict[str, dict[str, Any]] = {
    "best": _QUICK
    | {
        "method": "selection",
        "attention": "heads",
        "recover": "labelled",
        "recover_views": 4,
        "learning_rate": 3e-4,
        "layer_decay": 0.65,
    },
    "quick": _QUICK,
    "paper": {},
}


def profile_defaults(profile: str, method: str | None = None) -> dict[str, Any]:
    """The defaults of a profile for ``method``; None stands for the profile's own method.

    With a random start (timm, xavier, kaiming), `best` has the values of `quick`: there is nothing to recover, and
    small learning rates in the lower layers would keep them random.

    >>> profile_defaults("best", "dual")["recover"]
    'labelled'
    >>> profile_defaults("best", "timm") == profile_defaults("quick")
    True
    """
    starts_at_random = method is not None and method not in INHERITING_METHODS
    return dict(PROFILES["quick" if profile == "best" and starts_at_random else profile])
