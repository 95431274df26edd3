"""Ridge regression of one layer from accumulated normal equations.

With X the inputs of a layer (one row per position) and Y its targets, the weights minimize

    ‖XW − Y‖² + λ ‖W − W₀‖²,    so    W = W₀ + (XᵀX + λI)⁻¹ (XᵀY − XᵀX W₀),

where W₀ are the weights before, and λ is chosen on held-out rows.

Shape legend: B batch, C channels, L positions, I inputs and O outputs of a layer, R rows (images times positions).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel

RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(2, -9, -1))
"""Candidates for λ, relative to the mean diagonal element of XᵀX, the largest first."""
_ROUNDING = 1e-7
"""Differences of explained variance below this are rounding of float32; the larger λ then wins."""
_PATCH_ELEMENTS = 2**25
"""Elements of the patches of a convolution, 128 MiB, that are in memory at once."""
_PANEL = 256
"""Columns of XᵀX that are computed at once; what lies below them follows from symmetry."""


def fit_layer(
    layer: nn.Module,
    fitted: NormalEquations,
    held_out: NormalEquations,
    scale: torch.Tensor | None = None,
    *,
    ridges: Sequence[float] = RIDGES,
) -> tuple[float, float, float]:
    """Refit one layer in place: choose the ridge on held-out rows, then fit all rows with it.

    Args:
        layer: A linear layer, or a convolution without groups.
        fitted: Normal equations of the rows to fit.
        held_out: Normal equations of the held-out rows.
        scale: (O,) LayerScale after the layer, which does not change; outputs with scale 0 keep their weights.
        ridges: Candidates for λ, as in ``RIDGES``.

    Returns:
        ``before``, ``after`` and ``ridge`` of ``LayerFit``.

    Raises:
        TwinbudError: A feature is not finite.
    """
    factor = torch.ones_like(matrix(layer)[0]) if scale is None else scale
    start = matrix(layer).double() * factor
    weights, before, after, ridge = fit_weights(start, fitted, held_out, ridges)
    put_matrix(layer, torch.where(factor == 0, matrix(layer), weights / factor))
    return before, after, ridge


def fit_weights(
    start_IO: torch.Tensor, fitted: NormalEquations, held_out: NormalEquations, ridges: Sequence[float] = RIDGES
) -> tuple[torch.Tensor, float, float, float]:
    """Choose the ridge on held-out rows, and fit all rows with it.

    Returns:
        The weights (I, O) in float64; and ``before``, ``after`` and ``ridge`` of ``LayerFit``.

    Raises:
        TwinbudError: A feature is not finite.
    """
    everything = fitted.with_rows_of(held_out)
    finite = {"student": torch.isfinite(everything.gram).all(), "teacher": torch.isfinite(everything.power).all()}
    if not all(finite.values()):
        network = next(name for name, is_finite in finite.items() if not is_finite)
        raise not_finite(network)
    explained = dict(zip(ridges, fitted.explained_by_ridge(start_IO, held_out, ridges), strict=True))
    best = max(explained.values())
    ridge = next(ridge for ridge, value in explained.items() if value >= best - _ROUNDING)
    return everything.solve(start_IO, ridge), held_out.explained(start_IO), explained[ridge], ridge


def not_finite(network: str) -> TwinbudError:
    """Return the error for features of the teacher or the student that are NaN or infinity."""
    return TwinbudError(
        f"features of the {network} are not finite (NaN or infinity)",
        where="--recover, least squares",
        fix="Check the teacher's weights, or use --precision float32",
    )


class NormalEquations:
    """Accumulated XᵀX and XᵀY of one layer; products per batch in float32, sums in float64.

    Args:
        layer: A linear layer, or a convolution without groups.

    Attributes:
        gram: (I, I) XᵀX.
        cross: (I, O) XᵀY.
        power: (O,) sum of Y² over the rows.
        total: (O,) sum of Y over the rows.
        count: R, or the sum of the weights of the rows.
    """

    def __init__(self, layer: nn.Module) -> None:
        inputs, outputs = matrix(layer).shape
        like = {"dtype": torch.float64, "device": next(layer.parameters()).device}
        self.gram = torch.zeros(inputs, inputs, **like)
        self.cross = torch.zeros(inputs, outputs, **like)
        self.power = torch.zeros(outputs, **like)
        self.total = torch.zeros(outputs, **like)
        self.count = 0

    def add(self, inputs_RI: torch.Tensor, targets: torch.Tensor, weights_R: torch.Tensor | None = None) -> None:
        """Add R rows of inputs, without the constant 1 of a bias, and of targets (..., O).

        Args:
            inputs_RI: The inputs.
            targets: (..., O) with R rows.
            weights_R: How often each row counts; once without.
        """
        rows, targets = inputs_RI.float(), targets.flatten(0, -2).float()
        scaled_rows, scaled_targets, count, size = rows, targets, len(rows), rows.shape[1]
        if weights_R is not None:
            column = weights_R.float()[:, None]
            scaled_rows, scaled_targets, count = rows * column, targets * column, float(column.sum())
            self.gram[:size, :size] += gram_matrix(rows * column.sqrt())
        else:
            self.gram[:size, :size] += gram_matrix(rows)
        self.cross[:size] += scaled_rows.T @ targets
        total = scaled_targets.sum(dim=0)
        if size < len(self.gram):  # the bias
            sums = scaled_rows.sum(dim=0)
            self.gram[size, :size] += sums
            self.gram[:size, size] += sums
            self.gram[size, size] += count
            self.cross[size] += total
        self.power += (scaled_targets * targets).sum(dim=0)
        self.total += total
        self.count += count

    def add_layer(
        self,
        layer: nn.Module,
        inputs: torch.Tensor,
        targets_BLO: torch.Tensor,
        weights_L: torch.Tensor | None = None,
    ) -> None:
        """Add what enters ``layer`` and its targets, in parts whose patches fit into ``_PATCH_ELEMENTS``.

        Args:
            layer: See ``input_rows``.
            inputs: (B, ..., C) for a linear layer, (B, C, H, W) for a convolution.
            targets_BLO: One row per position of the layer's output.
            weights_L: How often each position counts; once without.
        """
        kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
        num_elements = targets_BLO.shape[1] * inputs[0].numel() * kernel[0] * kernel[1]
        if isinstance(layer, nn.Conv2d):
            num_elements //= inputs.shape[2] * inputs.shape[3]
        size = max(1, _PATCH_ELEMENTS // num_elements) if max(kernel) > 1 else len(inputs)
        for part, targets in zip(inputs.split(size), targets_BLO.split(size), strict=True):
            self.add(input_rows(layer, part), targets, None if weights_L is None else weights_L.repeat(len(targets)))

    def with_rows_of(self, other: NormalEquations) -> NormalEquations:
        """Return the equations of the rows of both."""
        both = copy.copy(self)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.power, both.total = self.power + other.power, self.total + other.total
        both.count = self.count + other.count
        return both

    def about(self, inputs_I: torch.Tensor, targets_O: torch.Tensor) -> NormalEquations:
        """Return the equations of X − a and Y − c, without the constant input; the layer must have a bias.

        Args:
            inputs_I: a.
            targets_O: c.
        """
        sums, count, both = self.gram[-1, :-1], self.count, copy.copy(self)
        mixed = torch.outer(sums, inputs_I)
        both.gram = self.gram[:-1, :-1] - mixed - mixed.T + count * torch.outer(inputs_I, inputs_I)
        both.cross = self.cross[:-1] - torch.outer(sums, targets_O)
        both.cross -= torch.outer(inputs_I, self.total - count * targets_O)
        both.power = self.power - 2 * targets_O * self.total + count * targets_O.square()
        both.total = self.total - count * targets_O
        return both

    def solve(self, start_IO: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return W = W₀ + (XᵀX + λI)⁻¹ (XᵀY − XᵀX W₀), (I, O) in float64.

        Args:
            start_IO: W₀.
            ridge: λ relative to the mean diagonal element of XᵀX.
        """
        damped = self.gram.clone()
        damped.diagonal().add_(self._strength(ridge))
        return start_IO + torch.linalg.solve(damped, self._residual(start_IO))

    def explained(self, weights_IO: torch.Tensor) -> float:
        """Return the explained variance R² = 1 − ‖XW − Y‖² / ‖Y − mean(Y)‖² of weights W.

        It is negative if the weights do worse than the mean, and 0 if the targets do not vary.
        """
        error = self.power - 2 * (weights_IO * self.cross).sum(dim=0)
        error += (weights_IO * (self.gram @ weights_IO)).sum(dim=0)
        variance = self._variance
        return 1 - float(error.sum()) / variance if variance > 0 else 0.0

    def explained_by_ridge(
        self, start_IO: torch.Tensor, others: NormalEquations, ridges: Sequence[float]
    ) -> list[float]:
        """Return, for each ridge, ``others.explained(self.solve(start_IO, ridge))``.

        One eigendecomposition XᵀX = V diag(s) Vᵀ serves all ridges: the change of the weights is V diag(f) B with
        B = Vᵀ(XᵀY − XᵀX W₀) and f = 1 / (s + λ), and the squared error of the other rows is a quadratic form in f.
        """
        values, vectors = torch.linalg.eigh(self.gram)
        changes = vectors.T @ self._residual(start_IO)
        linear = (changes * (vectors.T @ others._residual(start_IO))).sum(dim=1)
        quadratic = (vectors.T @ others.gram @ vectors) * (changes @ changes.T)
        factors = torch.stack([1 / (values + self._strength(ridge)) for ridge in ridges])
        reduction = 2 * factors @ linear - ((factors @ quadratic) * factors).sum(dim=1)
        before, variance = others.explained(start_IO), others._variance
        return [before + part / variance if variance > 0 else 0.0 for part in reduction.tolist()]

    @property
    def _variance(self) -> float:
        """‖Y − mean(Y)‖²."""
        return float((self.power - self.total.square() / self.count).sum())

    def _strength(self, ridge: float) -> torch.Tensor:
        """Return the λ of a relative ridge, never 0, so that layers without input have a solution."""
        return ridge * self.gram.diagonal().mean() + torch.finfo(torch.float64).tiny

    def _residual(self, weights_IO: torch.Tensor) -> torch.Tensor:
        return self.cross - self.gram @ weights_IO


