"""The student's residual stream as a projection of the teacher's onto its principal subspace.

Selection keeps d of the D channels of the teacher's stream x (1, D). A matrix P (D, d) can keep any directions instead.
Every reader of a pre-norm transformer sees the normalized stream x̂ = (x − mean(x)) / std(x), times the gain γ and plus
the bias β of a LayerNorm. With C_k (D, D) the mean of x̂ᵀx̂ at norm k over all tokens, not centered:

    C = mean of C_k over the norms,    E (D, d − 1): its first eigenvectors,    P = E Q,

where Q (d − 1, d) is random with orthonormal rows that sum to 0. The student's stream s = xP then has mean 0, so that
the mean that the student's own norms subtract costs no direction:

    norm(s) = x̂P / u,    u² = f D / d,    f = tr(Pᵀ C_k P) / tr(C_k).

The student's weights follow, but for what lies outside the subspace. A reader W (O, D) with bias b becomes
W diag(γ) P u and b + Wβ. A writer with LayerScale ℓ becomes Pᵀ diag(ℓ) W and (ℓ ∘ b) P. Embeddings and positions are
multiplied by P.
Gains and LayerScale of the student are constants, the teacher's root mean squares, and divide the weights beside them:
with constants of 1 the weights would be of another size, for which a step of AdamW is too large. Heads and neurons are
those that add most to the stream.

With ``LogitEffects`` (a teacher that knows the classes of the run) the directions are those that the logits need. Let
G be the moments of the gradients g at x̂ (see ``logit_effects``), G' = G / tr(G) + ρ I / D, and C the mean of x̂ᵀx̂ with
weights that are part even and part proportional to ‖g‖². A reader of s = xM is refitted, and so sees the best linear
estimate of x̂ that s allows; what that misses costs

    tr(G' (C − C M (MᵀC M)⁻¹ MᵀC)),    least for    M = C^(−1/2) U,

with U the first d − 1 eigenvectors of C^(1/2) G' C^(1/2). E is an orthonormal basis of M's columns. For G' = I it spans
the first eigenvectors of C again.

SliceGPT (Ashkboos et al., ICLR 2024, arXiv:2401.15024) deletes minor directions of the stream, too. It rotates the
stream of each block to its own principal components, which puts a product on each shortcut. One P for all blocks keeps
the student an ordinary ViT.

Shape legend: D channels of the teacher's stream, d of the student's, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from twinbud.core.rng import numpy_stream
from twinbud.models.families.base import SelectionFamily, State, TimmModel
from twinbud.models.families.streams import stream_widths
from twinbud.models.rules import Indices
from twinbud.models.selection import PairRole, SelectionPlan
from twinbud.recovery.heads import importance_in_plan
from twinbud.recovery.importance import important_indices, ranks
from twinbud.recovery.logit_effects import EVEN_SHARE, LogitEffects
from twinbud.recovery.projection import Absorbed, project_state
from twinbud.recovery.stream_statistics import StreamStatistics

_EVEN_COST = 0.01
"""ρ: first-order effects alone would leave out directions that later layers turn into others."""
_SMALLEST_MOMENT = 1e-6
"""Smaller eigenvalues of C, relative to the largest, are rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subspace:
    """A subspace of the teacher's residual stream, and the heads and neurons that go with it.

    Attributes:
        stream_map: (D, d) float32: P.
        kept: The teacher's heads and neurons, by the name of their width.
        shares: For each LayerNorm that reads the stream, f: the share of the normalized stream inside the subspace.
        explained: The same for all norms together.
    """

    stream_map: torch.Tensor
    kept: dict[str, Indices]
    shares: dict[str, float]
    explained: float


def principal_subspace(
    statistics: StreamStatistics,
    plan: SelectionPlan,
    pair_role: PairRole,
    *,
    stream_width: str,
    with_auxiliary: bool,
    seed: int,
    effects: LogitEffects | None = None,
) -> Subspace:
    """Choose the subspace of the student or the auxiliary.

    The student takes the first d − 1 directions and the most important heads and neurons; beside an auxiliary, they
    alternate, see ``importance.ranks``.

    Args:
        statistics: Those of the teacher.
        plan: The selection plan, with whole heads or the first channels of every head (see ``heads``); gives all
            sizes and ``swap_roles``.
        pair_role: Whose subspace.
        stream_width: Name of the residual stream's width.
        with_auxiliary: Whether there is an auxiliary with weights of its own.
        seed: Seed of the random map Q.
        effects: What changes the teacher's logits; without, what varies most is kept.
    """
    size = plan.widths[stream_width].student_size
    directions = (
        principal_directions(statistics.pooled) if effects is None else _effective_directions(statistics, effects)
    )
    taken = ranks(
        len(directions), size - 1, pair_role=pair_role, with_auxiliary=with_auxiliary, swap_roles=plan.swap_roles
    )
    basis = directions[:, list(taken)]
    if effects is not None:
        basis, _ = torch.linalg.qr(basis)
    stream_map = basis @ zero_sum_rows(size, seed).to(basis)
    importance = importance_in_plan((effects or statistics).importance, plan)
    shares = {name: _share(stream_map, moments) for name, moments in statistics.moments.items()}
    return Subspace(
        stream_map=stream_map.float(),
        kept=important_indices(importance, plan, pair_role, with_auxiliary=with_auxiliary),
        shares=shares,
        explained=_share(stream_map, statistics.pooled),
    )


