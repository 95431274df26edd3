"""Write explanations: a picture for each image, ``explanations.csv`` with all figures, and a page without network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from twinbud.core.csv_files import write_csv
from twinbud.core.errors import explained_writes
from twinbud.core.files import new_folder, write_text
from twinbud.core.progress import Progress
from twinbud.data.formats.decoding import without_warnings
from twinbud.data.image_loading import decode_row
from twinbud.data.index import ImageRow, write_left_out
from twinbud.explaining.explanation import KIND_NAMES, Explanation, Explanations
from twinbud.explaining.overlay import draw, overlay, png
from twinbud.report.model import Explained, ExplainedImage, encode_picture
from twinbud.report.page import picture_url, render_template

CSV, PAGE, MAPS = "explanations.csv", "explanations.html", "maps"
COLUMNS = ("path", "prediction", "label", "probability", "map", "deletion_score", "share_beaten", "verdict")
MAX_ON_PAGE = 200
"""Pictures on the page; the folder has all of them."""


def write_explanations(
    folder: Path,
    explained: Explanations,
    rows: Sequence[ImageRow],
    *,
    max_megapixels: float,
    force: bool,
    progress: Progress,
) -> Explained:
    """Write the folder, whole or not at all.

    Args:
        folder: To make.
        explained: What to write.
        rows: Where the images are, to draw on them at full resolution.
        max_megapixels: Largest image to decode.
        force: Replace an earlier folder.
        progress: Shows how many pictures are drawn.

    Returns:
        What the page shows.

    Raises:
        TwinbudError: The folder exists, cannot be written, or an image cannot be read any more.
    """
    names = [f"{MAPS}/{_file_name(number, row.path)}" for number, row in enumerate(rows, 1)]
    shown: list[ExplainedImage] = []
    with new_folder(folder, force=force, optional=("left_out.csv",)) as draft:
        with explained_writes(folder):
            (draft / MAPS).mkdir()
        with progress.bar("drawing", len(rows)) as advance, without_warnings():
            for number, (row, each) in enumerate(zip(rows, explained.explanations, strict=True), 1):
                picture = _draw(draft / names[number - 1], row, each, max_megapixels)
                if number <= MAX_ON_PAGE:
                    shown.append(picture)
                advance(number)
        cells = (_cells(each, name) for each, name in zip(explained.explanations, names, strict=True))
        write_csv(draft / CSV, [COLUMNS, *cells])
        on_page = Explained(
            kind=KIND_NAMES[explained.kind], finding=explained.weight_check.sentence, images=tuple(shown)
        )
        write_text(draft / PAGE, _page(explained, on_page))
        if explained.ignored:
            write_left_out(draft / "left_out.csv", explained.ignored)
    return on_page


def _draw(path: Path, row: ImageRow, each: Explanation, max_megapixels: float) -> ExplainedImage:
    """Write one picture, and return it reduced for the page."""
    pixels = decode_row(row, max_megapixels)
    text = f"Map for '{each.label}' (probability {each.probability:.3f}, prediction '{each.prediction}')"
    text += f": {each.warning}" if each.warning else ": it passed all checks"
    contents = png(draw(pixels, each.map, each.warning), text)
    with explained_writes(path):
        path.write_bytes(contents)
    return ExplainedImage(
        picture=encode_picture(overlay(pixels, each.map, is_colored=each.holds)),
        path=each.path,
        label=each.true_label,
        prediction=each.prediction,
        explained=each.label,
        probability=each.probability,
        score=each.deletion.score,
        warning=each.warning,
    )


def _page(explained: Explanations, on_page: Explained) -> str:
    return render_template(
        "explanations.html.jinja",
        {"picture": picture_url},
        autoescape=True,
        explained=on_page,
        summary=explained.summary,
        num_left_out=len(explained.explanations) - len(on_page.images),
    )


def _cells(each: Explanation, name: str) -> tuple[object, ...]:
    score, share = f"{each.deletion.score:.6g}", f"{each.deletion.share_beaten:.4g}"
    return each.path, each.prediction, each.label, f"{each.probability:.8g}", name, score, share, each.verdict


def _file_name(number: int, path: str) -> str:
    """Return a name that every file system takes: the number of the image, and what of its own name is plain."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", path.rpartition("/")[2]).strip("._")
    return f"{number:04d}-{plain[:80]}.png"
