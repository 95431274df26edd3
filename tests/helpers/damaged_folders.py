"""Folders that twinbud wrote, with one file damaged, and what the commands say that read them: a function of a seed.

A command gives the result that it gives for the sound folder, or one line that says what is wrong.
"""

from __future__ import annotations

import json
import random
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.command import Answer, twinbud
from helpers.file_damage import damage
from helpers.killing import results
from helpers.sound_folders import CALIBRATE, Place, first_record, require

MAX_SECONDS = 60


class Hang(BaseException):
    """No answer within ``MAX_SECONDS``; not an Exception, so that no command catches it."""


@dataclass(frozen=True)
class Reader:
    """A command that reads a folder.

    Attributes:
        sources: From a place: the folder, and others whose files may get into it.
        files: Patterns of the files in it that are damaged.
        words: The command for a folder; what it writes besides goes to the second path.
        results: What must be as for the sound folder.
    """

    sources: Callable[[Place], tuple[Path, ...]]
    files: tuple[str, ...]
    words: Callable[[Place, Path, Path], tuple[object, ...]]
    results: Callable[[Path, Path, Answer], object]


def _runs(place: Place) -> tuple[Path, ...]:
    return place.run, place.twin, place.other


def _contents(*files: Path) -> list[bytes]:
    return [file.read_bytes() for file in files]


def _trust(run: Path, output: Path, answer: Answer) -> object:
    del output, answer
    return _contents(run / "model" / "trust.json", run / "model" / "trust.safetensors")


def _compared(run: Path, output: Path, answer: Answer) -> object:
    del run, output
    return re.sub(r'"(latency_seconds|folder)".*', "", answer.out)


def _record(runs: Path, output: Path, answer: Answer) -> object:
    del output, answer
    return json.loads(first_record(runs).read_text(encoding="utf-8"))["record"]["metrics"]


_MODEL = ("config.yaml", "model/*.json", "model/*.safetensors")
READERS = {
    "predict": Reader(
        _runs,
        _MODEL,
        lambda p, run, out: ("predict", run, p.images, "--output", out),
        lambda _, out, __: _contents(out),
    ),
    "evaluate": Reader(
        _runs,
        (*_MODEL, "split.csv"),
        lambda p, run, out: ("evaluate", run, "--output", out),
        lambda _, out, __: _contents(out / "metrics.json", out / "predictions.csv"),
    ),
    "calibrate": Reader(
        _runs,
        (*_MODEL, "split.csv", "out_of_fold.json", "summary.json", "metrics.json"),
        lambda p, run, out: ("calibrate", run, *CALIBRATE, "--force"),
        _trust,
    ),
    "calibrate --data": Reader(
        _runs,
        (*_MODEL, "split.csv", "summary.json"),
        lambda p, run, out: ("calibrate", run, "--data", p.elsewhere, "--coverage", 0.8),
        _trust,
    ),
    "compare": Reader(
        _runs,
        (
            "config.yaml",
            "metrics.json",
            "split.csv",
            "out_of_fold.json",
            "model/config.json",
            "model/model.safetensors",
        ),
        lambda p, run, out: ("compare", run, p.twin, "--folds", 2, "--json"),
        _compared,
    ),
    "explain": Reader(
        _runs,
        (*_MODEL, "split.csv", "predictions.csv", "summary.json", "explanations/explanations.csv"),
        lambda p, run, out: ("explain", run, "--force"),
        lambda run, _, __: _contents(run / "explanations" / "explanations.csv"),
    ),
    "report": Reader(
        _runs,
        ("config.yaml", "summary.json", "metrics.json"),
        lambda p, run, out: ("report", run),
        lambda run, _, __: _contents(run / "report.html", run / "model" / "README.md"),
    ),
    "train --resume": Reader(
        lambda p: (p.stopped, p.stopped_twin, p.stopped_other),
        ("checkpoints/**/*.json", "checkpoints/**/*.safetensors", "UNFINISHED", "config.yaml"),
        lambda p, run, out: p.resume_words(run),
        lambda run, _, __: results(run),
    ),
    "study": Reader(
        lambda p: (p.begun_study,),
        ("study.json", "plans/*", "records/*", "teachers/*/*"),
        lambda p, runs, out: p.study_words(runs),
        _record,
    ),
    "tables": Reader(
        lambda p: (p.study,),
        ("plans/*", "records/*"),
        lambda p, runs, out: ("tables", p.recipe[0], "--runs", runs, "--output", out),
        lambda _, out, __: _contents(out / "small.csv", out / "small.json"),
    ),
}


MAY_DIFFER = {
    "predict": ("model/trust.json: removed",),
    "evaluate": ("model/trust.json: removed",),
    "calibrate": ("model/model.safetensors: ",),
    "tables": ("records/", "plans/small.json: runs."),
}
"""Damage with which another result is right: a model without ``trust.json`` is not calibrated; other weights are
calibrated for what they are; a record that cannot be read counts as missing, as the tables say; and a plan of fewer
runs is a plan."""
_OTHER_RESULT = "another result"


@dataclass(frozen=True)
class Verdict:
    """What a command made of a damaged folder.

    Attributes:
        story: The command, which file was damaged, and how.
        answer: ``right``, ``refused``, or what is wrong.
    """

    story: str
    answer: str

    @property
    def is_sound(self) -> bool:
        return self.answer in ("right", "refused")


def judge(place: Place, seed: int, commands: Sequence[str] = tuple(READERS)) -> Verdict:
    """Damage one file of the folder that one of the commands reads, and give the command."""
    generator = random.Random(seed)
    command = generator.choice(commands)
    reader = READERS[command]
    source, *others = reader.sources(place)
    alike = sorted(path for path in source.glob(generator.choice(reader.files)) if path.is_file())
    file = generator.choice(alike)
    swaps = [other / file.relative_to(source) for other in others]
    swaps += [path for path in alike if path != file and path.suffix == file.suffix]
    expected = _expected(place, command)
    folder = place.copy(source)
    name = str(file.relative_to(source))
    story = f"{name}: {damage(folder / name, swaps, generator)}"
    answer = _answer(place, reader, folder, expected)
    if answer == _OTHER_RESULT and story.startswith(MAY_DIFFER.get(command, ())):
        answer = "right"
    return Verdict(f"seed {seed}: {command}: {story}", answer)


def _expected(place: Place, command: str) -> object:
    if command not in place.expected:
        reader = READERS[command]
        folder = place.copy(reader.sources(place)[0])
        answer = require(twinbud(*reader.words(place, folder, place.output)))
        place.expected[command] = reader.results(folder, place.output, answer)
    return place.expected[command]


def _answer(place: Place, reader: Reader, folder: Path, expected: object) -> str:
    try:
        with _limited(MAX_SECONDS):
            answer = twinbud(*reader.words(place, folder, place.output))
        if answer.code == 0:
            return "right" if reader.results(folder, place.output, answer) == expected else _OTHER_RESULT
    except (Exception, Hang) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
    lines = answer.err.splitlines() or [""]
    is_one_line = lines[-1].startswith("twinbud: ") and "Traceback" not in answer.err
    return "refused" if answer.code == 2 and is_one_line else f"exit code {answer.code}: {answer.err[-300:]}"


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def raise_hang(*_: object) -> None:
        raise Hang(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, raise_hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
