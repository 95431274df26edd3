"""The report of a finished run can be written again, and its failure loses nothing of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import refusal, train, trained, twinbud
from twinbud.runs import report

REPORT_FILES = ("summary.json", "report.html", "model/README.md")


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_run, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("drawn_figures")
def test_the_report_is_rebuilt_byte_for_byte_from_the_summary_alone(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    """Neither images, teacher nor weights are there any more; the figures are drawn again."""
    run = trained(shared_images, shared_teacher, tmp_path / "run")
    before = contents(run)
    assert b"<path" in before["report.html"]
    for name in ("report.html", "model/README.md", "model/model.safetensors", "split.csv", "metrics.json"):
        (run / name).unlink()
    answer = twinbud("report", run)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"written: {run / 'report.html'}\n"
    for name in ("report.html", "model/README.md"):
        assert (run / name).read_bytes() == before[name]


def test_with_an_output_the_run_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before, page = contents(run), tmp_path / "page.html"
    assert twinbud("report", run, "--output", page).code == 0
    assert page.read_bytes() == before["report.html"]
    assert "replace it with --force" in refusal(twinbud("report", run, "--output", page))
    assert twinbud("report", run, "--output", page, "--force").code == 0
    assert contents(run) == before


def test_a_run_without_model_folder_has_its_page_rebuilt(run: Path) -> None:
    shutil.rmtree(run / "model")
    assert twinbud("report", run).code == 0
    assert not (run / "model").exists()


def test_what_is_no_finished_run_with_a_summary_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").write_text("{}")
    assert "summary.json: the summary of the run cannot be read" in refusal(twinbud("report", run))
    (run / "summary.json").unlink()
    assert "summary.json: the file is missing" in refusal(twinbud("report", run))
    (run / "UNFINISHED").touch()
    assert str(run) in refusal(twinbud("report", run))
    assert str(tmp_path) in refusal(twinbud("report", tmp_path))


def test_the_summary_of_another_run_is_refused(run: Path, shared_runs: Callable[..., Path]) -> None:
    other = shared_runs("--seed", "5", "--learning-rate", "5e-3")
    shutil.copy(other / "summary.json", run)
    line = refusal(twinbud("report", run))
    assert "summary.json: its metrics are not those in metrics.json beside it. Restore both files" in line


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("write_summary", FULL),
        ("write_model_card", FULL),
        ("write_report", FULL),
        ("write_report", RuntimeError("a bug of\na library")),
        ("write_report", ValueError()),
        ("write_report", MemoryError()),
    ],
)
def test_a_run_whose_report_cannot_be_written_is_finished_and_says_so(
    shared_images: Path,
    shared_teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: Exception,
) -> None:
    def failing(*arguments: Any, **settings: Any) -> None:
        del arguments, settings
        raise error

    monkeypatch.setattr(report, function, failing)
    run = tmp_path / "run"
    answer = train(shared_images, shared_teacher, run)
    assert answer.code == 0, answer.err
    functions = ("write_summary", "write_report", "write_model_card")
    missing = REPORT_FILES[functions.index(function)]
    assert [name for name in REPORT_FILES if not (run / name).exists()] == [missing]
    assert not (run / "UNFINISHED").exists()
    assert json.loads((run / "metrics.json").read_text())["num_test"] == 6
    (line,) = (line for line in answer.err.splitlines() if "is missing" in line)
    assert line.startswith(f"{missing} is missing (")
    monkeypatch.undo()
    if function != "write_summary":
        assert f"'twinbud report {run}' writes it again" in line
        assert twinbud("report", run).code == 0
        assert (run / missing).exists()
    assert twinbud("evaluate", run).code == 0
