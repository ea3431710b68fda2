"""The shipped student in the forms that others run, each held against it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from ensemble_kd.artifacts import Manifest, read_manifest
from ensemble_kd.config import Config
from ensemble_kd.data.records import Arrays, load_split
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError, ExportError
from ensemble_kd.export.form_checks import Rows, measured
from ensemble_kd.export.forms import available, export_forms
from ensemble_kd.inference.latency import SIZES
from ensemble_kd.models.build import Network
from ensemble_kd.models.package import Package, shipped_info
from ensemble_kd.models.quantise import description
from ensemble_kd.stages.base import Done, Stage
from ensemble_kd.stages.calibrated import calibration_of
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.members import kept_weights, members_folder
from ensemble_kd.targets import target_in
from ensemble_kd.train.calibration import before_and_after, calibrate
from ensemble_kd.train.finishing import PREDICTIONS
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict

TIMED_ROWS = 1024
"""Test rows over which examples per second are measured."""
SPLITS = ("validation", "test")
Logits = dict[str, np.ndarray]
"""(N, C) of each of `SPLITS`."""


def plan(config: Config, run: Path, data: str, teachers: str, student: str) -> StagePlan:
    assert config.export is not None
    settings = config.export.model_dump(mode="json", exclude={"register_as"})
    settings |= {"mean": config.student.mean, "weights": config.student.weights}
    return StagePlan.of(run, "export", settings, {"data": data, "teachers": teachers, "student": student})


def run(context: Context, plan: StagePlan, done: Done) -> Manifest:
    """Calibrate on validation rows, make the forms, measure them and what they come from on test rows.

    Raises ExportError for forms that cannot be made or give something else; the others stay.
    """
    options = context.config.export
    assert options is not None
    data, info = done["data"].folder, done.info
    teachers, student = done["teachers"].manifest, done["student"].manifest
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    entry = next(e for e in student.summary["members"] if e["name"] == student.summary["shipped"])
    network, settings, folder = _member(context.folder, "student", entry, info)
    stored = load_file(folder / PREDICTIONS)
    validation, test = (load_split(data, split) for split in ("validation", "test"))
    target = target_in(info)
    calibration: dict[str, Any] = {"temperature": 1.0}  # a value has no confidence to calibrate
    if target.classified:
        calibration = calibrate(stored["validation"], validation.labels, options.calibrate, options.precision)
    if options.precision is not None and calibration["threshold"] is None:
        context.console.warning(
            f"export.precision: at no confidence are {100 * options.precision:g}% of the answers on "
            "validation rows right; the model answers always"
        )
    tokenizer = data / "tokenizer.json"
    source = Package(
        network,
        shipped_info(network, info),
        settings["model"],
        {**done.lineage(), "member": entry["fingerprint"]},
        folder,
        tokenizer if tokenizer.exists() else None,
        calibration,
        description(network),
    )
    forms = [form for form in options.forms if form in available(source)]
    for form in set(options.forms) - set(forms):
        context.console.line(f"export: no {form}, the student is no transformers model")
    made = export_forms(
        source,
        plan.folder,
        options.model_copy(update={"forms": forms}),
        Rows(validation.inputs, validation.labels),
        Rows(test.inputs, test.labels),
        context.console.line,
    )
    calibrated = {split: stored[split] / calibration["temperature"] for split in SPLITS}
    summary = {
        "forms": made,
        "calibration": calibration,
        "calibrated": before_and_after(stored["test"], test.labels, calibration["temperature"])
        if target.classified
        else None,
        "systems": _systems(context, info, teachers, (network, calibrated), test, data),
        "seconds": time.perf_counter() - began,
    }
    files = [str(p.relative_to(plan.folder)) for form in made for p in (plan.folder / form).rglob("*")]
    files = [name for name in files if (plan.folder / name).is_file()]
    return plan.finish(files, summary)


def _member(
    run: Path, stage: str, entry: dict[str, Any], info: dict[str, Any]
) -> tuple[Network, dict[str, Any], Path]:
    folder = members_folder(run, stage) / entry["fingerprint"]
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: {entry['name']} is missing; run its stage again")
    return load_network(manifest.config, info, folder), manifest.config, folder


def _systems(
    context: Context,
    info: dict[str, Any],
    teachers: Manifest,
    student: tuple[Network, Logits],
    test: Arrays,
    data: Path,
) -> list[dict[str, Any]]:
    """What the forms stand beside, in PyTorch on one thread: a teacher, the ensemble, the student."""
    entries = [e for e in teachers.summary["members"] if "fingerprint" in e and "parameters" in e]
    networks, stored, sizes = [], [], []
    for entry in entries:
        network, _, folder = _member(context.folder, "teachers", entry, info)
        networks.append(network)
        stored.append(load_file(folder / PREDICTIONS))
        sizes.append(entry["bytes"])
    size = sum(p.numel() * p.element_size() for p in student[0].state_dict().values())
    systems: list[tuple[str, list[Network], Logits, int]] = [("student", [student[0]], student[1], size)]
    if networks:
        weights = kept_weights(context.config.student.weights, [e["name"] for e in entries])
        calibration = calibration_of(context.config, context.folder, data, teachers)
        together = {
            split: mean_logits(
                torch.from_numpy(np.stack([logits[split] for logits in stored], 1)),
                1.0,
                context.config.mean,
                weights,
                calibration,
            ).numpy()
            for split in SPLITS
        }
        systems = [
            ("single teacher", networks[:1], stored[0], sizes[0]),
            ("ensemble", networks, together, sum(sizes)),
            *systems,
        ]
    target, answers = target_in(info), student[1]["validation"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            {
                "name": name,
                "model_bytes": size,
                **measured(_all(some), info, Rows(test.inputs[:TIMED_ROWS], None)),
                **target.quality(logits["test"], test.labels),
                "agreement": target.agreement(logits["validation"], answers),
            }
            for name, some, logits, size in systems
        ]
    finally:
        torch.set_num_threads(threads)


def _all(networks: list[Network]) -> Callable[[np.ndarray], np.ndarray]:
    """Inputs through all networks, one after another; many texts are sorted by length on the way."""
    device = torch.device("cpu")

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(inputs)
        if len(batch) > max(SIZES):
            return np.stack([predict(network, batch, device).numpy() for network in networks]).sum(0)
        return np.stack([network(batch).logits.numpy() for network in networks]).sum(0)

    return run


class Export(Stage):
    name = "export"
    postponed = (ExportError,)

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, *(done[name].fingerprint for name in ("data", "teachers", "student")))

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, done)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return ", ".join(
            f"{form} {entry['model_bytes'] / 1e6:.2f} MB" for form, entry in summary["forms"].items()
        )


STAGE = Export()
