"""``twinbud study`` and ``twinbud tables``: their options and functions; torch is imported when a command runs."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from twinbud.config.loading import read_value
from twinbud.config.schema import PROFILES

_RUNS = Path("runs/study")


def study_options(parser: ArgumentParser) -> None:
    """Add the options of ``twinbud study``."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="The recipe, such as those in recipes/paper/.")
    text = "Path of an image set of the recipe; 'phantom' needs none. Can be repeated."
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help=text)
    _add_runs(parser, "Runs folder; recipes with the same folder share runs")
    text = "Worker processes; 0 runs in this process [as many as the CPU cores allow; one on a GPU]."
    parser.add_argument("--workers", metavar="N", help=text)
    text = "Profile that supplies the defaults of all settings [the recipe's]."
    parser.add_argument("--profile", type=str | None, metavar="|".join(PROFILES), help=text)
    text = "Execute these runs only, such as fraction=0.05 or sampling=0,1,2. Can be repeated."
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help=text)
    parser.add_argument("--keep-models", action="store_true", help="Keep the trained model of every run.")
    text = "Do not cache decoded images on the disk; each worker then decodes all images."
    parser.add_argument("--no-pixel-cache", dest="pixel_cache", action="store_false", help=text)
    parser.add_argument("--dry-run", action="store_true", help="Print the plan and the estimated time, and stop.")


def tables_options(parser: ArgumentParser) -> None:
    """Add the options of ``twinbud tables``."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="The recipe given to 'twinbud study'.")
    _add_runs(parser, "Runs folder of 'twinbud study'")
    parser.add_argument("--output", type=Path | None, metavar="DIR", help="Folder for the tables [RUNS/tables].")


def _add_runs(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--runs", type=Path, default=_RUNS, metavar="DIR", help=f"{text} [{_RUNS}].")


def study(chosen: Namespace) -> None:
    """Execute a study, or print its plan."""
    from twinbud.cli.study_display import show_plan, show_status, show_study_result
    from twinbud.core.progress import TerminalProgress
    from twinbud.study.run import StudyRequest, estimate_seconds, execute_study, plan_study, require_success

    request = StudyRequest(
        recipe=chosen.recipe,
        runs=chosen.runs,
        data=chosen.data,
        only=chosen.only,
        profile=chosen.profile,
        num_workers=read_value("workers", chosen.workers, int | None),
        keep_models=chosen.keep_models,
        pixel_cache=chosen.pixel_cache,
    )
    progress = TerminalProgress()
    planned = plan_study(request, progress)
    if chosen.dry_run:
        show_plan(planned, estimate_seconds(planned, progress))
        return
    with show_status(planned.distinct) as on_status:
        done = execute_study(request, planned, progress, on_status)
    show_study_result(done, f"twinbud tables {chosen.recipe} --runs {chosen.runs}")
    require_success(done)


def tables(chosen: Namespace) -> None:
    """Write the tables, and print their paths."""
    from twinbud.cli.study_display import show_written
    from twinbud.study.export import write_tables

    show_written(write_tables(chosen.recipe, chosen.runs, chosen.output))
