"""The README.md of a teacher folder: what the network learned, from which images, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from twinbud.core.files import write_text
from twinbud.data.preprocessing import Preprocessing
from twinbud.data.seen_images import DIGEST_COLUMN, SEEN_IMAGES
from twinbud.report.model_card import markdown
from twinbud.report.page import render_template

HEADER = {
    "library_name": "timm",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["feature-extraction", "timm", "twinbud", "medical-imaging"],
}
"""Front matter as Hugging Face reads it; without a license, which twinbud cannot know."""


@dataclass(frozen=True, kw_only=True)
class TeacherCard:
    """What the card shows.

    Attributes:
        architecture: timm's name.
        source: The network whose features it learned, as the user spelled it.
        preprocessing: Of its input.
        num_seen: Images in its list.
        notes: Plain sentences about the images.
        measurements: For each row of the table: what was measured, before, after, and the value of the source.
        facts: Further rows of a table.
    """

    architecture: str
    source: str
    preprocessing: Preprocessing
    num_seen: int
    notes: tuple[str, ...]
    measurements: tuple[tuple[str, float | None, float | None, float | None], ...]
    facts: Mapping[str, str]


def write_teacher_card(path: Path, card: TeacherCard) -> None:
    """Write a Markdown card with a YAML header to ``path``, replacing it as a whole.

    Raises:
        TwinbudError: The disk is full or the folder cannot be written.
    """
    text = render_template(
        "teacher_card.md.jinja",
        {"markdown": markdown},
        autoescape=False,
        header=yaml.safe_dump(HEADER, sort_keys=False),
        card=card,
        seen_images=SEEN_IMAGES,
        column=DIGEST_COLUMN,
    )
    write_text(path, text)
