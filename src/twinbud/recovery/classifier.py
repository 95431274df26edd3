"""Fit the student's classifier to the logits of a teacher that knows the classes of the run, without labels.

Shape legend: R views, d channels of the student's pooled features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel
from twinbud.recovery.least_squares import LayerFit, RefitBatch
from twinbud.recovery.normal_equations import RIDGES, NormalEquations, fit_layer

_RIDGES = (*RIDGES, *(10.0**exponent for exponent in range(-5, -9, -1)))
"""The features of a recovered student can predict the logits well, so that smaller ridges pay."""


@torch.no_grad()
def refit_classifier(
    student: TimmModel, teacher: TimmModel, refit_batches: Iterable[RefitBatch], *, bf16: bool = False
) -> LayerFit:
    """Fit the student's classifier in place, by ridge regression from its pooled features to the teacher's logits.

    With X (R, d) the features, with a column of ones, and Z (R, K) the logits, the weights minimize ‖XW − Z‖² + λ ‖W −
    W₀‖², where W₀ predicts the mean logits: weights 0. λ is chosen on the held-out views.

    Args:
        student: The recovered student, in evaluation mode.
        teacher: Has a classifier for the same classes, in the same order.
        refit_batches: The images, iterated once; at least one batch must be held out and one must not.
        bf16: Whether the networks compute in bf16 autocast.

    Returns:
        How well the logits agree; ``before`` is that of W₀.

    Raises:
        TwinbudError: The student has more than one classifier, or a logit is not finite.
    """
    layer = student.get_classifier()
    if not isinstance(layer, nn.Linear):
        raise TwinbudError(
            f"'on' fits one linear classifier, but {type(student).__name__} networks of this form have several",
            where="--recover-classifier",
            fix="Use --recover-classifier off",
        )
    equations = {is_held_out: NormalEquations(layer) for is_held_out in (False, True)}
    for images_BCSS, is_held_out in refit_batches:
        with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=bf16):
            features = student.forward_head(student.forward_features(images_BCSS), pre_logits=True)
            logits = teacher(images_BCSS)
        equations[is_held_out].add(features, logits)
    everything = equations[False].with_rows_of(equations[True])
    layer.weight.zero_()
    layer.bias.copy_(everything.total / everything.count)
    return LayerFit("classifier", *fit_layer(layer, equations[False], equations[True], ridges=_RIDGES))
