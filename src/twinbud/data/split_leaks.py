"""Which images a given split has on both sides: identical ones, and near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.duplicates import Groups
from twinbud.data.identity import visible_text
from twinbud.data.index import ImageRow


def leaking_pairs(rows: Sequence[ImageRow], groups: Groups) -> Iterator[tuple[int, int]]:
    """Yield the pairs of near-duplicates, and of identical images, whose images are in two parts of a given split.

    Of identical images, the first of each part is paired with the first of all.

    Args:
        rows: The images, with their parts; a part that is not given counts as one of its own.
        groups: Their identical images and near-duplicates.
    """
    for copies in groups.copies:
        first_of = {rows[index].split: index for index in reversed(copies)}
        start = first_of.pop(rows[copies[0]].split)
        yield from ((start, other) for other in sorted(first_of.values()))
    yield from (pair for pair in groups.near_pairs if rows[pair[0]].split != rows[pair[1]].split)


def refuse_leak(rows: Sequence[ImageRow], groups: Groups, where: str) -> None:
    """Refuse a given split with one picture in two parts.

    Raises:
        TwinbudError: There is such a pair; the first ones are named.
    """
    pairs = list(leaking_pairs(rows, groups))
    if not pairs:
        return
    named = first_few([" = ".join(_named(rows[index]) for index in pair) for pair in pairs], 3)
    found = "1 pair shows" if len(pairs) == 1 else f"{len(pairs):,} pairs show"
    raise TwinbudError(
        f"{found} the same picture in two parts of the split: {named}",
        where=where,
        fix="Move each pair into one part, or take the split as it is with --near-duplicates ignore; 'twinbud audit' "
        "shows the pairs",
    )


def _named(row: ImageRow) -> str:
    return f"{visible_text(row.path)} ({row.split})"
