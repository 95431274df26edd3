"""``twinbud study`` and ``twinbud tables``: their options, and words to calls; torch waits until a command is known."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from twinbud.config.loading import read_value
from twinbud.config.schema import PROFILES

_RUNS = Path("runs/study")


def study_options(parser: ArgumentParser) -> None:
    """What ``study`` can be told."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="What to run; see recipes/paper/.")
    text = "Where a set of images of the recipe lies; 'phantom' needs none. Can be given several times."
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help=text)
    _add_runs(parser, "Runs folder; several recipes can share one, and then share runs")
    text = "Runs at once [as many as the cores carry; one on a GPU]."
    parser.add_argument("--workers", metavar="N", help=text)
    text = "Where the defaults of all settings come from [the recipe's]."
    parser.add_argument("--profile", type=str | None, metavar="|".join(PROFILES), help=text)
    text = "Do these runs only, such as fraction=0.05 or sampling=0,1,2. Can be given several times."
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help=text)
    parser.add_argument("--keep-models", action="store_true", help="Keep the trained model of every run.")
    text = "Keep no decoded images in the cache folder; each worker then decodes them for itself."
    parser.add_argument("--no-pixel-cache", dest="pixel_cache", action="store_false", help=text)
    parser.add_argument("--dry-run", action="store_true", help="Only say what would be run, and how long it takes.")


def tables_options(parser: ArgumentParser) -> None:
    """What ``tables`` can be told."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="The recipe given to 'twinbud study'.")
    _add_runs(parser, "Runs folder of 'twinbud study'")
    parser.add_argument("--output", type=Path | None, metavar="DIR", help="Folder for the tables [RUNS/tables].")


def _add_runs(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--runs", type=Path, default=_RUNS, metavar="DIR", help=f"{text} [{_RUNS}].")


def study(chosen: Namespace) -> None:
    """Do a study, or say what it would do."""
    from twinbud.cli.study_display import show_plan, show_study_result, watching
    from twinbud.core.progress import TerminalProgress
    from twinbud.study.run import StudyRequest, estimate_seconds, execute_study, plan_study, require_success

    order = StudyRequest(
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
    planned = plan_study(order, progress)
    if chosen.dry_run:
        show_plan(planned, estimate_seconds(planned, progress))
        return
    with watching(planned.distinct) as watch:
        done = execute_study(order, planned, progress, watch)
    show_study_result(done, f"twinbud tables {chosen.recipe} --runs {chosen.runs}")
    require_success(done)


def tables(chosen: Namespace) -> None:
    """Write the tables, and say where."""
    from twinbud.cli.study_display import show_written
    from twinbud.study.export import write_tables

    show_written(write_tables(chosen.recipe, chosen.runs, chosen.output))
