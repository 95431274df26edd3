"""What tensor operations do to dimensions: which rule is that of which operation.

A rule gets the operation's arguments and the dimensions of its tensors, unifies what the operation ties together, and
returns the dimensions of the outputs. Other operations that torch calls elementwise need no rule of their own; for an
operation that nobody described, everything it touches is fixed, which is always safe.
"""

from __future__ import annotations

from twinbud.models.discovery import compute_rules as compute
from twinbud.models.discovery import layout_rules as layout
from twinbud.models.discovery.calls import Rule, elementwise

_NAMES: dict[Rule, str] = {
    elementwise: "clone copy_ _to_copy detach alias lift_fresh_copy fill_ hardswish",
    layout.constant: "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor empty",
    compute.matrix_product: "mm mv",
    compute.batched_matrix_product: "bmm",
    compute.matrix_product_with_bias: "addmm",
    compute.linear: "linear",
    compute.convolution: "convolution",
    compute.batch_norm: "native_batch_norm cudnn_batch_norm _native_batch_norm_legit"
    " _native_batch_norm_legit_no_training",
    compute.layer_norm: "native_layer_norm",
    compute.group_norm: "native_group_norm",
    compute.softmax: "_softmax _log_softmax _safe_softmax",
    compute.reduce: "mean sum amax amin var std var_mean logsumexp linalg_vector_norm norm",
    compute.spatial: "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d_with_indices"
    " upsample_bilinear2d upsample_bicubic2d upsample_nearest2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    " reflection_pad2d replication_pad2d",
    layout.pad: "constant_pad_nd",
    layout.view: "view _unsafe_view reshape _reshape_alias flatten unsqueeze squeeze unflatten",
    layout.permute: "permute",
    layout.transpose: "transpose",
    layout.matrix_transpose: "t",
    layout.expand: "expand",
    layout.repeat: "repeat",
    layout.concatenate: "cat",
    layout.stack: "stack",
    layout.split: "split split_with_sizes chunk",
    layout.slices: "slice",
    layout.select: "select unbind",
    layout.move: "roll flip",
    layout.same_strides: "as_strided",
    layout.restride: "as_strided_",
    layout.index: "index",
    layout.ordered: "arange linspace",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
"""By the name of the operation, without its overload."""
