"""From settings by name, as a YAML file and the command line give them, to a checked RunConfig, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from twinbud.config.schema import (
    PROFILES,
    DataConfig,
    ModelConfig,
    RecoveryConfig,
    RunConfig,
    TrainingConfig,
)
from twinbud.core.errors import TwinbudError, unknown_choice
from twinbud.core.files import read_yaml

Stage = type[DataConfig] | type[ModelConfig] | type[RecoveryConfig] | type[TrainingConfig]
Config = TypeVar("Config", DataConfig, ModelConfig, RecoveryConfig, TrainingConfig)

ORIGIN = ("teacher", "student", "rule", "attention", "swap_roles")
"""The settings that the plan of ``selected`` holds."""
STAGES: dict[str, Stage] = {
    "data": DataConfig,
    "model": ModelConfig,
    "recovery": RecoveryConfig,
    "training": TrainingConfig,
}

_LEAST_SQUARES = frozenset({"recover_views", "recover_memory"})
_MATCHING = frozenset({"recover_batch_size", "recover_learning_rate", "recover_target", "recover_blocks"})
"""Settings of the two steps of recovery."""

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "none",
}


def setting_names() -> list[str]:
    """The names of all settings, stage by stage."""
    return [setting.name for kind in STAGES.values() for setting in fields(kind)]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All settings by name, flat and in plain types, as ``config.yaml`` holds them; output and force left out."""
    values = {
        setting.name: getattr(getattr(config, stage), setting.name)
        for stage, kind in STAGES.items()
        for setting in fields(kind)
    }
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def unread_settings(recovery: RecoveryConfig) -> frozenset[str]:
    """Settings of recovery that change nothing, since others leave out the step that they are of."""
    if recovery.recover == "none":
        return frozenset(setting.name for setting in fields(RecoveryConfig)) - {"recover"}
    unread = _LEAST_SQUARES if recovery.recover_refit == "off" else frozenset[str]()
    return unread | (_MATCHING if not recovery.recover_epochs else frozenset[str]())


def unread_words(config: RunConfig) -> tuple[str, ...]:
    """A line for each setting that was given a value of its own and is not read."""
    profile = PROFILES[config.training.profile]
    plain, values = settings_of(replace(config, recovery=RecoveryConfig())), settings_of(config)
    return tuple(
        f"--{name.replace('_', '-')} {values[name]} is not read: its step of recovery is left out"
        for name in sorted(unread_settings(config.recovery) & config.given)
        if values[name] != profile.get(name, plain[name])
    )


def numeric_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that change numbers: neither where things are, nor on what they run, nor what is looked at.

    Settings of recovery that are not read stand at their defaults.
    """
    plain = RecoveryConfig()
    unread = {name: getattr(plain, name) for name in unread_settings(config.recovery)}
    config = replace(config, recovery=replace(config.recovery, **unread))
    places = {"data", "split", "teacher", "selected"}
    left_out = places | {"device", "threads", "evaluate_every", "skip_broken", "max_megapixels"}
    return {name: value for name, value in settings_of(config).items() if name not in left_out}


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same run, but that its saved settings hold wherever they are read."""
    data, model = config.data, config.model
    return replace(
        config,
        data=replace(
            data,
            data=data.data if data.data == "phantom" else str(Path(data.data).expanduser().absolute()),
            split=data.split.absolute() if data.split else None,
        ),
        model=replace(
            model,
            # beside a selection it is a name, since it may have lain on another machine, unless it is opened
            teacher=_absolute_teacher(model.teacher)
            if model.teacher and (not model.selected or config.recovery.recover != "none")
            else model.teacher,
            selected=model.selected.absolute() if model.selected else None,
        ),
    )


def teacher_place(teacher: str) -> tuple[str, str]:
    """How a teacher is spelled, in two: what stands before its path, and the path, empty where there is none."""
    if teacher.startswith("local-dir:"):
        return "local-dir:", teacher.removeprefix("local-dir:")
    architecture, at, file = teacher.partition("@")
    return architecture + at, file


def _absolute_teacher(teacher: str) -> str:
    before, path = teacher_place(teacher)
    return f"{before}{Path(path).absolute()}" if path else teacher


