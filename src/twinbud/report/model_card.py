"""The README.md of a model folder: what it is, what it was measured to do, and how to open it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from twinbud.core.files import write_text
from twinbud.report.page import RunSummary, render

HEADER = {
    "library_name": "timm",
    "pipeline_tag": "image-classification",
    "tags": ["image-classification", "timm", "twinbud", "medical-imaging"],
}
"""Front matter as Hugging Face reads it; no licence, for twinbud knows none."""


def write_model_card(path: Path, summary: RunSummary) -> None:
    """Write a Markdown model card with a YAML header to `path`, replacing it whole.

    Args:
        path: Usually ``RUN/model/README.md``.
        summary: The same as the report's; `metrics["num_train"]`, where given, is the labelled images' number.

    Raises:
        TwinbudError: If the disk is full or the folder may not be written.
    """
    header = yaml.safe_dump(HEADER, sort_keys=False)
    filters = {"markdown": _markdown}
    write_text(path, render("model_card.md.jinja", summary, filters, autoescape=False, header=header))


def _markdown(text: str) -> str:
    """One line of plain text that Markdown shows as it is: no markup, no HTML, no new cell of a table."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
