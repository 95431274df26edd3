"""Write what an audit found: ``audit.html``, one page without network, and ``audit.json``, which is complete."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from twinbud.auditing.findings import Audit, Pair
from twinbud.auditing.probes import MAX_P, NUM_SHUFFLES, least_p_value
from twinbud.core.errors import first_few
from twinbud.core.files import new_folder, write_json, write_text
from twinbud.data.identity import visible_text
from twinbud.data.image_store import load_images
from twinbud.data.split_notes import counted
from twinbud.report.page import render_template

PAGE, DATA = "audit.html", "audit.json"
MAX_PAIRS = 24
"""Pairs of pictures in each section of the page; audit.json lists the others."""
MAX_ROWS = 12
"""Rows of a table of counts on the page."""
_PICTURE_SIZE = 160


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A pair as the page shows it: two pictures, each with its caption."""

    pictures: tuple[str, str]
    paths: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str | None, str | None]
    text: str


def write_audit(audit: Audit, folder: Path, *, force: bool, max_megapixels: float) -> None:
    """Write page and JSON into a new folder.

    Args:
        audit: The findings.
        folder: The folder to make.
        force: Replace an earlier audit.
        max_megapixels: Largest image to decode for the page, in millions of pixels.

    Raises:
        TwinbudError: The folder is not free or cannot be written, or an image changed meanwhile.
    """
    with new_folder(folder, force=force) as draft:
        write_json(draft / DATA, audit.to_json())
        write_text(draft / PAGE, _page(audit, max_megapixels))


def summary_lines(audit: Audit) -> list[str]:
    """Return what was found, one sentence each, the worst first."""
    pairs = [pair.kind for pair in audit.contradictions]
    lines = []
    if audit.has_split:
        lines.append(
            f"The split has {counted(len(audit.leaks), 'pair')} of the same picture, and "
            f"{counted(audit.patients_in_two_parts, 'patient')}, in two parts."
        )
    lines += [
        f"{counted(len(pairs), 'pair')} of the same picture with different labels "
        f"({pairs.count('identical'):,} with identical pixels).",
        f"{counted(len(audit.identical), 'group')} of identical images "
        f"({counted(sum(len(group) - 1 for group in audit.identical), 'extra copy')}).",
        f"{counted(len(audit.near_duplicates), 'pair')} of near-duplicates in "
        f"{counted(audit.num_near_groups, 'group')}.",
        *(
            f"The class can be told from {probe.name}: balanced accuracy {probe.balanced_accuracy:.2f}, "
            f"chance {probe.chance:.2f}, corrected p {probe.corrected_p_value:.3f}."
            for probe in audit.probes
            if probe.is_suspicious
        ),
        *_text_lines(audit),
        "Whether images are stored inverted cannot be told: they are too unlike each other."
        if audit.inverted is None
        else f"{counted(len(audit.inverted), 'image')} may be stored inverted.",
        f"{counted(len(audit.left_out), 'file')} left out.",
    ]
    return lines


def _text_lines(audit: Audit) -> list[str]:
    """Return what to say of text in the pixels; nothing if there is none."""
    text = audit.text
    if not text.boxes:
        return []
    shares = ", ".join(f"{label} {n / audit.counts['class'][label]:.1%}" for label, n in text.num_by_class.items())
    test = "" if text.p_value is None else f"; dependence on the class: p {text.p_value:.4f}"
    lines = [
        f"{counted(len(text.boxes), 'image')} may show text, and so names or dates ({shares}{test}): "
        f"{_first(audit, text.boxes)}."
    ]
    if text.undeclared:
        lines.append(
            f"{counted(len(text.undeclared), 'DICOM image')} with text-like marks though BurnedInAnnotation is NO: "
            f"{_first(audit, text.undeclared)}."
        )
    return lines


def _first(audit: Audit, indices: Iterable[int]) -> str:
    return first_few([visible_text(audit.rows[index].path) for index in indices], 3)


def _page(audit: Audit, max_megapixels: float) -> str:
    identical = [Pair(kind="identical", first=group[0], second=group[1]) for group in audit.identical]
    sections = {
        "leaks": audit.leaks,
        "contradictions": audit.contradictions,
        "near": audit.near_duplicates,
        "identical": tuple(identical),
    }
    chosen = {name: _spread(pairs) for name, pairs in sections.items()}
    inverted = (audit.inverted or ())[:MAX_PAIRS]
    wanted = {index for pairs in chosen.values() for pair in pairs for index in (pair.first, pair.second)}
    pictures = _pictures(audit, wanted.union(inverted), max_megapixels)
    return render_template(
        "audit.html.jinja",
        {},
        autoescape=True,
        audit=audit,
        lines=summary_lines(audit),
        counts={name: _shortened(of) for name, of in audit.counts.items()},
        shown={name: [_shown(audit, pair, pictures) for pair in pairs] for name, pairs in chosen.items()},
        totals={name: len(pairs) for name, pairs in sections.items()},
        inverted=[(pictures[index], audit.rows[index].path) for index in inverted],
        max_rows=MAX_ROWS,
        least_p=least_p_value(audit.probes),
        max_p=MAX_P,
        num_shuffles=NUM_SHUFFLES,
        data_file=DATA,
    )


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """Return pairs evenly spread over all, which are sorted: the most and the least alike are among them."""
    if len(pairs) <= MAX_PAIRS:
        return list(pairs)
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, MAX_PAIRS).round().astype(int)]


def _shortened(counts: dict[str, int]) -> dict[str, int]:
    """Return the most frequent values, and the rest as one row."""
    if len(counts) <= MAX_ROWS:
        return counts
    first = dict(list(counts.items())[: MAX_ROWS - 1])
    return first | {f"{len(counts) - len(first):,} others": sum(counts.values()) - sum(first.values())}


def _pictures(audit: Audit, indices: Iterable[int], max_megapixels: float) -> dict[int, str]:
    """Return the chosen images as ``data:`` URLs."""
    chosen = sorted(indices)
    image_store, _ = load_images(
        [audit.rows[index].image for index in chosen],
        names=[audit.rows[index].path for index in chosen],
        image_size=_PICTURE_SIZE,
        max_megapixels=max_megapixels,
        skip_broken=False,
    )
    return {index: _data_url(image_store.tensor([place])[0].numpy()) for place, index in enumerate(chosen)}


def _data_url(channels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(channels, 0, 2))).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _shown(audit: Audit, pair: Pair, pictures: dict[int, str]) -> _Shown:
    first, second = audit.rows[pair.first], audit.rows[pair.second]
    mirrored = "" if pair.mirrored == "no" else f", mirrored {pair.mirrored}".replace("mirrored both", "turned by 180°")
    text = "identical pixels" if pair.kind == "identical" else f"correlation {pair.correlation:.3f}{mirrored}"
    return _Shown(
        pictures=(pictures[pair.first], pictures[pair.second]),
        paths=(first.path, second.path),
        labels=(first.label, second.label),
        splits=(first.split, second.split),
        text=text,
    )
