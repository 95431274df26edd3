"""What the documents say works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from twinbud.cli.commands import train_config
from twinbud.cli.options import parse
from twinbud.config.loading import read_settings_file, run_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "EXPERIMENTS.md",
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text(encoding="utf-8")) if kind == language]


def commands() -> list[str]:
    joined = "\n".join(text for document in DOCUMENTS for text in blocks(document, "bash")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("twinbud ")]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_a_shell_example_holds_two_commands(document: Path) -> None:
    """Where a line break is lost, the shell takes the second command as arguments of the first."""
    for line in "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|;|\|", line):
            words = shlex.split(command, comments=True)
            assert words[:1] not in (["source"], ["make"], ["cd"]) or "twinbud" not in words, line


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_is_one_the_command_line_takes(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)[1:]
    chosen = parse(words)
    if words[0] == "train":  # options accept any text; the settings decide what is valid
        if "selected" in chosen:  # there is no such folder here
            chosen.teacher = "dinov2-small"
            delattr(chosen, "selected")
        train_config(chosen)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_a_run_and_its_head_says_the_command(recipe: Path) -> None:
    run_config(read_settings_file(recipe), output=Path("run"))
    (command,) = re.findall(r"^#\s+(twinbud train .*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    assert parse(shlex.split(command)[1:]).config == recipe.relative_to(ROOT)


def test_the_python_example_runs(shared_images: Path, shared_teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    example, recovery = blocks(ROOT / "docs" / "api.md", "python")
    replaced = {
        '"data/brain-mri"': repr(str(shared_images)),
        '"dinov2-small"': repr(shared_teacher),
        "image_size=112, epochs=40": "image_size=28, epochs=1",
        "fraction=0.05": "fraction=1.0",
    }
    for original, replacement in replaced.items():
        assert original in example
        example = example.replace(original, replacement)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/api.md", "exec"), names)
    assert capsys.readouterr().out.startswith("accuracy 0.")
    exec(compile(recovery, "docs/api.md", "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_in_the_documents_waits_to_be_filled_in(document: Path) -> None:
    assert re.findall(r".*(?:@@|TODO|XXX).*", document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_prose_is_wrapped_and_tables_and_examples_are_not(document: Path) -> None:
    prose = BLOCK.sub("", document.read_text(encoding="utf-8")).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_architecture_page_names_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text.partition("## Packages")[2].partition("\n## ")[0], re.MULTILINE)
    packages = sorted(path.name for path in (ROOT / "src" / "twinbud").iterdir() if (path / "__init__.py").is_file())
    assert sorted(named) == packages
