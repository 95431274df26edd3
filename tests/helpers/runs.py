"""What a finished run left in its folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def same_outcome(one: Path, other: Path) -> bool:
    """Whether two runs gave the same weights and predictions, bit for bit."""
    predictions = [(run / "predictions.csv").read_bytes() for run in (one, other)]
    return weights(one) == weights(other) and predictions[0] == predictions[1]
