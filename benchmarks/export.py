"""latency, int8: what the exported student costs, in the shapes of two recipes with random weights.

One thread throughout; ours and the reference take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.harness import Measured, benchmark, median, rounded, say
from benchmarks.transformers import MINILM, SPECIAL, STUDENT, TEACHER, TINY, VOCABULARY, texts
from ensemble_kd.config import ModelConfig
from ensemble_kd.export.graph import Graph
from ensemble_kd.export.onnx import write_int8, write_onnx
from ensemble_kd.inference.onnx_model import OnnxGraph
from ensemble_kd.models.build import Network, build

LONGEST = 64


def _info(kind: str, classes: int) -> dict[str, Any]:
    text = kind == "text"
    return {
        "kind": kind,
        "input_shape": [LONGEST] if text else [28, 28, 1],
        "num_classes": classes,
        "mean": [] if text else [0.13],
        "std": [] if text else [0.31],
        "vocabulary_size": VOCABULARY + 1 if text else 0,
        "preprocess": {"special": SPECIAL, "text": {"tokenizer": "pretrained"}},
    }


def _network(model: dict[str, Any], info: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    return build(TypeAdapter[Any](ModelConfig).validate_python(model), info).eval()


def _bert(blocks: int) -> dict[str, Any]:
    return {"name": "transformer", "architecture": MINILM | {"num_hidden_layers": blocks}}


def _mlp(units: int) -> dict[str, Any]:
    return {"name": "mlp", "hidden": [units, units]}


RECIPES: dict[str, tuple[str, int, int, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("image", 10, 5, _mlp(1200), _mlp(800)),
    "bert_ensemble": ("text", 77, 3, _bert(TEACHER), _bert(STUDENT)),
    "tinybert": ("text", 77, 1, _bert(TEACHER), TINY),
}
"""Kind of data, classes, members, teacher and student."""


def _inputs(info: dict[str, Any], rows: int) -> np.ndarray:
    if info["kind"] == "image":
        return np.random.default_rng(0).integers(0, 256, (rows, 28, 28, 1)).astype(np.uint8)
    return texts(rows).inputs[:, :LONGEST]


def _cut(inputs: np.ndarray) -> np.ndarray:
    return inputs if inputs.ndim > 2 else inputs[:, : int(np.flatnonzero((inputs != 0).any(0)).max()) + 1]


def _milliseconds(run: Callable[[np.ndarray], Any], batches: list[np.ndarray]) -> float:
    """The median over batches, each of which is seen once: weights are read anew, as in a service."""
    times = []
    for batch in batches:
        began = time.perf_counter()
        run(batch)
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def _torch(networks: list[Network]) -> Callable[[np.ndarray], Any]:
    @torch.inference_mode()
    def run(batch: np.ndarray) -> Any:
        inputs = torch.from_numpy(batch)
        return [network(inputs).logits for network in networks]

    return run


@benchmark(
    "latency",
    "Ensemble in PyTorch at batch 1, against its members x 2 students in ONNX; the worse of mnist and "
    "bert_ensemble",
    "ms",
    "at least",
    1.0,
)
def latency(quick: bool) -> Measured:
    rows, rounds = (20, 2) if quick else (200, 5)
    torch.set_num_threads(1)
    worst, detail = None, {}
    for name in ("mnist", "bert_ensemble"):
        kind, classes, members, teacher, student = RECIPES[name]
        info = _info(kind, classes)
        batches = [_cut(row[None]) for row in _inputs(info, rows)]
        ensemble = _torch([_network(teacher, info) for _ in range(members)])
        with tempfile.TemporaryDirectory() as folder:
            write_onnx(Graph(_network(student, info), info), info, Path(folder) / "model.onnx")
            graph = OnnxGraph(Path(folder) / "model.onnx", info)
        _milliseconds(ensemble, batches[:5])
        _milliseconds(graph, batches[:5])
        theirs, ours = [], []
        for _ in range(rounds):
            theirs.append(_milliseconds(ensemble, batches))
            ours.append(_milliseconds(graph, batches))
            say(f"latency, {name}: ensemble {theirs[-1]:.3f} ms, student in ONNX {ours[-1]:.3f} ms")
        bound = 2 * members * median(ours)
        detail[name] = {"ensemble_ms": rounded(theirs), "onnx_ms": rounded(ours), "members": members}
        detail[name]["times_faster"] = round(median(theirs) / median(ours), 2)
        if worst is None or median(theirs) / bound < worst[0] / worst[1]:
            worst = (median(theirs), bound)
    assert worst is not None
    return Measured(*worst, detail)


@benchmark(
    "int8",
    "Bytes of the tinybert student in float32 ONNX, against int8; which must be faster, too",
    "bytes",
    "at least",
    3.0,
)
def int8(quick: bool) -> Measured:
    rows, rounds = (20, 2) if quick else (100, 5)
    torch.set_num_threads(1)
    kind, classes, _, _, student = RECIPES["tinybert"]
    info = _info(kind, classes)
    inputs = _inputs(info, 32 * rows)
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        write_onnx(Graph(_network(student, info), info), info, plain)
        write_int8(plain, info, inputs[:64], "dynamic", small)
        sizes = plain.stat().st_size, small.stat().st_size
        graphs = {"float32": OnnxGraph(plain, info), "int8": OnnxGraph(small, info)}
    detail: dict[str, Any] = {}
    for size in (1, 32):
        batches = [_cut(inputs[i * size : (i + 1) * size]) for i in range(rows)]
        times: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(rounds):
            for name, graph in graphs.items():
                times[name].append(_milliseconds(graph, batches))
        detail[f"batch_{size}_ms"] = {name: rounded(values) for name, values in times.items()}
        detail[f"batch_{size}_faster"] = round(median(times["float32"]) / median(times["int8"]), 2)
        say(f"int8, batch {size}: {detail[f'batch_{size}_ms']}")
    slower = [size for size in (1, 32) if detail[f"batch_{size}_faster"] <= 1]
    problem = f"int8 is no faster at batch {slower[0]}" if slower else None
    return Measured(*sizes, detail, problem)
