"""What each profile changes in the defaults of the schema, which are the paper's."""

from __future__ import annotations

from typing import Any

from twinbud.config.schema import INHERITING_METHODS, WHOLE_METHODS, Profile

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


_FINETUNE: dict[str, Any] = {"learning_rate": 3e-4, "layer_decay": 0.65}
_FINETUNE_OF: dict[str | None, dict[str, Any]] = {"efficientnet-lite0": {"learning_rate": 1e-3}}
"""Networks that the learning rates of a transformer do not suit."""


def profile_defaults(profile: str, method: str | None = None, pretrained: str | None = None) -> dict[str, Any]:
    """The defaults of a profile for ``method``; None stands for the profile's own method.

    Without selected weights (timm, xavier, kaiming, finetune, probe), there is nothing to recover. With a random start,
    `best` has the values of `quick`, since small learning rates in the lower layers would keep them random. The
    student of ``finetune`` and ``probe`` is the teacher itself, and the learning rate of ``finetune`` in `best` and
    `quick` depends on the network ``pretrained``.

    >>> profile_defaults("best", "dual")["recover"]
    'labelled'
    >>> profile_defaults("best", "timm") == profile_defaults("quick")
    True
    >>> profile_defaults("best", "finetune")["layer_decay"]
    0.65
    """
    selects = method is None or method in INHERITING_METHODS
    defaults = dict(PROFILES["quick" if profile == "best" and not selects else profile])
    if method in WHOLE_METHODS:
        defaults["student"] = "same"
    if method == "finetune" and profile != "paper":
        defaults |= _FINETUNE_OF.get(pretrained, _FINETUNE)
    return defaults
