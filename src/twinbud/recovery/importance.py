"""Choose heads, neurons and channels by importance, for a student alone or beside an auxiliary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from twinbud.models.rules import Indices, uniform
from twinbud.models.selection import PairRole, SelectionPlan


def ranks(num: int, num_kept: int, *, pair_role: PairRole, with_auxiliary: bool, swap_roles: bool) -> Indices:
    """Return the ranks, 0 the most important of ``num``, that the student or the auxiliary takes.

    Alone, the student takes the first ones. Beside an auxiliary it takes 0, 2, 4, … and the auxiliary 1, 3, 5, …, as
    the uniform rule selects indices: the two are disjoint where there are enough.

    >>> ranks(8, 3, pair_role="auxiliary", with_auxiliary=True, swap_roles=False)
    (1, 3, 5)
    """
    if not with_auxiliary:
        return tuple(range(num_kept))
    first, second = uniform(min(num, 2 * num_kept), num_kept)
    return first if (pair_role == "student") != swap_roles else second


def important_indices(
    importance: Mapping[str, torch.Tensor], plan: SelectionPlan, pair_role: PairRole, *, with_auxiliary: bool
) -> dict[str, Indices]:
    """Return the teacher's indices that the student or the auxiliary keeps along some widths, in ascending order.

    Args:
        importance: (G,) for each width.
        plan: Gives the student's sizes and ``swap_roles``.
        pair_role: Whose indices.
        with_auxiliary: Whether there is an auxiliary with weights of its own.
    """
    kept: dict[str, Indices] = {}
    for name, values in importance.items():
        order = values.argsort(descending=True, stable=True).tolist()
        taken = ranks(
            len(order),
            plan.widths[name].student_size,
            pair_role=pair_role,
            with_auxiliary=with_auxiliary,
            swap_roles=plan.swap_roles,
        )
        kept[name] = tuple(sorted(order[rank] for rank in taken))
    return kept


def with_indices(plan: SelectionPlan, kept: Mapping[str, Indices], pair_role: PairRole) -> SelectionPlan:
    """Return the plan with other indices of the student or the auxiliary along some widths."""
    which = "student_indices" if pair_role == "student" else "auxiliary_indices"
    changed = {name: replace(plan.widths[name], **{which: indices}) for name, indices in kept.items()}
    return replace(plan, widths={**plan.widths, **changed})
