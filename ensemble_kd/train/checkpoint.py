"""A member's training state in one safetensors file: weights, optimiser state, the best weights so far.

One file, one atomic rename: a killed process leaves the old state or the new one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ensemble_kd.disk import writing
from ensemble_kd.errors import ArtifactError


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
    progress: dict[str, Any],
) -> None:
    """Write the state; `progress` is JSON (epoch, history, ...)."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    for name, tensor in (best or {}).items():
        tensors[f"best/{name}"] = tensor
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, sum(tensor.nbytes for tensor in tensors.values())):
            save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """Put a saved state into model and optimiser; returns the best weights and the progress.

    Raises ArtifactError, naming the file, where it is truncated or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not a readable checkpoint ({error})") from error
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
    states: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in tensors.items():
            kind, rest = name.split("/", 1)
            if kind == "optimizer":
                index, key = rest.split("/", 1)
                states.setdefault(int(index), {})[key] = tensor
            else:
                groups[kind][rest] = tensor
        model.load_state_dict(groups["model"])
        state = optimizer.state_dict()
        state["state"] = states
        optimizer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: does not fit the model ({error})") from error
    return groups["best"] or None, progress
