"""The README.md of a model folder: what the model is, its metrics, and how to load it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from twinbud.core.files import write_text
from twinbud.report.model import RunSummary
from twinbud.report.page import render

HEADER = {
    "library_name": "timm",
    "pipeline_tag": "image-classification",
    "tags": ["image-classification", "timm", "twinbud", "medical-imaging"],
}
"""Front matter as Hugging Face reads it; without a license, which twinbud cannot know."""


def write_model_card(path: Path, summary: RunSummary) -> None:
    """Write a Markdown model card with a YAML header to ``path``, replacing it as a whole.

    Args:
        path: Usually ``RUN/model/README.md``.
        summary: The same as for the page.

    Raises:
        TwinbudError: The disk is full or the folder cannot be written.
    """
    library = {} if summary.opens_with_timm else {"library_name": "twinbud"}
    header = yaml.safe_dump(HEADER | library, sort_keys=False)
    filters = {"markdown": markdown}
    write_text(path, render("model_card.md.jinja", summary, filters, autoescape=False, header=header))


def markdown(text: str) -> str:
    """Escape a text for one line of Markdown: no markup, no HTML, no new table cell."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