def with_words(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file under those of the command line, which win.

    ``selected`` also stands for what its plan was made with, and ``teacher`` for where the weights come from: of
    these nothing is left of the file.

    Raises:
        TwinbudError: Another profile than the file's, whose settings the file may spell out.
    """
    profile = saved.get("profile", given.get("profile"))
    if given.get("profile", profile) != profile:
        raise TwinbudError(
            f"the profile of the --config file, {profile}, or none",
            got=f"'{given['profile']}'",
            where="--profile",
            fix="Give the settings to be changed, such as --image-size 112, or leave --config out",
        )
    replaced = ORIGIN if "selected" in given else ("selected",) if "teacher" in given else ()
    return {**{name: value for name, value in saved.items() if name not in replaced}, **given}


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings by name from a YAML file, such as a run's ``config.yaml``.

    Raises:
        TwinbudError: No such file, one that is no YAML, or an unknown setting.
    """
    try:
        settings = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TwinbudError("a YAML file of settings", got=f"none ({reason})", where=f"--config {path}") from error
    if not isinstance(settings, dict):
        raise TwinbudError("settings by name", got="something else", where=f"--config {path}", fix="Write NAME: VALUE")
    if "grid" in settings:
        fix = f"Give it to 'twinbud study {path}'"
        raise TwinbudError("settings of one run", got="a recipe of many", where=f"--config {path}", fix=fix)
    for name in settings:
        if name not in setting_names():
            raise unknown_choice(f"--config {path}", name, sorted(setting_names()))
    return settings


def run_config(
    settings: Mapping[str, Any],
    *,
    output: Path,
    force: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    pixel_cache: bool = True,
    logits: bool = False,
) -> RunConfig:
    """The run that ``settings`` describe; what they leave out comes from their profile.

    Args:
        settings: By name, as in ``config.yaml``; words are read as the setting's type.
        output: The run folder.
        force: Replace an earlier run.
        resume: Go on with an unfinished one.
        checkpoint_seconds: Training time between two checkpoints.
        pixel_cache: Keep decoded images in the cache folder and take them from there.
        logits: Write logits to ``predictions.csv`` as well.

    Raises:
        TwinbudError: An unknown setting, a value of another type, or one out of its range.
    """
    for name in settings:
        if name not in setting_names():
            raise unknown_choice("settings", name, sorted(setting_names()))
    profile = settings.get("profile", "paper")
    if not isinstance(profile, str) or profile not in PROFILES:
        raise unknown_choice("--profile", profile, PROFILES)
    given = {**PROFILES[profile], **settings}
    return RunConfig(
        data=stage_config(DataConfig, given),
        model=stage_config(ModelConfig, given),
        recovery=stage_config(RecoveryConfig, given),
        training=stage_config(TrainingConfig, given),
        output=output,
        force=force,
        resume=resume,
        checkpoint_seconds=read_value("checkpoint_seconds", checkpoint_seconds, float),
        pixel_cache=pixel_cache,
        logits=logits,
        given=frozenset(settings),
    )


def stage_config(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """One stage's settings, from those among ``settings`` that are its own.

    Raises:
        TwinbudError: A value of another type, or one out of its range.
    """
    hints = get_type_hints(kind)
    return kind(**{name: read_value(name, settings[name], hints[name]) for name in hints if name in settings})


def read_setting(name: str, value: Any) -> Any:
    """A setting's value as its type, whatever the stage.

    Raises:
        TwinbudError: See ``read_value``.
    """
    hints = [hints[name] for kind in STAGES.values() if name in (hints := get_type_hints(kind))]
    return read_value(name, value, hints[0])


def read_value(name: str, value: Any, hint: Any) -> Any:
    """``value``, or what its word says, as the type ``hint``; a choice is checked by the stage itself.

    Raises:
        TwinbudError: It is none.
    """
    if isinstance(value, list | dict):
        raise TwinbudError("a single value", got="several", where=f"--{name.replace('_', '-')}")
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) not in (None, Literal) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind) or len(kinds) == 1:
                return value
        else:
            read = _as(value, kind)
            if read is not _NOT_ONE:
                return read
    expected = [w for kind in kinds for w in ([f"'{c}'" for c in get_args(kind)] or [_WORDS[kind]])]
    raise TwinbudError(" or ".join(expected), got=f"'{value}'", where=f"--{name.replace('_', '-')}")


_NOT_ONE = object()


def _as(value: Any, kind: type) -> Any:
    """``value`` as ``kind``, or _NOT_ONE; true is no number, and no number is text."""
    if kind is NoneType:
        return None if value is None or value == "none" else _NOT_ONE
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else _NOT_ONE
    if kind in (int, float) and isinstance(value, int | float | str):
        try:
            return kind(value) if not (kind is int and isinstance(value, float)) else _NOT_ONE
        except (ValueError, OverflowError):
            return _NOT_ONE
    if kind in (str, Path) and isinstance(value, str | Path):
        return kind(value)
    return _NOT_ONE
