"""Which settings of a run have an effect: those that change its results, and those that a note warns of."""

from __future__ import annotations

from typing import Any

from twinbud.config.fields import option_of
from twinbud.config.loading import may_be_fitted, settings_of
from twinbud.config.profiles import profile_defaults
from twinbud.config.schema import INHERITING_METHODS, RANDOM_METHODS, RunConfig
from twinbud.config.settings import all_settings
from twinbud.config.teacher_spec import architecture_of

_SELECTION = ("rule", "attention", "swap_roles")
_STUDENT_TRAINING = ("learning_rate", "layer_decay", "min_steps", "evaluate_every", "distillation")
"""Settings of the student's training that the fine-tuning of the teacher has of its own, or has not."""
_LEAST_SQUARES = frozenset({"recover_method", "recover_stream", "recover_metric"})
_VIEWS = frozenset({"recover_views", "recover_memory"})
_MATCHING = frozenset({"recover_batch_size", "recover_learning_rate", "recover_target", "recover_blocks"})
_NOT_NUMERIC = frozenset(
    {
        "data",
        "data_root",
        "split",
        "teacher",
        "selected",
        "device",
        "threads",
        "evaluate_every",
        "skip_broken",
        "max_megapixels",
        "patient_salt",
    }
)


def disabled_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings of the stages and recovery steps that are disabled, and so change nothing, each with why."""
    recovery, disabled = config.recovery, dict[str, str]()
    if not config.tuning.tune_teacher:
        disabled |= dict.fromkeys(_settings_of_stage("tuning") - {"tune_teacher"}, "without --tune-teacher")
    if recovery.recover == "none":
        return disabled | dict.fromkeys(_settings_of_stage("recovery") - {"recover"}, "with --recover none")
    if recovery.recover_method != "refit":
        disabled["recover_metric"] = f"with --recover-method {recovery.recover_method}"
    elif recovery.recover_stream == "channels":
        disabled["recover_metric"] = "with --recover-stream channels"
    if recovery.recover_refit == "off":
        disabled |= dict.fromkeys(_LEAST_SQUARES, "with --recover-refit off")
        if recovery.recover_classifier == "off":
            disabled |= dict.fromkeys(_VIEWS, "with --recover-refit off and --recover-classifier off")
    if not recovery.recover_epochs:
        disabled |= dict.fromkeys(_MATCHING, "with --recover-epochs 0")
    return disabled


def _unused_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings of model and training that the method does not use, each with why.

    They stay part of the run's identity, as records of earlier versions have them, unlike ``disabled_settings``.
    """
    method, training, unused = config.model.method, config.training, dict[str, str]()
    if method not in INHERITING_METHODS:
        unused |= dict.fromkeys(_SELECTION, f"with --method {method}, which selects no weights")
        if method in RANDOM_METHODS and config.model.attention == "within":
            del unused["attention"]  # it gives the student's shape
    if method not in RANDOM_METHODS:
        unused["layer_scale"] = f"with --method {method}, which keeps that of the pretrained network"
    if method == "probe":
        unused |= dict.fromkeys(_STUDENT_TRAINING, "with --method probe, which trains no network")
    elif not training.epochs:
        why = "as the student is not trained (--epochs 0), and the teacher has settings of its own (--tune-...)"
        unused |= dict.fromkeys(_STUDENT_TRAINING, why)
    elif config.auxiliary == "none" and training.distillation == "skd":
        unused |= dict.fromkeys(("alpha", "beta"), f"with --method {method} and without soft targets")
    return unused


def _settings_of_stage(stage: str) -> set[str]:
    return {name for name, each in all_settings().items() if each.stage == stage}


def _as_given(name: str, value: object) -> str:
    """Return a setting as the command line gives it; a switch has no value."""
    if isinstance(value, bool):
        return option_of(name if value else f"no_{name}")
    return f"{option_of(name)} {value}"


def setting_notes(config: RunConfig) -> tuple[str, ...]:
    """Warn of each setting without effect, and of attention that ``selected`` indexes unlike the profile."""
    profile, model = config.training.profile, config.model
    fitted = may_be_fitted(settings_of(config))
    defaults = profile_defaults(
        profile, model.method, teacher=architecture_of(model.teacher), family=model.family, is_fitted=fitted
    )
    values = settings_of(config)
    notes = tuple(
        f"{_as_given(name, values[name])} has no effect {reason}"
        for name, reason in sorted(disabled_settings(config).items())
        if values[name] != defaults.get(name, all_settings()[name].default)
    )
    notes += tuple(
        f"{_as_given(name, values[name])} has no effect {reason}"
        for name, reason in _unused_settings(config).items()
        if values[name] != defaults.get(name, all_settings()[name].default)
    )
    usual = defaults.get("attention", all_settings()["attention"].default)
    if model.selected is not None and model.attention != usual:
        other = f"--profile {profile} has '{usual}': select with --attention {usual} to get it"
        notes += (f"{model.selected} was selected with --attention {model.attention}; {other}",)
    if profile == "best" and model.family == "auto":
        notes += ("--family auto: the teacher is not fine-tuned and nothing is recovered; settings of --profile quick",)
    return notes


def numeric_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that change results: not places, not hardware, not what is only reported.

    Settings of disabled steps have their defaults.
    """
    disabled = disabled_settings(config)
    return {
        name: all_settings()[name].default if name in disabled else value
        for name, value in settings_of(config).items()
        if name not in _NOT_NUMERIC
    }
