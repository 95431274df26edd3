"""One training run that twinbud and its rivals do alike; every arm is a program that takes these options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

Method = Literal["selection", "dual"]
METHODS: tuple[Method, ...] = ("selection", "dual")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what.

    Attributes:
        data: What twinbud is given as ``--data``.
        fraction: What twinbud is given as ``--fraction``.
        listing: CSV ``image_path,label,split`` of the labelled and the test images of that split, for the rivals.
        selected: Weights of S and S′, from ``twinbud select``.
        result: Where the measurements go, as JSON.
        method: ``selection`` or ``dual``.
        image_size: In pixels.
        epochs: Passes over the labelled images.
        precision: ``float32`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
        profile: Of twinbud's settings.
    """

    data: str
    fraction: float
    listing: Path
    selected: Path
    result: Path
    method: str
    image_size: int
    epochs: int
    precision: str
    device: str
    profile: str

    @classmethod
    def from_command_line(cls, description: str | None, arguments: Sequence[str] | None = None) -> Self:
        """Read the options that ``options`` writes."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        for name, kind in get_type_hints(cls).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True)
        return cls(**vars(parser.parse_args(arguments)))

    @property
    def options(self) -> list[str]:
        """As words of a command line."""
        return [word for f in fields(self) for word in (f"--{f.name.replace('_', '-')}", str(asdict(self)[f.name]))]


def write_result(task: Task, result: dict[str, Any]) -> None:
    """Write what ``measuring.measure`` reads."""
    task.result.write_text(json.dumps(result), encoding="utf-8")
