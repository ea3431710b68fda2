"""A `torch.export` program: PyTorch without this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.errors import ArtifactError
from ensemble_kd.export.graph import Graph, exported, fixed_length
from ensemble_kd.inference.feed import feed

PROGRAM = "model.pt2"


def write_program(graph: Graph, info: dict[str, Any], path: Path) -> dict[str, Any]:
    """Save the program; returns what its description adds. Raises ExportError."""
    torch.export.save(exported(graph, info), path)
    return {"length": info["input_shape"][0]} if fixed_length(graph) else {}


def load_program(path: Path, config: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """(B, ...) inputs -> (B, C) logits. Raises ArtifactError where the file is no program."""
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # the loader raises errors of many kinds
        raise ArtifactError(f"{path}: not a torch.export program ({error})") from error
    info, length = config["info"], config.get("length")

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> np.ndarray:
        given = (torch.from_numpy(array) for array in program_inputs(info, length, inputs).values())
        logits: np.ndarray = module(*given).numpy()
        return logits

    return run


def program_inputs(info: dict[str, Any], length: int | None, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The program's arguments in order; texts are padded where it takes one `length`."""
    if length is not None and inputs.shape[1] < length:
        inputs = np.pad(inputs, ((0, 0), (0, length - inputs.shape[1])))
    return feed(info, inputs)
