"""The forms a model is handed over in: made, held against the student, measured, each in a folder of its own.

    EXPORT/onnx/          model.onnx, float32
    EXPORT/int8/          model.onnx, int8 weights
    EXPORT/program/       model.pt2, a torch.export program
    EXPORT/huggingface/   what save_pretrained writes
    EXPORT/mlflow/        an MLflow model

Beside the model lie config.json (classes, preprocessing, inputs), the tokenizer, requirements.txt and the
manifest. A form that does not give what the student gives is not kept.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ensemble_kd.artifacts import (
    Manifest,
    damage,
    fingerprint,
    finish,
    write_atomic,
    write_json,
)
from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ArtifactError, ExportError
from ensemble_kd.export.elsewhere import ROWS, Elsewhere
from ensemble_kd.export.graph import Graph
from ensemble_kd.export.huggingface import fits, huggingface_inputs, load_huggingface, write_huggingface
from ensemble_kd.export.mlflow_form import example_rows, load_mlflow, write_mlflow
from ensemble_kd.export.onnx import INT8_METHODS, write_int8, write_onnx
from ensemble_kd.export.program import PROGRAM, load_program, program_inputs, write_program
from ensemble_kd.inference.feed import feed, input_names
from ensemble_kd.inference.latency import SIZES, latency
from ensemble_kd.inference.onnx_model import GRAPH, OnnxGraph
from ensemble_kd.model_folder import CONFIG, PACKAGE_FORMAT, TOKENIZER, read_folder_manifest
from ensemble_kd.models.package import Package
from ensemble_kd.models.pooling import MODULES
from ensemble_kd.redact import redacted_model
from ensemble_kd.targets import Target, target_in
from ensemble_kd.train.loop import predict

REQUIREMENTS = "requirements.txt"
Run = Callable[[np.ndarray], np.ndarray]
"""(B, ...) inputs as the data stage writes them -> (B, C) logits."""

NEEDS = {
    "onnx": ["numpy", "onnxruntime"],
    "int8": ["numpy", "onnxruntime"],
    "program": ["torch"],
    "huggingface": ["torch", "transformers"],
    "mlflow": [],  # MLflow writes them
}
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


def export_forms(
    source: Package,
    folder: Path,
    options: ExportConfig,
    validation: Rows,
    test: Rows | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Make what `options.forms` names below `folder`; returns what was measured of each, by form.

    A form that is there already, of the same student and options, is kept. Logits are compared on
    `validation`; accuracy and calibration are measured on `test`.
    Raises ExportError, after all others were made, for forms that could not be, or that differ too much.
    """
    found: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    temperature = source.calibration.get("temperature", 1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scratch = tempfile.TemporaryDirectory()
    plain = PlainGraph(source, Path(scratch.name) / GRAPH)
    elsewhere = Elsewhere()
    try:
        expected = _student_logits(source, validation.inputs) / temperature
        for form in options.forms:
            plan = _fingerprint(source, form, options)
            kept = _kept(folder / form, plan)
            if kept is not None:
                found[form] = kept.summary
                continue
            try:
                found[form] = _form(
                    form, plan, source, folder, options, validation, expected, test, say, plain, elsewhere
                )
            except ExportError as error:
                problems += [problem for problem in error.problems if problem not in problems]
                shutil.rmtree(folder / form, ignore_errors=True)
    finally:
        torch.set_num_threads(threads)
        scratch.cleanup()
        elsewhere.close()
    if problems:
        made = ", ".join(found) or "none"
        raise ExportError([*problems, f"export: forms that were made: {made}"])
    return found


def _fingerprint(source: Package, form: str, options: ExportConfig) -> str:
    """Of what decides a form's bytes, and whether it is good enough."""
    settings = options.model_dump(mode="json", exclude={"forms", "calibrate", "precision", "register_as"})
    what = {"model": source.model, "info": source.info, "lineage": source.lineage}
    return fingerprint("export", form, settings, what, source.calibration)


def _kept(folder: Path, plan: str) -> Manifest | None:
    try:
        manifest = read_folder_manifest(folder)
    except ArtifactError:
        return None
    good = manifest is not None and manifest.fingerprint == plan and not damage(folder, manifest)
    return manifest if good and manifest is not None and _is_measured(manifest.summary) else None


def _is_measured(entry: dict[str, Any]) -> bool:
    """Whether an entry has what is printed of it: the folder may be a stranger's."""
    try:
        numbers = [entry[key] for key in ("model_bytes", "examples_per_second", "agreement")]
        numbers += [entry["latency_ms"][f"batch_{n}"][which] for n in SIZES for which in ("p50", "p99")]
        numbers += [entry[key] for key in ("accuracy", "ece", "r2", "mse") if entry.get(key) is not None]
    except (KeyError, TypeError):
        return False
    named = isinstance(entry.get("method"), str | None) and entry.get("form") in NEEDS
    return named and all(type(number) in (int, float) for number in numbers)


def _form(
    form: str,
    plan: str,
    source: Package,
    parent: Path,
    options: ExportConfig,
    validation: Rows,
    expected: np.ndarray,
    test: Rows | None,
    say: Callable[[str], None],
    plain: PlainGraph,
    elsewhere: Elsewhere,
) -> dict[str, Any]:
    """Make one form, compare, measure, and put it in its place whole."""
    began = time.perf_counter()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{form}.", suffix=".tmp") as scratch:
        folder = Path(scratch) / form
        folder.mkdir()
        made = _make(form, source, folder, options, validation, expected, plain)
        compared = _compared(form, made, target_in(source.info), expected, validation, options)
        entry: dict[str, Any] = {"form": form, **compared}
        entry |= measured(made.run, source.info, test or validation)
        entry |= {k: v for k, v in made.extra.items() if k in ("method", "tried")}
        if form == "huggingface":
            needs = NEEDS[form] + (["sentence-transformers"] if (folder / MODULES).is_file() else [])
            write_atomic(folder / REQUIREMENTS, "\n".join(needs) + "\n")
        elif form != "mlflow":
            _describe(form, source, folder, made.extra)
        _run_elsewhere(form, made, source.info, folder, validation.inputs[:ROWS], options, elsewhere)
        files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
        entry["bytes"] = sum((folder / name).stat().st_size for name in files)
        entry["model_bytes"] = _model_bytes(folder)
        entry["seconds"] = time.perf_counter() - began
        finish(folder, "export", plan, {"form": form}, {}, files, entry)
        shutil.rmtree(parent / form, ignore_errors=True)
        folder.rename(parent / form)
    say(f"export: {form}, {entry['model_bytes'] / 1e6:.2f} MB, {_sentence(entry)}")
    return entry


class PlainGraph:
    """The float32 ONNX graph, of which three forms are made: exported once, when the first asks for it."""

    def __init__(self, source: Package, path: Path) -> None:
        self.source, self.path = source, path
        self.error: ExportError | None = None

    def __call__(self) -> Path:
        """Raises ExportError, for each that asks."""
        if self.error is not None:
            raise self.error
        if not self.path.exists():
            source = self.source
            graph = Graph(source.network, source.info, source.calibration.get("temperature", 1.0))
            try:
                write_onnx(graph, source.info, self.path)
            except ExportError as error:
                self.error = error
                raise
        return self.path


def _make(
    form: str,
    source: Package,
    folder: Path,
    options: ExportConfig,
    rows: Rows,
    expected: np.ndarray,
    plain: PlainGraph,
) -> Made:
    info, temperature = source.info, source.calibration.get("temperature", 1.0)
    if form == "huggingface":
        write_huggingface(source.network, info, source.tokenizer, temperature, folder)
        return Made(load_huggingface(folder, info), {})
    if form == "program":
        extra = write_program(Graph(source.network, info, temperature, onnx=False), info, folder / PROGRAM)
        return Made(load_program(folder / PROGRAM, {"info": info, **extra}), extra)
    if form == "onnx":
        shutil.copyfile(plain(), folder / GRAPH)
        return Made(OnnxGraph(folder / GRAPH, info), {})
    if form == "int8":
        return _int8(plain(), source, folder, options, rows, expected)
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "model"  # its name is that of the artefact in the MLflow model
        graph.mkdir()
        shutil.copyfile(plain(), graph / GRAPH)
        _describe("onnx", source, graph, {})
        write_mlflow(graph, source, rows.inputs[:2], folder)
    return Made(load_mlflow(folder, info), {})


def _int8(
    plain: Path, source: Package, folder: Path, options: ExportConfig, rows: Rows, expected: np.ndarray
) -> Made:
    """By each method that is asked for; of those that lose little enough, the one that is fastest."""
    info, target = source.info, target_in(source.info)
    methods = INT8_METHODS if options.int8 == "auto" else (options.int8,)
    tried: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for method in methods:
        path = folder / f"{method}.onnx"
        trained = source.quantization is not None
        try:
            write_int8(plain, info, rows.inputs[: options.calibration_rows], method, path, trained)
            run = OnnxGraph(path, info)
            logits = run.logits(rows.inputs)
        except (ExportError, ArtifactError) as error:  # the other method may do
            failed.append(str(error))
            continue
        if not np.isfinite(logits).all():
            failed.append(f"int8 ({method}): gives logits that are not finite")
            continue
        tried[method] = {
            "points_lost": target.points_lost(logits, expected, rows.labels),
            "latency_ms": latency(run, rows.inputs, info["kind"] == "text"),
        }
    if not tried:
        raise ExportError(failed)
    good = [m for m in tried if tried[m]["points_lost"] <= options.max_accuracy_loss]
    if not good:
        lost = ", ".join(f"{m} loses {entry['points_lost']:.2f}" for m, entry in tried.items())
        raise ExportError(
            f"int8: {lost} points of {target.measures.noun} on {len(rows.inputs):,} validation rows, allowed "
            f"are {options.max_accuracy_loss:g}; allow more (export.max_accuracy_loss), or leave int8 out"
        )
    best = min(good, key=lambda m: tried[m]["latency_ms"]["batch_32"]["p50"])
    for method in methods:
        path = folder / f"{method}.onnx"
        path.rename(folder / GRAPH) if method == best else path.unlink(missing_ok=True)
    return Made(OnnxGraph(folder / GRAPH, info), {"method": best, "tried": tried})


def _compared(
    form: str, made: Made, target: Target, expected: np.ndarray, rows: Rows, options: ExportConfig
) -> dict[str, Any]:
    """How far the form's outputs are from the student's on validation rows. Raises ExportError."""
    logits = all_logits(made.run, rows.inputs)
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        raise ExportError(
            f"{form}: gives logits {logits.shape}, or some that are not finite; expected {expected.shape}"
        )
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


def _run_elsewhere(
    form: str,
    made: Made,
    info: dict[str, Any],
    folder: Path,
    inputs: np.ndarray,
    options: ExportConfig,
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
    if found.shape != here.shape or not target_in(info).difference(found, here) <= options.tolerance:
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


def _student_logits(source: Package, inputs: np.ndarray) -> np.ndarray:
    return predict(source.network, torch.from_numpy(inputs), torch.device("cpu")).numpy()


def _describe(form: str, source: Package, folder: Path, extra: dict[str, Any]) -> None:
    """What a folder needs beside its model to be used elsewhere."""
    write_json(
        folder / CONFIG,
        {
            "format": PACKAGE_FORMAT,
            "form": form,
            "inputs": inputs_of(source.info),
            "output": {"name": "logits", "shape": ["rows", source.info["num_classes"]], "type": "float32"},
            "calibration": source.calibration,
            "info": source.info,
            "lineage": source.lineage,
            "model": redacted_model(source.model),
            **extra,
        },
    )
    needs = list(NEEDS[form])
    if source.tokenizer is not None:
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
        needs.append("tokenizers")
    write_atomic(folder / REQUIREMENTS, "\n".join(needs) + "\n")


def inputs_of(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, shape, type and meaning of each input of a graph, for those who run it without this package."""
    meanings = {
        "pixels": "0 to 255 as they are decoded; the graph normalises them",
        "numbers": "raw, in the order of the columns; the graph normalises them",
        "input_ids": "numbers that tokenizer.json gives, special tokens included, any number behind the text",
        "attention_mask": "1 for tokens, 0 for padding behind them",
        "tokens": "numbers from 1 on, 0 behind the text: "
        + (
            "those of tokenizer.json (without special tokens) plus 1"
            if info["preprocess"].get("text", {}).get("tokenizer") == "subword"
            else "CRC-32 of words and n-grams modulo the number of buckets, plus 1"
        ),
    }
    kind = {"image": "uint8", "numeric": "float32", "text": "int64"}[info["kind"]]
    shape = info["input_shape"] if info["kind"] != "text" else [f"length, at most {info['input_shape'][0]}"]
    return [
        {"name": name, "shape": ["rows", *shape], "type": kind, "meaning": meanings[name]}
        for name in input_names(info)
    ]


def _model_bytes(folder: Path) -> int:
    """Of the weights and the graph alone, without tokenizer and descriptions."""
    ends = (".onnx", ".pt2", ".safetensors")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in ends)


def _sentence(entry: dict[str, Any]) -> str:
    text = f"largest logit difference {entry['logit_difference']:.2g}, {100 * entry['agreement']:.2f}% agree"
    if entry.get("method"):
        text += f", {entry['method']}, {entry['points_lost']:+.2f} points lost"
    return text + f", {entry['latency_ms']['batch_1']['p50']:.3f} ms"


def available(source: Package) -> list[str]:
    """Forms that this kind of student has."""
    return [form for form in NEEDS if form != "huggingface" or fits(source.network)]