def gram_matrix(rows_RI: torch.Tensor) -> torch.Tensor:
    """Return XᵀX, whose lower triangle is copied from the upper one, panel by panel."""
    gram = rows_RI.new_empty(rows_RI.shape[1], rows_RI.shape[1])
    for start in range(0, len(gram), _PANEL):
        end = start + _PANEL
        gram[start:end, start:] = rows_RI[:, start:end].T @ rows_RI[:, start:]
        gram[end:, start:end] = gram[start:end, end:].T
    return gram


def matrix(layer: TimmModel) -> torch.Tensor:
    """Return a layer's weights as an (I, O) matrix; a bias is its last row, for an input of 1."""
    weights = layer.weight.flatten(1).T
    return weights if layer.bias is None else torch.cat([weights, layer.bias[None]])


def put_matrix(layer: TimmModel, weights_IO: torch.Tensor) -> None:
    """Write an (I, O) matrix into a layer; the inverse of ``matrix``."""
    if layer.bias is not None:
        layer.bias.copy_(weights_IO[-1])
        weights_IO = weights_IO[:-1]
    layer.weight.copy_(weights_IO.T.reshape(layer.weight.shape))


def input_rows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a layer's input as (R, I), one row per position."""
    if isinstance(layer, nn.Conv2d):
        if isinstance(layer, Conv2dSame):
            inputs = pad_same(inputs, layer.kernel_size, layer.stride, layer.dilation)  # type: ignore[arg-type]
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


def by_position(layer: nn.Module, outputs: torch.Tensor) -> torch.Tensor:
    """Return a layer's outputs as (B, L, O)."""
    return outputs.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else outputs.flatten(1, -2)
