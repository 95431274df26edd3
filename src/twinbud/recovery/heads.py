"""Change the basis of a teacher's attention heads, so that the first channels of each matter most.

A student may keep all heads of its teacher with u of the U channels of each. Which channels these are is free: with an
invertible A (U, U) and an orthogonal N (U, U), the queries qA, keys kA⁻ᵀ and values vN, and NᵀW for the rows W (U, D)
of the projection that read the head, give the same outputs. In the new basis, the first u channels are the best ones.

Scores. Softmax ignores what is added to all scores of a query, so keys may be taken less the mean of their image. With
C_q = E[qᵀq], C_k = E[kᵀk] of such keys and the singular values S of C_q^(1/2) C_k^(1/2) = X S Yᵀ,

    A = C_q^(−1/2) X S^(1/2),    A⁻ᵀ = C_k^(−1/2) Y S^(1/2),

whose first u columns give the scores of rank u with the least mean square error, where queries and keys are
independent.

Outputs. With C_o = E[oᵀo] of a head's outputs o, the first columns of N span those of C_o^(−1/2) E, where E are the
eigenvectors of C_o^(1/2) W Wᵀ C_o^(1/2), with LayerScale in W, the largest eigenvalue first: estimated from these
channels, what the head adds to the stream has the least error (as in ``subspace``).

The scores of rank u are those of A³ (Wong et al., ICML 2026, arXiv:2505.12942), but for the mean of the keys.

timm divides scores by the root of the head's size. The queries get the factor (u / U)^(1/2) of a student's smaller
heads, and the teacher multiplies it back.

Shape legend: B batch, L positions, H heads, U channels of a head, D channels of the stream, R rows (images times
positions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import nn

from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.selection import SelectionPlan
from twinbud.models.widths import WITHIN
from twinbud.recovery.least_squares import RefitBatch
from twinbud.recovery.normal_equations import not_finite

_SMALLEST_MOMENT = 1e-6
"""Smaller eigenvalues of second moments, relative to the largest, are rounding."""


def importance_in_plan(importance: Mapping[str, torch.Tensor], plan: SelectionPlan) -> dict[str, torch.Tensor]:
    """Return the importance along the widths of a plan: in heads of a new basis, it falls from channel to channel."""
    if plan.attention != "within":
        return dict(importance)
    known = {name: values for name, values in importance.items() if name in plan.widths}
    ordered = {name: width.teacher_size for name, width in plan.widths.items() if name.startswith(f"{WITHIN}/")}
    return known | {name: -torch.arange(size, dtype=torch.float64) for name, size in ordered.items()}


@torch.no_grad()
def change_head_bases(
    teacher: TimmModel,
    family: SelectionFamily,
    refit_batches: Iterable[RefitBatch],
    plan: SelectionPlan,
    *,
    bf16: bool = False,
) -> None:
    """Change the bases of a teacher's heads in place; what it computes stays, but for rounding.

    Args:
        teacher: A ViT whose heads are plain (``SelectionFamily.check_attention``), on the device of the images.
        family: Its family.
        refit_batches: The images, iterated once; at least one.
        plan: The selection plan of ``--attention within``; gives u.
        bf16: Whether the teacher computes in bf16 autocast.

    Raises:
        TwinbudError: A feature of the teacher is not finite.
    """
    (size,) = {width.student_size for name, width in plan.widths.items() if name.startswith(f"{WITHIN}/")}
    blocks = family.blocks(teacher).values()
    with ExitStack() as stack:
        moments = [_HeadMoments(block.attn, stack) for block in blocks]
        for images_BCSS, _ in refit_batches:
            with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
                teacher.forward_features(images_BCSS)
    for block, moment in zip(blocks, moments, strict=True):
        _change_bases(block, moment, size)


class _HeadMoments:
    """Second moments of one attention layer, summed in each forward pass until a stack of contexts closes.

    Attributes:
        queries, keys, outputs: (H, U, U) float64.
    """

    def __init__(self, attention: TimmModel, stack: ExitStack) -> None:
        self.num_heads = attention.num_heads
        self.queries = self.keys = self.outputs = torch.zeros(())
        stack.callback(attention.qkv.register_forward_hook(self._add_scores).remove)
        stack.callback(attention.proj.register_forward_pre_hook(self._add_outputs).remove)

    def _add_scores(self, _: nn.Module, __: object, features_BLO: torch.Tensor) -> None:
        queries_BLHU, keys_BLHU, _values = features_BLO.float().unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        self.queries = self.queries + _by_head(queries_BLHU)
        self.keys = self.keys + _by_head(keys_BLHU - keys_BLHU.mean(dim=1, keepdim=True))

    def _add_outputs(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.outputs = self.outputs + _by_head(inputs[0].float().unflatten(-1, (self.num_heads, -1)))


def _by_head(features_BLHU: torch.Tensor) -> torch.Tensor:
    """Return the sums of second moments, (H, U, U) float64."""
    with torch.autocast(features_BLHU.device.type, enabled=False):
        features_HRU = features_BLHU.flatten(0, 1).transpose(0, 1)
        return (features_HRU.transpose(1, 2) @ features_HRU).double()


def _change_bases(block: TimmModel, moments: _HeadMoments, size: int) -> None:
    """Change the bases of the heads of one block; see the head of this file."""
    if not all(torch.isfinite(part).all() for part in (moments.queries, moments.keys, moments.outputs)):
        raise not_finite("teacher")
    attention = block.attn
    (query_root, query_inverse), (key_root, key_inverse) = _roots(moments.queries), _roots(moments.keys)
    left, values, right = torch.linalg.svd(query_root @ key_root)
    spread = values.sqrt()[:, None]
    query_map, key_map = query_inverse @ left * spread, key_inverse @ right.mT * spread
    projection_HUD = attention.proj.weight.double().unflatten(1, (attention.num_heads, -1)).movedim(0, 2)
    scale = getattr(block.ls1, "gamma", torch.ones(())).to(projection_HUD)
    value_map = _output_basis(moments.outputs, projection_HUD * scale)
    shrinking = (size / attention.head_dim) ** 0.5
    maps = torch.stack([query_map * shrinking, key_map, value_map])
    _apply(attention.qkv.weight, lambda old: maps.mT @ old.unflatten(0, (3, attention.num_heads, -1)))
    if attention.qkv.bias is not None:
        _apply(attention.qkv.bias, lambda old: maps.mT @ old.unflatten(0, (3, attention.num_heads, -1))[..., None])
    attention.proj.weight.copy_((value_map.mT @ projection_HUD).movedim(2, 0).flatten(1))
    attention.q_norm = _Multiply(1 / shrinking)


def _apply(weight: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weight.copy_(change(weight.double()).reshape(weight.shape))


def _roots(moments_HUU: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the square roots of second moments and the inverses of the roots."""
    values, vectors = torch.linalg.eigh(moments_HUU)
    largest = values[:, -1:]
    values = values.maximum(torch.where(largest > 0, _SMALLEST_MOMENT * largest, 1.0))[:, None]  # 0 where none vary
    return vectors * values.sqrt() @ vectors.mT, vectors / values.sqrt() @ vectors.mT


def _output_basis(outputs_HUU: torch.Tensor, projection_HUD: torch.Tensor) -> torch.Tensor:
    """Return N, (H, U, U): orthonormal columns, of which the first ones span the outputs that matter most."""
    root, inverse = _roots(outputs_HUU)
    _, vectors = torch.linalg.eigh(root @ (projection_HUD @ projection_HUD.mT) @ root)
    basis, _ = torch.linalg.qr(inverse @ vectors.flip(-1))
    return basis


class _Multiply(nn.Module):
    """Multiplies the queries of a teacher whose weights hold them too small."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the queries of the teacher's own size."""
        return queries * self.factor
