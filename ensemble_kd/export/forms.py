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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Identity, Manifest, damage, fingerprint, finish, write_atomic
from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ArtifactError, ExportError
from ensemble_kd.export.described import NEEDS, REQUIREMENTS, describe, model_bytes
from ensemble_kd.export.elsewhere import ROWS, Elsewhere
from ensemble_kd.export.form_checks import (
    Made,
    Rows,
    compared,
    measured,
    run_elsewhere,
    student_logits,
)
from ensemble_kd.export.graph import Graph
from ensemble_kd.export.huggingface import fits, load_huggingface, write_huggingface
from ensemble_kd.export.mlflow_form import load_mlflow, write_mlflow
from ensemble_kd.export.onnx import INT8_METHODS, write_int8, write_onnx
from ensemble_kd.export.program import PROGRAM, load_program, write_program
from ensemble_kd.inference.latency import SIZES, latency
from ensemble_kd.inference.onnx_model import GRAPH, OnnxGraph
from ensemble_kd.model_folder import read_folder_manifest
from ensemble_kd.models.package import Package
from ensemble_kd.models.pooling import MODULES
from ensemble_kd.targets import target_in


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
        expected = student_logits(source, validation.inputs) / temperature
        making = Making(source, options, validation, expected, test or validation, plain, elsewhere)
        for form in options.forms:
            plan = _fingerprint(source, form, options)
            kept = _kept(folder / form, plan)
            if kept is not None:
                found[form] = kept.summary
                continue
            try:
                found[form] = _form(form, plan, folder, making)
                say(f"export: {form}, {found[form]['model_bytes'] / 1e6:.2f} MB, {_sentence(found[form])}")
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


@dataclass(frozen=True)
class Making:
    """What the forms of one student are made of, and held against."""

    source: Package
    options: ExportConfig
    validation: Rows
    expected: np.ndarray
    """(N, C) the student's calibrated logits on validation rows."""
    test: Rows
    """Rows that accuracy and speed are measured on."""
    plain: PlainGraph
    elsewhere: Elsewhere


def _form(form: str, plan: str, parent: Path, making: Making) -> dict[str, Any]:
    """Make one form, compare, measure, and put it in its place whole."""
    source, options, validation = making.source, making.options, making.validation
    began = time.perf_counter()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{form}.", suffix=".tmp") as scratch:
        folder = Path(scratch) / form
        folder.mkdir()
        made = _make(form, folder, making)
        found = compared(form, made, source.info, making.expected, validation, options)
        entry: dict[str, Any] = {"form": form, **found}
        entry |= measured(made.run, source.info, making.test)
        entry |= {k: v for k, v in made.extra.items() if k in ("method", "tried")}
        if form == "huggingface":
            needs = NEEDS[form] + (["sentence-transformers"] if (folder / MODULES).is_file() else [])
            write_atomic(folder / REQUIREMENTS, "\n".join(needs) + "\n")
        elif form != "mlflow":
            describe(form, source, folder, made.extra)
        run_elsewhere(
            form,
            made,
            source.info,
            folder,
            validation.inputs[:ROWS],
            tolerance=options.tolerance,
            elsewhere=making.elsewhere,
        )
        files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
        entry["bytes"] = sum((folder / name).stat().st_size for name in files)
        entry["model_bytes"] = model_bytes(folder)
        entry["seconds"] = time.perf_counter() - began
        finish(folder, Identity("export", plan, {"form": form}, {}), files, entry)
        shutil.rmtree(parent / form, ignore_errors=True)
        folder.rename(parent / form)
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


def _make(form: str, folder: Path, making: Making) -> Made:
    source, plain = making.source, making.plain
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
        return _int8(plain(), folder, making)
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "model"  # its name is that of the artefact in the MLflow model
        graph.mkdir()
        shutil.copyfile(plain(), graph / GRAPH)
        describe("onnx", source, graph, {})
        write_mlflow(graph, source, making.validation.inputs[:2], folder)
    return Made(load_mlflow(folder, info), {})


def _int8(plain: Path, folder: Path, making: Making) -> Made:
    """By each method that is asked for; of those that lose little enough, the one that is fastest."""
    source, options, rows, expected = making.source, making.options, making.validation, making.expected
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


def _sentence(entry: dict[str, Any]) -> str:
    text = f"largest difference {entry['logit_difference']:.2g}, {100 * entry['agreement']:.2f}% agree"
    if entry.get("method"):
        text += f", {entry['method']}, {entry['points_lost']:+.2f} points lost"
    return text + f", {entry['latency_ms']['batch_1']['p50']:.3f} ms"


def available(source: Package) -> list[str]:
    """Forms that this kind of student has."""
    return [form for form in NEEDS if form != "huggingface" or fits(source.network)]
