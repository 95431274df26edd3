"""From settings by name, as a YAML file, keywords and the command line give them, to a checked RunConfig, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from twinbud.config.combinations import unopened_teacher
from twinbud.config.data_spec import COLUMNS, columns_of, parse_data
from twinbud.config.fields import Checked, unknown_setting
from twinbud.config.plan import PLANNED, contradicts_plan, read_plan
from twinbud.config.profiles import DEFAULT_PROFILE, PROFILES, profile_defaults
from twinbud.config.schema import WHOLE_METHODS, RunConfig, teacher_use
from twinbud.config.settings import STAGES, all_settings
from twinbud.config.teacher_spec import architecture_of, parse_teacher
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.files import read_yaml

StageConfig = TypeVar("StageConfig", bound=Checked)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings by name from a YAML file, flat or nested by stage, such as a run's ``config.yaml``.

    Raises:
        TwinbudError: The file is missing, not YAML, or a recipe; a setting is unknown or has an invalid value.
    """
    where = f"--config {path}"
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fix = "Give a YAML file, such as the config.yaml of a run"
        raise TwinbudError(f"the settings cannot be read ({reason})", where=where, fix=fix) from error
    if isinstance(content, dict) and "grid" in content:
        fix = f"Give it to 'twinbud study {path}'"
        raise TwinbudError("the file is a recipe of many runs, not the settings of one", where=where, fix=fix)
    return checked_settings(content, where)


def checked_settings(content: Any, where: str) -> dict[str, Any]:
    """Flatten a mapping of settings, and check each value by itself.

    Raises:
        TwinbudError: See ``flatten_settings``; or a value is invalid.
    """
    settings = flatten_settings(content, where)
    for name, value in settings.items():
        try:
            read_setting(name, value)
        except TwinbudError as error:
            raise error.at(where) from None
    return settings


def flatten_settings(content: Any, where: str) -> dict[str, Any]:
    """Flatten a mapping of settings, some of which may be nested by stage.

    >>> flatten_settings({"fraction": 0.05, "training": {"epochs": 3, "seed": 1}}, "run.yaml")
    {'fraction': 0.05, 'epochs': 3, 'seed': 1}

    Raises:
        TwinbudError: A name is unknown, belongs to another stage, or is given twice.
    """
    if not isinstance(content, Mapping):
        raise TwinbudError("the content is not a mapping of settings", where=where, fix="Write NAME: VALUE lines")
    known, flat = all_settings(), dict[str, Any]()
    for key, value in content.items():
        is_stage = key in STAGES and (value is None or isinstance(value, Mapping))
        place = f"{where}: {key}" if is_stage else where
        for name, inner in (value or {}).items() if is_stage else [(key, value)]:
            if name not in known:
                raise unknown_setting(str(name), known, place)
            if is_stage and known[name].stage != key:
                raise TwinbudError(f"'{name}' is a setting of '{known[name].stage}'", where=place, fix="Move it there")
            if name in flat:
                raise TwinbudError(f"'{name}' is given twice", where=place, fix="Keep one of them")
            flat[name] = inner
    return flat


