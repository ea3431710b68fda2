"""A network's weights: on disk as safetensors, and bounded in norm."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.errors import ArtifactError
from ensemble_kd.safe_files import open_plain, parse_json, shown

Shapes = dict[str, tuple[int, ...]]
MOST_HEADER = 16_000_000
"""Bytes; one of 10,000 tensors has a million."""
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2"), 8),
}
"""Of a number of each type that safetensors writes for us."""


def save_weights(module: nn.Module, path: Path | str) -> None:
    """Write all parameters and buffers of `module`; the file is there whole or not at all."""
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.state_dict().items()
    }
    write_atomic(Path(path), save(tensors))


def shapes_of(path: Path) -> Shapes:
    """Shapes of a file's tensors by name, from its header; no tensor is read.

    Raises ArtifactError for a header that is none, or speaks of other bytes than there are.
    """
    with open_plain(path, links=True) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise ArtifactError(f"{path}: not readable as safetensors (a header of {length:,} bytes)")
        header = parse_json(file.read(length), f"{path}: the header")
    found: Shapes = {}
    described: dict[str, Any] = header if isinstance(header, dict) else {"": None}
    for name, entry in described.items():
        if name == "__metadata__":
            continue
        try:
            bits = BITS[entry["dtype"]]
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            good = all(type(n) is int and 0 <= n < 1 << 60 for n in (*shape, begin, end))
            good = good and len(shape) <= 32 and 0 <= begin <= end <= size - 8 - length
            good = good and math.prod(shape) * bits == 8 * (end - begin)
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise ArtifactError(f"{path}: not readable as safetensors (the entry of {shown(repr(name))})")
        found[name] = tuple(shape)
    return found


def misfits(found: Shapes, wanted: Shapes) -> str:
    """Every tensor that does not fit, in one line; empty where all do."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{shown(name)} is unknown to the model" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name])}, the model wants {tuple(wanted[name])}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Put weights that `save_weights` wrote into `module`.

    Raises ArtifactError, naming the file and every tensor that does not fit; `module` is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: missing")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error}); run again to redo it") from error
    problem = misfits(
        *({k: tuple(v.shape) for k, v in named.items()} for named in (found, module.state_dict()))
    )
    if problem:
        raise ArtifactError(f"{path}: belongs to another model: {problem}")
    module.load_state_dict(found)


@torch.no_grad()
def max_norm_(module: nn.Module, limit: float) -> None:
    """Shrink, in place, the incoming weights of each hidden unit to an L2 norm of at most `limit`.

    w_i <- w_i * min(1, limit / ||w_i||) for each row i of the weight (units, inputs) of every linear layer
    (Hinton et al., arXiv 1207.0580, 2). Biases, embeddings, convolutions, recurrent weights and the
    output layer (`module.head`, where there is one) are left alone.
    """
    head = getattr(module, "head", None)
    for layer in module.modules():
        if not isinstance(layer, nn.Linear) or layer is head:
            continue
        norms = torch.linalg.vector_norm(layer.weight, dim=1, keepdim=True)  # (units, 1)
        # Reading is cheaper than writing; on an accelerator asking would cost a synchronisation.
        if norms.is_cpu and not bool((norms > limit).any()):
            continue
        layer.weight.mul_((limit / norms).clamp_(max=1.0))
