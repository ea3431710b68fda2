"""Stage 5: did it work? The report, and the student alone in its folder."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from ensemble_kd.artifacts import Manifest, checksum, damage, read_manifest
from ensemble_kd.config import Config, StudentConfig
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.records import load_labels, load_split
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.models.package import save_package, shipped_info
from ensemble_kd.redact import redacted
from ensemble_kd.report.build import ROLES, ReportInputs, Specialised, System, build_report
from ensemble_kd.report.card import model_card
from ensemble_kd.report.chain import together
from ensemble_kd.report.choose import choose_section
from ensemble_kd.report.page import write_report
from ensemble_kd.report.plots import histories_of, plot_arrays
from ensemble_kd.stages.base import Done, Stage
from ensemble_kd.stages.calibrated import calibration_of
from ensemble_kd.stages.context import COMBINED, MATRIX, Context, StagePlan
from ensemble_kd.stages.members import kept_weights, members_folder
from ensemble_kd.stages.trial_book import result_of
from ensemble_kd.targets import target_in
from ensemble_kd.train.finishing import PREDICTIONS, load_logits
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.teacher_calibration import fit_shrunk

JSON, PAGE, MODEL = "report.json", "report.html", "model"


def plan(config: Config, run: Path, done: Done) -> StagePlan:
    settings = {"name": config.name, "mean": config.mean, **config.report.model_dump(mode="json")}
    settings |= {"weights": config.student.weights}
    inputs = {name: done[name].fingerprint for name in ("teachers", "student")}
    if "sweep" in done:
        inputs["sweep"] = result_of(done["sweep"].manifest)
    inputs |= {name: done[name].fingerprint for name in ("export", "gap", "choose") if name in done}
    return StagePlan.of(run, "report", settings, inputs)


def intact(plan: StagePlan, context: Context) -> Manifest | None:
    """The finished report, if it and the model folder still stand in the run folder."""
    manifest = plan.checked(context.console)
    return manifest if manifest is not None and _placed(plan, manifest, context.folder) else None


def _placed(plan: StagePlan, manifest: Manifest, run: Path) -> bool:
    """Whether report and model in the run folder are this plan's: other settings put theirs there too."""
    for name in (JSON, PAGE):
        if not (run / name).is_file() or checksum(run / name) != manifest.files[name]["sha256"]:
            return False
    try:
        model = read_manifest(run / MODEL)
    except ArtifactError:
        return False
    if model is None or damage(run / MODEL, model):
        return False
    return bool(model.summary.get("lineage", {}).get("student") == plan.inputs["student"])


def run(context: Context, plan: StagePlan, done: Done) -> Manifest:
    """Write report.json, report.html and model/, first in the stage's folder, then in the run folder."""
    config, info = context.config, done.info
    data, teachers, student = done["data"].folder, done["teachers"], done["student"]

    def summary_of(stage: str) -> dict[str, Any] | None:
        return done[stage].summary if stage in done else None

    plan.folder.mkdir(parents=True, exist_ok=True)
    context.console.progress("report", 0, 3, "reading predictions")
    try:
        test = load_split(data, "test")
        given = teachers.summary["source"] == "predictions"
        systems = (
            _given_teachers(teachers.manifest, teachers.folder)
            if given
            else [
                _system(entry, members_folder(context.folder, "teachers"), info, test.inputs)
                for entry in teachers.summary["members"]
            ]
        )
        students = [
            _system(entry, members_folder(context.folder, "student"), info, test.inputs)
            for entry in student.summary["members"]
        ]
        if target_in(info).classified:
            labels = load_labels(data, "validation")
            for system, entry in zip(students, student.summary["members"], strict=True):
                folder = members_folder(context.folder, "student") / entry["fingerprint"]
                system.calibration = _calibration(folder, labels, system.role)
        students += _together(student.manifest, members_folder(context.folder, "student"))
        students += together(students, config.mean)
        ensemble, plain, calibration = None, None, None
        if systems:
            weights = kept_weights(config.student.weights, [system.name for system in systems])
            members = torch.from_numpy(np.stack([system.logits for system in systems], 1))  # (N, M, C)
            calibration = calibration_of(config, context.folder, data, teachers.manifest)
            ensemble = mean_logits(members, 1.0, config.mean, weights, calibration).numpy()
            if calibration is not None:
                plain = mean_logits(members, 1.0, config.mean, weights).numpy()
        context.console.progress("report", 1, 3, "drawing")
        inputs = ReportInputs(
            name=config.name,
            created=time.time(),
            info=info,
            labels=test.labels,
            teachers=systems,
            ensemble_log_probs=ensemble,
            students=students,
            shipped=student.summary["shipped"],
            temperature=config.student.numbers.temperature,
            alpha=config.student.numbers.alpha,
            pseudo=config.student.numbers.pseudo,
            reads_teachers=config.student.reads_teachers or not config.student.distils,
            temperatures=calibration,
            plain_ensemble=plain,
            choose=choose_section(summary_of("choose"), student.summary["seconds"]),
            objective=_objective(config.student),
            mean=config.mean,
            settings=redacted(config.model_dump(mode="json", exclude={"report"})),
            lineage=done.lineage(),
            excluded=teachers.summary["excluded"],
            reference=[redacted(row.model_dump(mode="json")) for row in config.report.reference],
            specialised=_specialised(config, systems, done) if "combined-targets" in done else None,
            sweep=summary_of("sweep"),
            ships=summary_of("export"),
            gap=summary_of("gap"),
        )
        report = build_report(inputs)
        if "constant" in report:
            context.console.warning(report["constant"]["text"])
        write_report(report, histories_of(inputs), plot_arrays(inputs), plan.folder)
        context.console.progress("report", 2, 3, "packing the student")
        _pack(context, report, done)
        for name in (JSON, PAGE):
            _copy(plan.folder / name, context.folder / name)
    finally:
        context.console.progress("report", 0, 0, "")
    summary = {
        "verdict": report["verdict"],
        "gap_recovered": report["gap_recovered"]["value"],
        "shipped": student.summary["shipped"],
    }
    return plan.finish([JSON, PAGE], summary)