def principal_directions(moments: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors of a symmetric matrix as columns, that of the largest eigenvalue first."""
    _, vectors = torch.linalg.eigh(moments)
    vectors = vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * largest.sign()  # the sign of an eigenvector is arbitrary


def _effective_directions(statistics: StreamStatistics, effects: LogitEffects) -> torch.Tensor:
    """Return C^(−1/2) U, (D, D), the direction that the logits need most first; see the head of this file."""
    even, weighted = (moments / moments.trace() for moments in (statistics.pooled, effects.moments))
    values, vectors = torch.linalg.eigh(EVEN_SHARE * even + (1 - EVEN_SHARE) * weighted)
    values = values.clamp_min(_SMALLEST_MOMENT * values[-1])
    root, inverse_root = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    size = len(values)
    costs = effects.gradients / effects.gradients.trace().clamp_min(torch.finfo(values.dtype).tiny)
    costs = costs + _EVEN_COST / size * torch.eye(size).to(values)
    return inverse_root @ principal_directions(root @ costs @ root)


def zero_sum_rows(size: int, seed: int) -> torch.Tensor:
    """Return Q (d − 1, d) float64: random orthonormal rows, each of sum 0."""
    columns = numpy_stream("recovery", seed, "subspace").standard_normal((size, size))
    columns[:, 0] = 1.0
    orthonormal, _ = torch.linalg.qr(torch.from_numpy(columns))
    return orthonormal[:, 1:].T


def project_weights(
    subspace: Subspace,
    plan: SelectionPlan,
    teacher: TimmModel,
    student: TimmModel,
    family: SelectionFamily,
    pair_role: PairRole,
) -> State:
    """Return the student's tensors seen through a subspace, without the classifier; see the head of this file.

    Args:
        subspace: That of the student or the auxiliary.
        plan: The selection plan with the subspace's heads and neurons; its indices of the stream do not count.
        teacher: The teacher at the student's image size.
        student: Gives the names of the tensors.
        family: The family of both.
        pair_role: Whether ``student`` is the student or the auxiliary.

    Returns:
        New float32 tensors by the student's names.

    Raises:
        TwinbudError: See ``RecoverySupport.stream_norms``.
    """
    stream, *_ = stream_widths(family, student).values()
    absorbed = _absorb_gains(subspace, teacher, family, set(family.specs(student)))
    return project_state(absorbed, {stream: subspace.stream_map}, plan, student, family, pair_role)


def _absorb_gains(
    subspace: Subspace, teacher: TimmModel, family: SelectionFamily, student_tensors: set[str]
) -> Absorbed:
    """Put gains and LayerScale into the weights, and constants in their place."""
    recovery = family.require_recovery()
    prepared, _ = family.fold_layer_scale(teacher.state_dict(), student_tensors)
    tensors = {name: tensor.double() for name, tensor in prepared.items() if tensor.is_floating_point()}
    constants: dict[str, float] = {}
    for norm, readers in recovery.stream_norms(teacher).items():
        gain, bias = tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
        constant = constants[f"{norm}.weight"] = _root_mean_square(gain)
        constants[f"{norm}.bias"] = 0.0
        dilution = math.sqrt(subspace.shares[norm] * len(gain) / subspace.stream_map.shape[1])
        for reader in readers:
            weight = tensors[f"{reader}.weight"]
            if f"{reader}.bias" in tensors:
                tensors[f"{reader}.bias"] = tensors[f"{reader}.bias"] + weight @ bias
            tensors[f"{reader}.weight"] = weight * gain * (dilution / constant)
    for block, module in family.blocks(teacher).items():
        for linear in recovery.linear_maps(module):
            if linear.scale and (scale := tensors.get(f"{block}.{linear.scale}")) is not None:
                constant = constants[f"{block}.{linear.scale}"] = _root_mean_square(scale)
                layer = f"{block}.{linear.name}"
                tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] * (scale / constant)[:, None]
                if f"{layer}.bias" in tensors:
                    tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"] * scale / constant
    return Absorbed(tensors=tensors, constants=constants)


def _root_mean_square(gain: torch.Tensor) -> float:
    """Return the root mean square, or 1 where all gains are 0."""
    return float(gain.square().mean().sqrt()) or 1.0


def _share(stream_map: torch.Tensor, moments: torch.Tensor) -> float:
    """Return tr(Pᵀ C P) / tr(C)."""
    return float((stream_map * (moments @ stream_map)).sum() / moments.trace())
