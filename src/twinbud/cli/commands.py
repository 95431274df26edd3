"""What each command calls, most of them the Python API; torch is imported only where a command needs it."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinbud.auditing import api as audit_api
from twinbud.cli import options
from twinbud.cli.streams import require_written
from twinbud.config.fields import read_value
from twinbud.config.loading import merge_settings, read_settings_file, run_config
from twinbud.config.settings import all_settings
from twinbud.core.errors import TwinbudError, images_named
from twinbud.core.progress import TerminalProgress
from twinbud.explaining import api as explain_api
from twinbud.runs import api, calibrate_api, catalog, compare_api, export_api, teach_api


def demo(chosen: Namespace) -> None:
    """Run ``twinbud demo``."""
    from twinbud.cli.console import show_demo
    from twinbud.runs import demo

    show_demo(demo.demo(chosen.output, force=chosen.force, progress=TerminalProgress()))


def select(chosen: Namespace) -> None:
    """Run ``twinbud select``."""
    selection = api.select(**{"teacher": None, **vars(chosen)})
    from twinbud.cli.console import show_selection

    show_selection(selection, chosen.output)


def train(chosen: Namespace) -> None:
    """Run ``twinbud train``."""
    config = train_config(chosen)
    from twinbud.cli.console import show_run
    from twinbud.runs.divided import train_in_all_processes

    run = train_in_all_processes(config, TerminalProgress())
    if run is not None:
        show_run(run)


def train_config(chosen: Namespace) -> Any:
    """Return the run that the options of ``twinbud train`` and its ``--config`` file describe.

    Raises:
        TwinbudError: No images are given; see also ``run_config``.
    """
    saved = read_settings_file(chosen.config) if chosen.config else {}
    given = {name: value for name, value in vars(chosen).items() if name in all_settings()}
    settings = merge_settings(saved, given)
    if settings.get("data") is None:
        fix = "Give a folder of class folders, a CSV file, 'phantom' for generated images, or a set by name"
        raise TwinbudError("no images are given", where="--data", fix=fix)
    return run_config(settings, **{name: getattr(chosen, name) for name in options.HANDLING})


def evaluate(chosen: Namespace) -> None:
    """Run ``twinbud evaluate``."""
    evaluation = api.evaluate(**vars(chosen))
    from twinbud.cli.console import show_evaluation

    show_evaluation(evaluation, chosen.output)


def calibrate(chosen: Namespace) -> None:
    """Run ``twinbud calibrate``."""
    calibrated = calibrate_api.calibrate(**vars(chosen))
    from twinbud.cli.trust_display import show_calibration

    show_calibration(calibrated.report, calibrated.folder)


def compare(chosen: Namespace) -> None:
    """Run ``twinbud compare``."""
    compared = compare_api.compare(chosen.runs, folds=chosen.folds)
    from twinbud.cli.compare_display import show_comparison

    show_comparison(compared, as_json=chosen.json)
    require_written("the comparison", fix="Free some space, or print it elsewhere")


def predict(chosen: Namespace) -> None:
    """Run ``twinbud predict``."""
    predictions = api.predict(**vars(chosen))
    from twinbud.cli.console import show_predictions

    if chosen.output is None:
        show_predictions(predictions, logits=chosen.logits)
        require_written("the predictions")


def explain(chosen: Namespace) -> None:
    """Run ``twinbud explain``."""
    to_page = not chosen.images and chosen.output is None
    if chosen.images and chosen.output is None:
        chosen.output = Path("twinbud-explanations")
    chosen.images = chosen.images or None
    explained = explain_api.explain(**vars(chosen))
    from twinbud.cli.console import show_explanations

    show_explanations(explained, report=chosen.model / "report.html" if to_page else None)


def export(chosen: Namespace) -> None:
    """Run ``twinbud export``."""
    exported = export_api.export(**vars(chosen))
    from twinbud.cli.export_display import show_export

    show_export(exported)


def report(chosen: Namespace) -> None:
    """Run ``twinbud report``."""
    from twinbud.cli.console import show_written
    from twinbud.runs.report import rebuild_report

    show_written(rebuild_report(chosen.run, output=chosen.output, force=chosen.force))


def teach(chosen: Namespace) -> None:
    """Run ``twinbud teach``."""
    taught = teach_api.teach(**vars(chosen))
    from twinbud.cli.console import show_teaching

    show_teaching(taught)


def audit(chosen: Namespace) -> None:
    """Run ``twinbud audit``."""
    with images_named("DATA"):
        found = audit_api.audit(**vars(chosen))
    from twinbud.cli.console import show_audit

    show_audit(found, chosen.output)


def study(chosen: Namespace) -> None:
    """Run ``twinbud study``."""
    num_workers = read_value("workers", chosen.workers, int | None)
    from twinbud.cli.study_display import show_plan, show_status, show_study_result
    from twinbud.study.run import StudyRequest, estimate_seconds, execute_study, plan_study, require_success

    request = StudyRequest(
        recipe=chosen.recipe,
        runs=chosen.runs,
        data=chosen.data,
        only=chosen.only,
        profile=chosen.profile,
        num_workers=num_workers,
        executor=chosen.executor,
        address=chosen.address,
        num_gpus=read_value("gpus", chosen.gpus, float | None),
        slurm=chosen.slurm,
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
    show_study_result(done, shlex.join(["twinbud", "tables", str(chosen.recipe), "--runs", str(chosen.runs)]))
    require_success(done)


def families(chosen: Namespace) -> None:
    """Run ``twinbud families``."""
    from twinbud.cli.family_display import show_families, show_widths

    if chosen.network is None:
        if "family" in vars(chosen):
            problem = f"'{chosen.family}' has no effect without NAME"
            raise TwinbudError(problem, where="--family", fix="Leave it out, or name a network")
        show_families(catalog.families(), as_json=chosen.json)
    else:
        show_widths(catalog.widths(chosen.network, family=vars(chosen).get("family", "described")), as_json=chosen.json)


def tables(chosen: Namespace) -> None:
    """Run ``twinbud tables``."""
    from twinbud.cli.study_display import show_written
    from twinbud.study.write_tables import write_tables

    show_written(write_tables(chosen.recipe, chosen.runs, chosen.output))


def datasets(chosen: Namespace) -> None:
    """Run ``twinbud datasets``."""
    from twinbud.cli.dataset_display import show_datasets

    show_datasets(catalog.datasets(chosen.data_root), as_json=chosen.json)
    require_written("the list", fix="Free some space, or print it elsewhere")


RUN: dict[str, Callable[[Namespace], None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "compare": compare,
    "predict": predict,
    "explain": explain,
    "export": export,
    "report": report,
    "select": select,
    "teach": teach,
    "audit": audit,
    "study": study,
    "datasets": datasets,
    "families": families,
    "tables": tables,
}
