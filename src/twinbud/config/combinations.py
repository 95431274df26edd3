"""What settings require of each other: the errors about values that contradict each other."""

from __future__ import annotations

from pathlib import Path

from twinbud.config.data_config import DataConfig
from twinbud.config.fields import option_of
from twinbud.core.errors import TwinbudError

DIVISORS = {"half": 2, "quarter": 4}
"""Students that are a part of the teacher: what its widths are divided by."""


def require(fits: bool, name: str, value: object, reason: str, valid: str) -> None:
    """Refuse the ``value`` of setting ``name`` unless it ``fits``.

    Args:
        fits: Whether the value is allowed.
        name: Name of the setting.
        value: Its value.
        reason: What it contradicts, such as "--method timm, which has no auxiliary".
        valid: Values that are allowed, in words.

    Raises:
        TwinbudError: It does not fit.
    """
    if not fits:
        option = option_of(name)
        raise TwinbudError(f"'{value}' contradicts {reason}", where=option, fix=f"Give {option} {valid}")


def require_student(method: str, student: str, selected: Path | None, *, is_whole: bool) -> None:
    """Require a whole network of a method that keeps one, and a smaller one of the other methods.

    Args:
        method: The method.
        student: The setting ``student``.
        selected: The setting ``selected``.
        is_whole: Whether the method keeps a pretrained network whole.

    Raises:
        TwinbudError: The student is another one, or a whole network is to come from a selection.
    """
    if not is_whole:
        reason = f"{method}, whose student is smaller than the teacher"
        require(student != "same", "student", student, reason, "half or quarter, or use --method finetune")
        return
    if selected is not None:
        problem = f"'{selected}' contradicts {method}, which selects no weights"
        raise TwinbudError(problem, where="--selected", fix="Give --teacher instead")
    reason = f"{method}, which keeps a pretrained network whole"
    require(student not in DIVISORS, "student", student, reason, "same, or name a pretrained network")


def require_tunable(method: str, selected: Path | None, *, takes_from_teacher: bool) -> None:
    """Require that the run takes something from its teacher after the fine-tuning.

    Args:
        method: The method.
        selected: The setting ``selected``.
        takes_from_teacher: Whether the run selects weights or learns from the teacher.

    Raises:
        TwinbudError: It does not, or the weights were selected before.
    """
    if selected is not None:
        raise TwinbudError(
            "the weights were selected from the teacher before fine-tuning",
            where=f"--selected {selected}",
            fix="Give --teacher instead, or --no-tune-teacher",
        )
    if not takes_from_teacher:
        raise TwinbudError(
            f"--method {method} takes nothing from the teacher",
            where="--tune-teacher",
            fix=f"Give --no-tune-teacher, or {'--method selection' if method == 'probe' else '--distillation teacher'}",
        )


def require_two_splits(data: DataConfig) -> None:
    """Require settings of images with which ``--measure-leak`` has two splits to compare.

    Raises:
        TwinbudError: A split is given, or the run's own split ignores copies.
    """
    reason = "--measure-leak, which makes two splits and compares them"
    problem = f"'{data.split}' contradicts {reason}"
    if data.split is not None:
        raise TwinbudError(problem, where="--split", fix="Leave out one of the two")
    require(data.near_duplicates == "group", "near_duplicates", data.near_duplicates, reason, "group")
    if data.split_duplicates:
        raise TwinbudError(f"it contradicts {reason}", where="--split-duplicates", fix="Leave out one of the two")


def unopened_teacher(name: str, value: str) -> TwinbudError:
    """Return the error for a setting that needs the teacher, next to a selection, which does not hold it."""
    option, off = option_of(name), "none" if name == "recover" else "skd"
    return TwinbudError(
        f"'{value}' needs the teacher's weights, which --selected does not hold",
        where=option,
        fix=f"Add the --teacher of the selection, or {option} {off}",
    )


def require_importance(name: str, value: str, attention: str, rule: str) -> None:
    """Require whole heads, or narrower ones with ``recover_stream``, and the rule that a choice by importance replaces.

    Args:
        name: The setting that makes the choice.
        value: Its value.
        attention: The setting ``attention``.
        rule: The setting ``rule``.

    Raises:
        TwinbudError: They are not.
    """
    off = {"recover_stream": "channels", "recover_method": "refit"}[name]
    reason = "--attention interleaved, whose heads mix those of the teacher"
    require(attention != "interleaved", name, value, reason, f"{off}, or --attention heads")
    if name == "recover_method":
        reason = "--attention within, which keeps all heads"
        require(attention != "within", name, value, reason, f"{off}, or --attention heads")
    reason = f"--rule {rule}, which a choice by importance replaces"
    require(rule == "uniform", name, value, reason, f"{off}, or --rule uniform")
