"""Element selection: the indices of one width for student and auxiliary (docs/method.md; paper sections 3.1 and 4.6).

Pure functions of the teacher's width ``n`` and the student's width ``m``, 1 ≤ m ≤ n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinbud.config.schema import Rule

Indices = tuple[int, ...]


def uniform(n: int, m: int) -> tuple[Indices, Indices]:
    """Return evenly spaced indices for the student, and evenly spaced ones of the rest for the auxiliary."""
    first = tuple(j * n // m for j in range(m))
    taken = set(first)
    left = [i for i in range(n) if i not in taken]
    if len(left) >= m:
        return first, tuple(left[j * len(left) // m] for j in range(m))
    missing = m - len(left)
    shared = [first[j * m // missing] for j in range(missing)]
    return first, tuple(sorted(left + shared))


def consecutive(n: int, m: int) -> tuple[Indices, Indices]:
    """Return the first m indices for the student, and the last m for the auxiliary."""
    return tuple(range(m)), tuple(range(n - m, n))


def from_permutation(permutation: Sequence[int], m: int) -> tuple[Indices, Indices]:
    """Return a permutation's first m indices for the student, and its next m, cyclically, for the auxiliary."""
    n = len(permutation)
    order = [int(i) for i in permutation]
    return tuple(order[:m]), tuple(order[(m + j) % n] for j in range(m))


def select_indices(rule: Rule, n: int, m: int, generator: np.random.Generator) -> tuple[Indices, Indices]:
    """Return the indices of student and auxiliary under ``rule``.

    Args:
        rule: The rule. Both random rules draw one permutation; the caller decides which widths share it.
        n: Size of the width in the teacher.
        m: Size of the width in the student, at most n.
        generator: Source of the permutation; the other rules do not use it.

    Returns:
        Two tuples of m distinct indices in [0, n), disjoint whenever 2m ≤ n.
    """
    if rule == "uniform":
        return uniform(n, m)
    if rule == "consecutive":
        return consecutive(n, m)
    return from_permutation(generator.permutation(n).tolist(), m)
