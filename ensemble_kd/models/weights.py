"""A network's weights: on disk as safetensors, and bounded in norm."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.errors import ArtifactError


def save_weights(module: nn.Module, path: Path | str) -> None:
    """Write all parameters and buffers of `module`; the file is there whole or not at all."""
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.state_dict().items()
    }
    write_atomic(Path(path), save(tensors))


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
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown to the model" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, the model wants {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ArtifactError(f"{path}: belongs to another model: {'; '.join(problems[:8])}{more}")
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
