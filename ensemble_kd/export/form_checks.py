"""Each form held against the student: logits, points of accuracy, speed, a machine without this package."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ExportError
from ensemble_kd.export.elsewhere import Elsewhere
from ensemble_kd.export.huggingface import huggingface_inputs
from ensemble_kd.export.mlflow_form import example_rows
from ensemble_kd.export.program import program_inputs
from ensemble_kd.inference.feed import feed
from ensemble_kd.inference.latency import latency
from ensemble_kd.inference.onnx_model import OnnxGraph
from ensemble_kd.models.package import Package
from ensemble_kd.targets import target_in
from ensemble_kd.train.loop import predict

Run = Callable[[np.ndarray], np.ndarray]
"""(B, ...) inputs as the data stage writes them -> (B, C) logits."""
SECONDS = 0.5
"""For which the latency of a form is measured, at batch 1 and at 32."""


@dataclass
class Rows:
    """Rows of the data that a form is held against; texts (N, L) int32 and so on."""

    inputs: np.ndarray
    labels: np.ndarray | None
    """(N,) class numbers, or values; None where there are none."""


@dataclass
class Made:
    """A form as it lies in its folder."""

    run: Run
    extra: dict[str, Any]
    """Further fields of its config.json."""


def compared(
    form: str, made: Made, info: dict[str, Any], expected: np.ndarray, rows: Rows, options: ExportConfig
) -> dict[str, Any]:
    """How far the form's outputs are from the student's on validation rows. Raises ExportError."""
    logits = all_logits(made.run, rows.inputs)
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        raise ExportError(
            f"{form}: gives logits {logits.shape}, or some that are not finite; expected {expected.shape}"
        )
    target = target_in(info)
    difference = target.difference(logits, expected)
    found = {
        "logit_difference": difference,
        "agreement": target.agreement(logits, expected),
        "points_lost": target.points_lost(logits, expected, rows.labels),
        "validation_rows": len(rows.inputs),
    }
    if form != "int8" and difference > options.tolerance:
        raise ExportError(
            f"{form}: its {target.noun} differ from the student's by up to {difference:.3g} on "
            f"{len(rows.inputs):,} validation rows, allowed is {options.tolerance:g} (export.tolerance); "
            f"{100 * found['agreement']:.2f}% of the labels agree"
        )
    return found


def run_elsewhere(
    form: str,
    made: Made,
    info: dict[str, Any],
    folder: Path,
    inputs: np.ndarray,
    *,
    tolerance: float,
    elsewhere: Elsewhere,
) -> None:
    """Raises ExportError where a form does not run without this package, or answers otherwise there."""
    rows = None
    if form == "huggingface":
        given = huggingface_inputs(folder, info, inputs)
    elif form == "program":
        given = program_inputs(info, made.extra.get("length"), inputs)
    elif form == "mlflow":
        given, rows = {"inputs": inputs}, pa.table(example_rows(info, inputs))
    else:
        given = feed(info, inputs)
    found, here = elsewhere.logits(form, folder, given, rows), all_logits(made.run, inputs)
    if found.shape != here.shape or not target_in(info).difference(found, here) <= tolerance:
        raise ExportError(f"{form}: gives other logits in a process without this package than here")


def all_logits(run: Run, inputs: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """(N, C) logits of any number of inputs."""
    if isinstance(run, OnnxGraph):
        return run.logits(inputs, batch_size)
    parts = [run(inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)]
    return np.concatenate(parts)


def measured(run: Run, info: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Speed on one thread, and on labelled rows how good it is."""
    batch = min(256, len(rows.inputs))
    times: list[float] = []
    while sum(times) < SECONDS:  # small models pass over all rows in a millisecond
        began = time.perf_counter()
        logits = all_logits(run, rows.inputs, batch)
        times.append(time.perf_counter() - began)
    found: dict[str, Any] = {
        "latency_ms": latency(run, rows.inputs, info["kind"] == "text", SECONDS),
        "examples_per_second": len(rows.inputs) / statistics.median(times),
        "rows": len(rows.inputs),
    }
    if rows.labels is not None:
        found |= target_in(info).quality(logits, rows.labels)
    return found


def student_logits(source: Package, inputs: np.ndarray) -> np.ndarray:
    return predict(source.network, torch.from_numpy(inputs), torch.device("cpu")).numpy()