def _specialised(config: Config, teachers: list[System], done: Done) -> Specialised:
    clusters, combined, info = done["clusters"], done["combined-targets"], done.info
    summary, members = combined.summary, done["specialists"].summary["members"]
    logits = load_file(combined.folder / COMBINED)

    def system(role: str, kind: str, beside: list[System], entries: list[dict[str, Any]]) -> System:
        """Parameters and bytes of all that is kept; its time depends on which specialists are asked."""
        return System(
            ROLES[role].lower(),
            role,
            None,
            logits[f"{kind}/test"],
            parameters=sum(s.parameters or 0 for s in beside) + sum(e["parameters"] for e in entries),
            bytes=sum(s.bytes or 0 for s in beside) + sum(e["bytes"] for e in entries),
        )

    def used(choice: dict[str, Any], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        on = {k for k, weight in zip(choice["clusters"], choice["weights"], strict=True) if weight > 0}
        return [entry for entry in entries if entry["cluster"] in on]

    own = [entry for entry in members if entry["generalist"] == summary["generalist"]]
    single = [teacher for teacher in teachers if teacher.name == summary["generalist"]]
    choice = summary["choice"]
    weights = dict(zip(choice["clusters"], choice["weights"], strict=True))
    found = []
    for number, cluster in enumerate(clusters.summary["clusters"]):
        if number not in weights:  # the loss of all its specialists was not finite
            continue
        judged = [m for m in members if m["cluster"] == number and m["conditional_accuracy"] is not None]
        before, after = (
            statistics.fmean(m[key] for m in judged) if judged else None
            for key in ("conditional_accuracy_before", "conditional_accuracy")
        )
        found.append(
            {
                "classes": cluster["classes"],
                "confusion_captured": cluster["confusion_captured"],
                "weight": weights[number],
                "conditional_before": before,
                "conditional_after": after,
            }
        )
    matrix = clusters.folder / MATRIX
    return Specialised(
        systems=[
            system("generalist_specialists", "generalist", single, used(summary["generalist_choice"], own)),
            system("ensemble_specialists", "ensemble", teachers, used(summary["choice"], members)),
        ],
        generalist=summary["generalist"],
        clusters=found,
        without=[c for c in range(len(info["class_names"])) if not any(c in k["classes"] for k in found)],
        text=summary["text"],
        targets=config.targets if summary["on"] else "ensemble",
        matrix=load_file(matrix)["matrix"] if matrix.exists() else None,
    )


def _together(student: Manifest, members: Path) -> list[System]:
    """The ensemble of the networks that learned together, where a student was one of several."""
    found = []
    for entry in student.summary["members"]:
        if entry["role"] != "distilled" or "together_parameters" not in entry:
            continue
        logits = load_file(members / entry["fingerprint"] / PREDICTIONS).get("together/test")
        if logits is None:  # it is what is shipped
            continue
        seed = int(entry["name"].rsplit("-", 1)[1])
        parameters = entry["together_parameters"]
        found.append(System(f"together-seed-{seed}", "together", seed, logits, parameters))
    return found


def _objective(student: StudentConfig) -> str:
    """What the student learned by, in a few words: `kl + patient`."""
    together = student.peers is not None or student.branches is not None
    fields = student.objective_fields if not together or student.numbers.alpha > 0 else None
    names = [*([fields["name"]] if fields else []), *(term["name"] for term in student.terms)]
    if student.peers is not None:
        others = student.peers.count - 1
        names.append(f"{student.peers.objective_fields['name']} of {others} peer{'s' * (others != 1)}")
    if student.branches is not None:
        names.append(f"kl of {student.branches.count} gated branches")
    if student.learner is not None:
        names.append(student.learner.name)
    return " + ".join(names)


def _given_teachers(teachers: Manifest, folder: Path) -> list[System]:
    found = []
    for entry in teachers.summary["members"]:
        splits = load_file(folder / entry["predictions"])
        if "test" in splits:
            found.append(System(entry["name"], "teacher", None, splits["test"]))
    return found


def _system(entry: dict[str, Any], members: Path, info: dict[str, Any], inputs: np.ndarray) -> System:
    folder = members / entry["fingerprint"]
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: {entry['name']} is missing; run its stage again")
    network = load_network(manifest.config, info, folder)
    judged = entry["role"] != "refit"  # that one was trained on the validation rows
    return System(
        name=entry["name"],
        role=entry["role"],
        seed=int(entry["name"].rsplit("-", 1)[1]),
        logits=load_file(folder / PREDICTIONS)["test"],
        parameters=entry["parameters"],
        bytes=entry["bytes"],
        latency=measure_latency(network, inputs),
        validation_nll=entry["validation_loss"] if judged else None,
        history=manifest.summary["history"] if judged else [],
    )


def _calibration(folder: Path, labels: np.ndarray, role: str) -> float:
    """Temperature of a student's own, from validation rows; 1 for one that was trained on these."""
    known = labelled(labels)
    if role == "refit" or not known.any():
        return 1.0
    return fit_shrunk(load_logits(folder, "validation").numpy()[known], labels[known])


@torch.inference_mode()
def measure_latency(network: Network, inputs: np.ndarray, seconds: float = 0.1) -> dict[str, float]:
    """Median milliseconds of a forward pass at batch 1 and 32, on one thread of this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        for size in (1, 32):
            batch = torch.from_numpy(np.resize(inputs[:size], (size, *inputs.shape[1:])).copy())
            if getattr(network.body, "sequential", False):
                batch = batch[:, : int((batch != 0).sum(1).max())]
            network(batch)
            times: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times) < 3:
                began = time.perf_counter()
                network(batch)
                times.append(time.perf_counter() - began)
            found[f"batch_{size}"] = 1000 * statistics.median(times)
    finally:
        torch.set_num_threads(threads)
    return found


def _pack(context: Context, report: dict[str, Any], done: Done) -> None:
    student, info = done["student"], done.info
    entry = next(e for e in student.summary["members"] if e["name"] == student.summary["shipped"])
    folder = members_folder(context.folder, "student") / entry["fingerprint"]
    manifest = read_manifest(folder)
    assert manifest is not None
    tokenizer = done["data"].folder / "tokenizer.json"
    forms = done["export"] if "export" in done else None
    network = load_network(manifest.config, info, folder)
    info = shipped_info(network, info)
    save_package(
        context.folder / MODEL,
        network,
        manifest.config["model"],
        info,
        model_card(report, info, redacted(context.config.model_dump(mode="json"))),
        tokenizer if tokenizer.exists() else None,
        lineage={**done.lineage(), "member": entry["fingerprint"]},
        calibration=forms.summary["calibration"] if forms else None,
        forms=forms.folder if forms else None,
    )


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, partial)
    partial.replace(target)


class Report(Stage):
    name = "report"

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, done)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, done)

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        return intact(plan, context)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return str(summary["verdict"]["text"])


STAGE = Report()
