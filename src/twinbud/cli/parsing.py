"""Options of a command, and how its words are parsed: errors are one line."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NoReturn

from twinbud.config.settings import STAGES
from twinbud.core.errors import TwinbudError

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
"""A negative number, as argparse tells it from an option."""


@dataclass(frozen=True)
class Option:
    """One argument of a command: name or metavar, help, group, keywords of ``add_argument``, and other names."""

    name: str
    help: str
    group: str = ""
    keywords: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words that argparse takes: the name, and what some call the same."""
        return self.name, *self.aliases

    @property
    def spellings(self) -> tuple[str, ...]:
        """The words that give the option; none for a positional argument."""
        if not self.name.startswith("--"):
            return ()
        has_opposite = self.keywords.get("action") is BooleanOptionalAction
        return (self.name, f"--no-{self.name[2:]}") if has_opposite else self.words

    @property
    def is_switch(self) -> bool:
        """Whether it is given without a value."""
        return self.keywords.get("action") in (BooleanOptionalAction, "store_true", "store_false")

    @property
    def takes_one_value(self) -> bool:
        """Whether the next word is its value."""
        return self.name.startswith("--") and not self.keywords.keys() & {"action", "nargs"}


def not_empty(option: str, kind: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Return a conversion to ``kind`` that refuses an empty value, which as a path would be the current folder."""

    def convert(value: str) -> Any:
        if not value:
            raise TwinbudError("the value is empty", where=option, fix=f"Give {option} a value")
        return kind(value)

    return convert


class _Parser(ArgumentParser):
    """Raises errors as one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise TwinbudError(message, where=self.prog, fix=f"Run: {self.prog} --help")


def parse_options(command: str, usage: str, options: Sequence[Option], words: Sequence[str], about: str) -> Namespace:
    """Parse the words that follow a command.

    Args:
        command: Its name.
        usage: How it is called.
        options: All that it has.
        words: What the user wrote.
        about: A sentence for its help.

    Raises:
        TwinbudError: An unknown option, or one without its value.
    """
    names = ["--help", *(name for option in options for name in option.spellings)]
    switches = {name: option.spellings for option in options if option.is_switch for name in option.spellings}
    prog = f"twinbud {command}"
    for word in words[: words.index("--")] if "--" in words else words:
        name, equals, value = word.partition("=")
        if word.startswith("--") and name not in names:
            raise _unknown_option(command, name, names)
        if equals and name in switches:
            fix = f"Write {' or '.join(switches[name])}"
            raise TwinbudError(f"'{value}' has no effect: {name} takes no value", where=prog, fix=fix)
    _require_values(prog, options, names, words)
    parser = _Parser(prog=prog, usage=f"{prog} {usage}", description=about, allow_abbrev=False)
    for group, members in groupby(options, key=lambda option: option.group):
        text = str(STAGES[group].__doc__).partition("\n")[0] if group else None
        target = parser.add_argument_group(group, text) if group else parser
        for option in members:
            target.add_argument(*option.words, help=option.help.replace("%", "%%"), **option.keywords)
    return parser.parse_args(words)


def _require_values(prog: str, options: Sequence[Option], names: Sequence[str], words: Sequence[str]) -> None:
    """Refuse a value that starts with a dash and is no number, which argparse takes for an option."""
    takers = {word for option in options if option.takes_one_value for word in option.words}
    for word, following in pairwise(words):
        if word in takers and following.startswith("-") and following not in names and not _NUMBER.fullmatch(following):
            fix = f"A value that starts with '-' needs '=': {word}={following}"
            raise TwinbudError(f"{word} has no value", where=prog, fix=fix)


def _unknown_option(command: str, option: str, names: Sequence[str]) -> TwinbudError:
    """Return the error for an option that does not exist; it names the nearest one instead of all."""
    near = difflib.get_close_matches(option, names, n=1)
    fix = f"Did you mean {near[0]}? All options" if near else "All options"
    return TwinbudError(
        f"there is no option {option}", where=f"twinbud {command}", fix=f"{fix}: twinbud {command} --help"
    )
