"""How an option is made: of a setting, a flag, or a path."""

from __future__ import annotations

from argparse import SUPPRESS, BooleanOptionalAction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from twinbud.cli.parsing import Option, not_empty
from twinbud.config.fields import option_of
from twinbud.config.profiles import DEFAULT_PROFILE, PROFILES
from twinbud.config.settings import all_settings

_METAVARS = {
    "data": "PATH|NAME",
    "data_root": "FOLDER|FILE",
    "drop_path": "PROBABILITY",
    "frames": "all|middle|N",
    "patient_salt": "FILE",
}
_ALIASES = {"frames": ("--slices",)}
"""Settings with a second name: the frames of a volume are its slices."""


def setting_option(
    name: str, default: str | None = None, *, group: str = "", profiles: bool = False, about: str | None = None
) -> Option:
    """Return a setting's option; one that is not given stays absent, so that file, plan and profile decide."""
    setting = all_settings()[name]
    known = _default(name, profiles=profiles) if default is None else default
    text = f"{about or setting.help}{f' [{known}]' if known else ''}"
    if setting.hint is bool:
        return Option(option_of(name), text, group, {"action": BooleanOptionalAction, "default": SUPPRESS})
    metavar = _METAVARS.get(name, name.rpartition("_")[2].upper())
    choices = get_args(setting.hint) if get_origin(setting.hint) is Literal else ()
    keywords = {"default": SUPPRESS, "metavar": "|".join(choices) or metavar}
    return Option(option_of(name), text, group, keywords, _ALIASES.get(name, ()))


def _default(name: str, *, profiles: bool) -> str:
    """Return ``112; paper: 224``: the default, and what the other profiles have instead."""
    default = all_settings()[name].default
    values = {profile: changes.get(name, default) for profile, changes in PROFILES.items()} if profiles else {}
    own = DEFAULT_PROFILE if name == "profile" and profiles else values.get(DEFAULT_PROFILE, default)
    others = [
        f"{profile}: {value_text(value)}" for profile, value in values.items() if value != own and name != "profile"
    ]
    shown = "" if (own is None or own is False) and not others else value_text(own)
    return "; ".join([shown, ", ".join(others)] if others else [shown])


def value_text(value: object) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def flag(name: str, text: str, **keywords: Any) -> Option:
    """Return an option without a value."""
    return Option(name, text, keywords={"action": "store_true", **keywords})


def path_option(name: str, text: str, metavar: str, **keywords: Any) -> Option:
    """Return an option, or a positional argument, that is a path."""
    option = name if name.startswith("--") else metavar
    return Option(name, text, keywords={"type": not_empty(option, Path), "metavar": metavar, **keywords})


def output_options(text: str, metavar: str = "DIR", **keywords: Any) -> list[Option]:
    """Return where a command writes, and whether it may replace what is there."""
    return [path_option("--output", text, metavar, **keywords), flag("--force", "Replace an earlier output.")]
