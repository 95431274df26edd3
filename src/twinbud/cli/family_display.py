"""What ``twinbud families`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from twinbud.models.family_listing import FamilyInfo, NetworkWidths

_FOOTER = (
    "Any other network of timm: --family auto finds its widths; twinbud families NAME --family auto shows and proves"
    " them."
)
_SHOWN = 4
"""Places of a width that are shown; ``--json`` has all."""


def show_families(families: Sequence[FamilyInfo], *, as_json: bool) -> None:
    """Print a paragraph for each family, or one JSON list."""
    if as_json:
        _print(json.dumps([family.to_json() for family in families], indent=2))
        return
    for family in families:
        _print("\n".join(_paragraph(family)) + "\n")
    _print(_FOOTER)


def show_widths(widths: NetworkWidths, *, as_json: bool) -> None:
    """Print the widths of a network, one a line, or one JSON object."""
    _print(json.dumps(widths.to_json(), indent=2) if as_json else "\n".join(_lines(widths)))


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _paragraph(family: FamilyInfo) -> Iterator[str]:
    yield f"{family.members}; recovery: {'yes' if family.recovery else 'no'}"
    for pair in family.pairs:
        sizes = f"{pair.teacher_parameters / 1e6:.1f} → {pair.student_parameters / 1e6:.1f} M parameters"
        yield f"  {pair.teacher} → {pair.student}: {sizes}"
        yield f"    {pair.num_disjoint} of {pair.num_widths} widths are wide enough for two disjoint subsets"


def _lines(widths: NetworkWidths) -> Iterator[str]:
    origin = "found" if widths.choice == "auto" else f"described ({widths.family})"
    yield f"{widths.network}: {widths.num_parameters / 1e6:.1f} M parameters, {len(widths.widths)} widths, {origin}"
    change = f"{widths.relative_change:.1e} of the difference between two images"
    yield f"proved: permuting all widths changes the output by {change}"
    for width in widths.widths:
        rest = len(width.places) - _SHOWN
        more = f", … {rest} more" if rest > 0 else ""
        yield f"  {width.name} ({width.size}): {', '.join(width.places[:_SHOWN])}{more}"
    if widths.whole:
        yield f"kept whole: {', '.join(widths.whole)}"
