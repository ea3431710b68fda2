"""An exported ONNX graph behind its folder: logits from inputs, with onnxruntime and numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.inference.feed import by_length, feed, input_names
from ensemble_kd.inference.onnx_file import check_graph
from ensemble_kd.model_folder import CONFIG, checked_folder
from ensemble_kd.safe_files import in_one_line, shown

GRAPH = "model.onnx"
TOKENS_AT_ONCE = 512
"""Tokens of one run, where texts differ in length: so many that activations stay in a CPU's caches."""


class OnnxGraph:
    """A graph and how to run it; one thread unless told otherwise, as several processes share a machine."""

    def __init__(self, path: Path, info: dict[str, Any], threads: int = 1) -> None:
        """Raises ArtifactError where the file is no graph, InputError where onnxruntime is missing."""
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "this form runs with onnxruntime, which is not installed; pip install 'ensemble-kd[onnx]'"
            ) from error
        check_graph(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # the library's errors have no common base
            raise ArtifactError(f"{path}: cannot be run ({in_one_line(error)})") from error
        self.path, self.info = path, info
        given = tuple(value.name for value in self.session.get_inputs())
        if set(given) != set(input_names(info)):
            named = shown(", ".join(given)) or "nothing"
            raise ArtifactError(f"{path}: takes {named}, its data is {', '.join(input_names(info))}")

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """(N, C) float32 logits of one batch. Raises ArtifactError for a graph that gives something else."""
        try:
            logits: Any = self.session.run(None, feed(self.info, inputs))[0]
        except Exception as error:  # as above
            raise ArtifactError(f"{self.path}: cannot be run ({in_one_line(error)})") from error
        wanted = (len(inputs), self.info["num_classes"])
        if not isinstance(logits, np.ndarray) or logits.shape != wanted or logits.dtype != np.float32:
            found = getattr(logits, "shape", type(logits).__name__)
            raise ArtifactError(f"{self.path}: gives {found}, not float32 logits {wanted}")
        return logits

    def logits(self, inputs: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """(N, C) float32 logits of any number of inputs; texts are sorted by length on the way."""
        found = np.empty((len(inputs), self.info["num_classes"]), np.float32)
        if self.info["kind"] != "text":
            for begin in range(0, len(inputs), batch_size):
                found[begin : begin + batch_size] = self(inputs[begin : begin + batch_size])
            return found
        for rows in by_length(inputs, batch_size, TOKENS_AT_ONCE):
            part = inputs[rows]
            longest = int(np.flatnonzero((part != 0).any(0)).max(initial=0)) + 1
            found[rows] = self(part[:, :longest])
        return found


def load_onnx(folder: Path, threads: int = 1) -> tuple[OnnxGraph, dict[str, Any]]:
    """The graph of an exported folder, and its config.json. Raises ArtifactError as `checked_folder`."""
    config, _ = checked_folder(folder, "export", (GRAPH, CONFIG))
    return OnnxGraph(folder / GRAPH, config["info"], threads), config