def merge_settings(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Override the settings of a file by those of the command line.

    ``selected`` replaces all that its plan holds, ``teacher`` replaces ``selected``, and ``data`` replaces
    ``data_root`` and the columns that it cannot have.

    Raises:
        TwinbudError: The command line names another profile than the file, whose values the file may spell out.
    """
    profile = saved.get("profile", given.get("profile"))
    if given.get("profile", profile) != profile:
        fix = "Override single settings, such as --image-size 112, or leave --config out"
        raise TwinbudError(
            f"'{given['profile']}' contradicts profile '{profile}' of the --config file", where="--profile", fix=fix
        )
    replaced = PLANNED if "selected" in given else ("selected",) if "teacher" in given else ()
    if "data" in given:
        columns = set(COLUMNS) - set(columns_of(str(given["data"])))
        replaced = (*replaced, "data_root", *columns)
    return {**{name: value for name, value in saved.items() if name not in replaced}, **given}


def run_config(settings: Mapping[str, Any], *, output: Path, **handling: Any) -> RunConfig:
    """Build the run that ``settings`` describe.

    Precedence, lowest to highest: schema, profile, plan of ``selected``, settings.

    Args:
        settings: By name, as in ``config.yaml``; text is converted to the type of the setting.
        output: The run folder.
        **handling: ``force``, ``resume``, ``checkpoint_seconds``, ``pixel_cache`` and ``logits`` of RunConfig.

    Raises:
        TwinbudError: An unknown setting, an invalid value, or settings that contradict each other or the plan.
    """
    for name in settings:
        if name not in all_settings():
            raise unknown_setting(name, all_settings())
    profile = settings.get("profile", DEFAULT_PROFILE)
    if not isinstance(profile, str) or profile not in PROFILES:
        raise unknown_choice("--profile", profile, PROFILES)
    student = settings.get("student", "same")
    pretrained = settings.get("teacher") if student == "same" else student
    defaults = profile_defaults(
        profile,
        settings.get("method"),
        pretrained,
        teacher=_architecture(settings),
        family=_family(settings),
        is_fitted=may_be_fitted(settings),
    )
    merged = defaults | {"profile": profile} | dict(settings)
    if read_setting("selected", merged.get("selected")) is not None:
        recover, distillation = (
            read_setting(name, merged.get(name, all_settings()[name].default)) for name in ("recover", "distillation")
        )
        merged |= _planned_settings(settings, teacher_use(recover, distillation))
    stages: dict[str, Any] = {stage: stage_config(kind, merged) for stage, kind in STAGES.items()}
    return RunConfig(**stages, output=output, **handling)


def may_be_fitted(settings: Mapping[str, Any]) -> bool:
    """Return whether nothing in ``settings`` keeps a student from being fitted to a teacher tuned before."""
    tunes = read_setting("tune_teacher", settings.get("tune_teacher", True))
    recovers = read_setting("recover", settings.get("recover", "labelled")) != "none"
    fits = all(read_setting(name, settings.get(name, "on")) == "on" for name in ("recover_refit", "recover_classifier"))
    return tunes and recovers and fits and read_setting("selected", settings.get("selected")) is None


def _architecture(settings: Mapping[str, Any]) -> str | None:
    """Return the teacher's architecture, which the plan of ``selected`` may say where ``teacher`` does not."""
    given = read_setting("teacher", settings.get("teacher"))
    return architecture_of(_planned(settings, "teacher")) or architecture_of(given)


def _family(settings: Mapping[str, Any]) -> str:
    """Return how the widths are known."""
    return _planned(settings, "family") or read_setting("family", settings.get("family", "described"))


def _planned(settings: Mapping[str, Any], name: str) -> str | None:
    """Return what the plan of ``selected`` fixes; None without one."""
    folder = read_setting("selected", settings.get("selected"))
    return None if folder is None else read_plan(folder)[name]


def _planned_settings(settings: Mapping[str, Any], use: tuple[str, str] | None) -> dict[str, Any]:
    """Return what the plan of ``selected`` fixes; ``teacher`` says where a teacher that is used is now.

    Raises:
        TwinbudError: There is no plan, a setting contradicts it, or the teacher is missing.
    """
    folder = read_setting("selected", settings["selected"])
    planned = read_plan(folder)
    if use is not None:
        if settings.get("teacher") is None:
            raise unopened_teacher(*use)
        planned["teacher"] = settings["teacher"]
    for name, value in planned.items():
        if name in settings and read_setting(name, settings[name]) not in (value, None):
            raise contradicts_plan(folder, name, settings[name], value)
    return planned


def stage_config(kind: type[StageConfig], settings: Mapping[str, Any]) -> StageConfig:
    """Build one stage's settings from those among ``settings`` that belong to it.

    Raises:
        TwinbudError: An invalid value.
    """
    return kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})


def read_setting(name: str, value: Any) -> Any:
    """Convert a setting's value to its type.

    Raises:
        TwinbudError: An invalid value.
    """
    return getattr(stage_config(STAGES[all_settings()[name].stage], {name: value}), name)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return all settings by name, flat and in plain types, as ``config.yaml`` holds them, without handling."""
    values = {name: getattr(getattr(config, each.stage), name) for name, each in all_settings().items()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the same run, with settings that can be read back from any folder.

    Beside ``selected``, a teacher that is not opened keeps its name: it may be a path of another machine.
    """
    data, model = config.data, config.model
    is_opened = model.teacher is not None and (model.selected is None or config.teacher_use is not None)
    place = str(Path(data.data).expanduser().absolute()) if parse_data(data.data).is_path else data.data
    root = data.data_root.expanduser().absolute() if data.data_root else None
    return replace(
        config,
        data=replace(
            data,
            data=place,
            data_root=root,
            split=data.split.absolute() if data.split else None,
            patient_salt=data.patient_salt.expanduser().absolute() if data.patient_salt else None,
        ),
        model=replace(
            model,
            teacher=str(parse_teacher(model.teacher or "").absolute()) if is_opened else model.teacher,
            student=str(parse_teacher(model.student).absolute()) if model.method in WHOLE_METHODS else model.student,
            selected=model.selected.absolute() if model.selected else None,
        ),
    )
