"""The flat Python API: its names, its keywords, and the examples of its docstrings."""

from __future__ import annotations

import doctest
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

import twinbud
from helpers.runs import same_outcome
from helpers.studies import recipe_content, save_recipe
from twinbud.auditing import probes
from twinbud.config.fields import hints_of
from twinbud.config.keywords import Settings
from twinbud.config.loading import read_setting
from twinbud.config.settings import STAGES, all_settings
from twinbud.core.errors import TwinbudError
from twinbud.data.read_image import read_image
from twinbud.explaining import api as explain_api
from twinbud.exporting import latency
from twinbud.models import family_listing
from twinbud.models.families.registry import FAMILIES
from twinbud.runs import api, calibrate_api, catalog, compare_api, export_api, teach_api
from twinbud.runs import export as exporting
from twinbud.runs.report import rebuild_report
from twinbud.study import api as study_api

JOBS: tuple[Callable[..., Any], ...] = (
    twinbud.audit,
    api.train,
    api.evaluate,
    calibrate_api.calibrate,
    compare_api.compare,
    api.predict,
    explain_api.explain,
    api.open_model,
    read_image,
    api.select,
    export_api.export,
    teach_api.teach,
    study_api.study,
    catalog.datasets,
    catalog.families,
    catalog.widths,
)


def test_the_package_names_each_job_once() -> None:
    assert sorted(twinbud.__all__) == sorted(["TwinbudError", *(job.__name__ for job in JOBS)])
    assert all(getattr(twinbud, name).__doc__ for name in twinbud.__all__)


def test_the_keywords_of_train_are_the_settings_of_the_schema() -> None:
    expected = {name: hint for kind in STAGES.values() for name, hint in hints_of(kind).items()}
    keywords = get_type_hints(Settings)
    assert set(keywords) == set(expected) - {"data", "teacher"}
    for name, hint in keywords.items():
        accepted = set(get_args(hint) or (hint,))
        wanted = set(get_args(expected[name]) or (expected[name],))
        assert accepted == wanted | ({str} if Path in wanted else set()), name


def test_defaults_of_the_other_jobs_are_those_of_the_schema() -> None:
    for job in JOBS:
        defaults = {name: one.default for name, one in inspect.signature(job).parameters.items()}
        for name in defaults.keys() & all_settings().keys():
            if defaults[name] not in (None, inspect.Parameter.empty):
                assert defaults[name] == all_settings()[name].default, (job, name)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "timm", "numpy", "pandas", "pydantic", "rich", "yaml")
    code = f"import sys, twinbud; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_of_studies_is_the_function_and_stays_a_package() -> None:
    import twinbud.study.run as module

    assert module.plan_study.__module__ == "twinbud.study.run"
    with pytest.raises(TwinbudError, match=r"^none\.yaml: "):
        twinbud.study("none.yaml")


@pytest.mark.parametrize("job", [*JOBS, rebuild_report], ids=lambda job: job.__name__)
def test_the_examples_of_a_docstring_run(
    job: Callable[..., Any],
    shared_images: Path,
    shared_run: Path,
    shared_teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside images, a recipe and a finished run; with a small teacher and the short training of the paper."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "EXPORTERS", ("legacy",))  # takes a tenth of the time
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(probes, "NUM_SHUFFLES", 9)
    monkeypatch.setattr(family_listing, "FAMILIES", FAMILIES[:2])
    shutil.copytree(shared_images, "images")
    save_recipe(tmp_path / "recipe.yaml", recipe_content(shared_teacher))
    if job is not api.train:  # which makes it
        shutil.copytree(shared_run, "runs/first")
    if job is compare_api.compare:
        shutil.copytree(shared_run, "runs/second")
    names: dict[str, Any] = {"Path": Path, "rebuild_report": rebuild_report}
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(job) or "", job.__name__)
    assert len(examples) >= 2
    for example in examples:
        source = example.source.replace('"dinov2-small"', repr(shared_teacher))
        if "twinbud.train(" in source:
            source = source.replace("epochs=1", 'epochs=1, profile="paper"')
        if example.want:
            assert repr(eval(source, names)) == example.want.strip()
        else:
            exec(source, names)


def test_settings_are_checked_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"^there is no setting 'epoch'\. Did you mean 'epochs'\?"):
        twinbud.train(data="phantom", teacher="dinov2-small", output=tmp_path / "run", epoch=1)  # type: ignore[call-arg]
    with pytest.raises(TwinbudError, match="--fraction: '2' is not a number above 0 and of at most 1"):
        twinbud.train(data="phantom", teacher="dinov2-small", output=tmp_path / "run", fraction=2)
    with pytest.raises(TwinbudError, match="--weights: 'int8' is not one of float32, float16"):
        twinbud.select(teacher="dinov2-small", output=tmp_path / "s", weights="int8")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_job_does_not_depend_on_what_the_caller_has_set_in_torch(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    settings: Any = {"profile": "paper", "image_size": 28, "epochs": 1, "precision": "float32", "show_progress": False}
    plain = twinbud.train(data=shared_images, teacher=shared_teacher, output=tmp_path / "plain", **settings)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
            other = twinbud.train(data=shared_images, teacher=shared_teacher, output=tmp_path / "other", **settings)
            model = twinbud.open_model(other.folder)
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_device().type == "meta"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_outcome(plain.folder, other.folder)
    assert len(repr(other)) < 20_000
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("cpu", torch.float32)}
    assert not any(weight.is_inference() for weight in model.parameters())


def test_a_study_in_this_process_does_not_depend_on_it_either(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    content = recipe_content(shared_teacher, methods={"plain": {"method": "selection"}})
    content["grid"] |= {"method": ["plain"], "sampling": [0]}
    recipe = save_recipe(tmp_path / "small.yaml", content | {"baseline": {"method": "plain"}})

    def metrics(runs: str) -> Any:
        done = twinbud.study(
            recipe, data={"shades": shared_images}, runs=tmp_path / runs, num_workers=0, show_progress=False
        )
        (run,) = done.runs
        return done.store.read(run.run_id)["metrics"]

    expected = metrics("plain")
    with torch.inference_mode(), torch.autocast("cpu"):
        assert metrics("other") == expected


def test_a_job_leaves_the_random_state_of_torch(shared_runs: Callable[..., Path]) -> None:
    run = shared_runs()
    before = torch.get_rng_state()
    twinbud.open_model(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_image_and_an_empty_path_are_refused(shared_runs: Callable[..., Path]) -> None:
    run = shared_runs()
    for job in (twinbud.predict, twinbud.explain):
        with pytest.raises(TwinbudError, match=r"^images: no path is given"):
            job(run, [], show_progress=False)
        for images in ("", ["a.png", ""]):
            with pytest.raises(TwinbudError, match=r"^images: the value is empty"):
                job(run, images, show_progress=False)
    with pytest.raises(TwinbudError, match=r"^compare: 1 run cannot be compared"):
        twinbud.compare(str(run), show_progress=False)


def test_values_of_numpy_and_text_are_read_as_settings(shared_images: Path) -> None:
    image = shared_images / "dark" / "000.png"
    pixels = read_image(image)
    for number in (np.int64(0), "0"):
        values: Any = {"frame": number, "volume": number}
        assert np.array_equal(read_image(image, **values), pixels)
    with pytest.raises(TwinbudError, match=r"^--frame: 'x' is not a whole number, or none"):
        read_image(image, frame="x")  # type: ignore[arg-type]
    with pytest.raises(TwinbudError, match=r"^--window: 'None' is not text"):
        read_image(image, window=None)  # type: ignore[arg-type]
    assert read_setting("frames", np.int64(1)) == "1"
