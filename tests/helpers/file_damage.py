"""Damage to one file that twinbud wrote, by what kind of file it is: a pure function of a seed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

Damage = Callable[[Path, random.Random], str]
"""Damages a file and says how; an empty text if it could not."""
VALUES = (
    None, "x", "", [], [1], {}, {"x": 1}, True, 0, -1, 0.37, 1e30, 10**400, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
"""What a value of JSON is replaced by."""
WORDS = ("", "x", "[1]", "{x: 1}", ".nan", "-1", "1e30", "9" * 400, "0", "true", "0.37", "none", "[", '"')
"""What a value of YAML or a cell of CSV is replaced by."""
CONTENTS = (b"", b"x: 1\n", b"[]", b"null", b"{}", b"3", b"\0" * 100, bytes(range(256)), b"[" * 100_000)
"""What a file is replaced by."""


def removed(path: Path, generator: random.Random) -> str:
    del generator
    path.unlink()
    return "removed"


def replaced_by_a_folder(path: Path, generator: random.Random) -> str:
    del generator
    path.unlink()
    path.mkdir()
    return "a folder"


def replaced_by_a_link(path: Path, generator: random.Random) -> str:
    target = generator.choice(("/nowhere/at/all", path.name))
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target}"


def replaced_by_a_pipe(path: Path, generator: random.Random) -> str:
    del generator
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def without_permission(path: Path, generator: random.Random) -> str:
    del generator
    mode = path.stat().st_mode
    path.chmod(0)
    if not os.access(path, os.R_OK):
        return "without permission"
    path.chmod(mode)  # root may read everything
    return ""


def replaced(path: Path, generator: random.Random) -> str:
    contents = generator.choice(CONTENTS)
    path.write_bytes(contents)
    return f"the contents {contents[:12]!r}"


def cut(path: Path, generator: random.Random) -> str:
    contents = path.read_bytes()
    length = generator.choice((len(contents) // 2, generator.randrange(len(contents) + 1)))
    path.write_bytes(contents[:length])
    return f"cut to {length} bytes"


def of_another_folder(others: Sequence[Path]) -> Damage:
    """The same file of another folder."""

    def swapped(path: Path, generator: random.Random) -> str:
        other = generator.choice(others) if others else path
        if not other.is_file() or other.read_bytes() == path.read_bytes():
            return ""
        path.write_bytes(other.read_bytes())
        return f"that of {other}"

    return swapped


def key_removed(path: Path, generator: random.Random) -> str:
    def remove(at: Any, key: Any) -> str:
        del at[key]
        return "removed"

    return _change_json(path, generator, remove)


def value_replaced(path: Path, generator: random.Random) -> str:
    def put(at: Any, key: Any) -> str:
        at[key] = generator.choice(VALUES)
        return f"= {str(at[key])[:12]}"

    return _change_json(path, generator, put)


def _change_json(path: Path, generator: random.Random, change: Callable[[Any, Any], str]) -> str:
    """Change one value, at the top as often as below it."""
    try:
        content = at = json.loads(path.read_bytes())
    except ValueError:  # that of a checkpoint begins with its checksum
        return ""
    story: list[str] = []
    while isinstance(at, dict | list) and at:
        key: Any = generator.choice(list(at) if isinstance(at, dict) else range(len(at)))
        story.append(str(key))
        if not isinstance(at[key], dict | list) or not at[key] or generator.random() < 0.5:
            told = change(at, key)
            path.write_text(json.dumps(content), encoding="utf-8")
            return f"{'.'.join(story)} {told}"
        at = at[key]
    return ""


def line_changed(path: Path, generator: random.Random) -> str:
    """A setting of YAML removed, or with another value."""
    lines = path.read_text(encoding="utf-8").splitlines()
    number = generator.choice([number for number, line in enumerate(lines) if ":" in line and line[0] != "#"])
    name, word = lines[number].partition(":")[0], generator.choice((None, *WORDS))
    lines[number : number + 1] = [] if word is None else [f"{name}: {word}"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{name} {'removed' if word is None else f'= {word[:12]}'}"


def cell_changed(path: Path, generator: random.Random) -> str:
    """Cells of one column replaced, in one row or in all."""
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    column, word = generator.randrange(len(head.split(","))), generator.choice((*WORDS, "1", "test", "train"))
    chosen = generator.choice((range(len(rows)), [generator.randrange(len(rows))]))
    for number in chosen:
        cells = rows[number].split(",")
        cells[column] = word
        rows[number] = ",".join(cells)
    path.write_text("\n".join((head, *rows)), encoding="utf-8")
    return f"{head.split(',')[column]} = {word[:12]} in {len(chosen)} rows"


def rows_changed(path: Path, generator: random.Random) -> str:
    """Rows or columns missing, rows twice."""
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    lines, told = generator.choice((
        ([head], "no row"),
        ([head, *rows[:-1]], "the last row missing"),
        ([head, *rows, rows[-1]], "the last row twice"),
        ([line.rpartition(",")[0] for line in (head, *rows)], "the last column missing"),
        ([line.partition(",")[2] for line in (head, *rows)], "the first column missing"),
    ))  # fmt: skip
    path.write_text("\n".join(lines), encoding="utf-8")
    return told


def tensor_changed(path: Path, generator: random.Random) -> str:
    """One tensor missing, or with other numbers, another type or another shape."""
    state = load(path.read_bytes())
    name = generator.choice(sorted(state))
    tensor = state.pop(name)
    told, other = generator.choice((
        ("missing", None),
        ("NaN", torch.full_like(tensor.float(), torch.nan)),
        ("infinite", torch.full_like(tensor.float(), torch.inf)),
        ("huge", torch.full_like(tensor.float(), 1e30)),
        ("integers", tensor.long()),
        ("float16", tensor.half()),
        ("twice as long", tensor.flatten().repeat(2)),
    ))  # fmt: skip
    path.write_bytes(save(state if other is None else {**state, name: other}))
    return f"{name} {told}"


WHOLE: tuple[Damage, ...] = (
    removed, replaced_by_a_folder, replaced_by_a_link, replaced_by_a_pipe, without_permission, replaced, replaced, cut,
)  # fmt: skip
INSIDE: dict[str, tuple[Damage, ...]] = {
    ".json": (key_removed, value_replaced, value_replaced),
    ".yaml": (line_changed,),
    ".csv": (cell_changed, rows_changed),
    ".safetensors": (tensor_changed,),
}
"""By the suffix of the file."""


def damage(path: Path, others: Sequence[Path], generator: random.Random) -> str:
    """Damage a file in one way and say in which; ``others`` are files that may take its place."""
    while True:
        inside = INSIDE.get(path.suffix, ())
        kind = generator.choice(("whole", "whole", "inside", "inside", "inside", "other") if inside else ("whole",))
        choices = {"whole": WHOLE, "inside": inside, "other": (of_another_folder(others),)}[kind]
        if story := generator.choice(choices)(path, generator):
            return story
