"""Is there anything to give? The ensemble against the student on hard labels, before the soft targets.

These students are the baselines of the student stage, which finds them finished. Where the ensemble is not
better by more than noise on validation rows, likely causes are looked for in the numbers and told.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Manifest, read_manifest
from ensemble_kd.config import Config, num_teachers
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.records import DataInfo, load_labels, read_shard, shard_paths
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import NoGapError, TrainingError
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages import student_tasks
from ensemble_kd.stages.base import Done, Stage, Work
from ensemble_kd.stages.calibrated import calibrates, calibration_of
from ensemble_kd.stages.chain import CHAINED
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.corpora import corpora
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import (
    kept_weights,
    members_folder,
    teacher_validation_logits,
    train_and_follow,
    trained,
)
from ensemble_kd.stages.phases import phase_tasks
from ensemble_kd.stages.stacking import stacks_of
from ensemble_kd.stages.start import Sources, basis_of
from ensemble_kd.stages.training_data import GB, arrays_and_loader
from ensemble_kd.stages.vectors import make_vectors
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import Measures
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.causes import (
    Cause,
    Trained,
    confidence,
    few_labels,
    label_noise,
    same_kind,
    undertrained,
)
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict
from ensemble_kd.train.statistics import Interval, paired_interval, shown
from ensemble_kd.train.task import MemberTask, finished

SOFT = ("temperature", "alpha", "objective", "terms", "online", "targets", "pseudo", "refit", *CHAINED)
"""Fields of the student that one on hard labels does not read."""
ROWS, MEMBERS = 1000, 3
"""Training rows and teachers that are asked for causes, at most."""


def seeds_of(config: Config) -> int:
    """Students trained here: where a sweep may choose other settings for the student, one is enough."""
    return 1 if config.sweep is not None else config.student.seeds


def hard_students(
    context: Context, data: Path, info: dict[str, Any], teachers: Manifest, weights: list[float] | None
) -> list[MemberTask]:
    """Train the baselines on hard labels, and the phases that they share; returns them, finished.

    Raises TrainingError where a loss was not finite.
    """
    config = context.config
    student, counts = config.student, info["counts"]
    basis = basis_of(config, context.folder, data, teachers)
    seeds = range(seeds_of(config))
    # They read no soft targets, so the store that is not there yet has no part in them.
    sources = Sources(data.name, "", counts, basis, weights)
    hard = [student_tasks.task(config, "hard", seed, sources) for seed in seeds]
    phases = [
        task
        for seed in seeds
        for task, phase in zip(phase_tasks(config, sources, seed), student.phases, strict=True)
        if phase.shared
    ]
    make_vectors(basis.vectors, context.folder, data, context.console)
    # What the student stage holds in memory beside the rows counts here too: the same students stream.
    layout = layout_of(config, info, num_teachers(config)).logits_alone
    copies = 1 if config.specialists is None else 2
    room = config.compute.memory_budget - copies * layout.bytes_per_row * counts["transfer"] / GB
    for wanted in filter(None, (phases, hard)):
        stacks = stacks_of(wanted, config, info)
        arrays, load, _ = arrays_and_loader(
            data,
            info,
            room,
            run=context.folder,
            corpora=lambda: corpora(config, context.folder, data) if phases else {},
        )
        replicas = student.replicas_per_member
        good = train_and_follow(
            context, "student", wanted, load, arrays, replicas, shown="gap", stacks=stacks
        )
        if lost := [task.name for task in wanted if task not in good]:
            raise TrainingError(
                f"gap: {', '.join(lost)}: the loss became NaN or infinite; lower "
                "student.training.learning_rate or set student.training.gradient_clip"
            )
    return hard


def run(context: Context, plan: StagePlan, done: Done) -> Manifest:
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    data, info, teachers = done["data"].folder, done.info, done["teachers"]
    names = [entry["name"] for entry in teachers.summary["members"]]
    labels, rows = validation_labels(data, info)
    logits = validation_logits(context.folder, teachers.folder, teachers.manifest)
    if logits is None or not len(labels) or not info["counts"]["labelled"]:
        what = "validation rows" if logits is not None else "outputs of the teachers on validation rows"
        what = what if info["counts"]["labelled"] else "labels of training rows"
        text = f"whether the ensemble knows more than the student was not measured: there are no {what}"
        found: dict[str, Any] = {"outcome": "not measured", "finding": text, "text": text, "causes": []}
    else:
        weights = kept_weights(context.config.student.weights, names)
        members = logits[rows]  # (N, M, C)
        own = calibration_of(context.config, context.folder, data, teachers.manifest)
        mean = mean_logits(torch.from_numpy(members), 1.0, context.config.mean, weights, own)
        ensemble = mean.numpy()
        hard = hard_students(context, data, info, teachers.manifest, weights)
        folder = members_folder(context.folder, "student")
        students = [load_logits(task.folder(folder), "validation").numpy()[rows] for task in hard]
        found = compare(ensemble, students, labels, target_in(info).measures)
        if found["outcome"] != "helped":
            causes = likely_causes(context, done, hard[0], members, ensemble, labels, calibration=own)
            found["causes"] = [cause.to_dict() for cause in causes]
            found["text"] += f". {told(found['causes'])}"
            found["warnings"] = [f"gap: {found['text']}"]
            context.console.warning(found["warnings"][0])
        if context.config.sweep is not None:
            found["settings"] = "the student block as it stands; the sweep may choose another"
    summary = {**found, "seconds": time.perf_counter() - began}
    return plan.finish([], summary)


def require(summary: dict[str, Any]) -> None:
    """Raises NoGapError where the ensemble is not shown to be better."""
    if summary["outcome"] != "helped":
        raise NoGapError(f"--require-gap: stopped before the soft targets: {summary['text']}")


def validation_labels(data: Path, info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) of the validation rows that have one, and which rows these are, (R,) bool."""
    if not info["counts"]["validation"]:
        return np.empty(0, np.int64), np.empty(0, bool)
    labels = load_labels(data, "validation")
    rows = labelled(labels)
    return labels[rows], rows


def validation_logits(run: Path, folder: Path, teachers: Manifest) -> np.ndarray | None:
    """(R, M, C) of the teachers on the validation rows; None where they are not known."""
    found = []
    for entry in teachers.summary["members"]:
        logits = teacher_validation_logits(run, folder, entry)
        if logits is None:
            return None
        found.append(logits)
    return np.stack(found, 1) if found else None


def compare(
    ensemble: np.ndarray, students: list[np.ndarray], labels: np.ndarray, measures: Measures
) -> dict[str, Any]:
    """Ensemble (N, C) less students on hard labels, each (N, C): score of each side, interval, outcome.

    Over rows, the students' mean on each: this ensemble is one, and two or three students say little of how
    much they vary.
    """
    right = measures.scores(ensemble, labels)
    theirs = [measures.scores(logits, labels) for logits in students]
    seeds = "one seed" if len(theirs) == 1 else f"{len(theirs)} seeds"
    over = paired_interval(right, np.mean(theirs, axis=0), counts=measures.counts)
    difference = replace(over, over=f"{seeds}, {len(labels):,} validation rows")
    return {
        "outcome": difference.outcome,
        "finding": (finding := gap_text(difference, measures.noun)),
        "text": finding,
        "ensemble": float(right.mean()),
        "hard": [float(scores.mean()) for scores in theirs],
        "difference": asdict(difference),
        "causes": [],
    }


def gap_text(difference: Interval, noun: str) -> str:
    told, points = shown(difference), f"{abs(difference.points):.2f} points"
    student = f"than the student on hard labels {told}"
    if difference.outcome == "helped":
        return f"the ensemble has {points} more {noun} {student}"
    if difference.outcome == "hurt":
        return f"there is nothing to give: the ensemble has {points} less {noun} {student}"
    change = f"{points} {'more' if difference.points >= 0 else 'less'} {noun}"
    return f"the ensemble is not shown to know more: {change} {student}"


def told(causes: list[dict[str, str]]) -> str:
    """The causes in one paragraph, each with what to change."""
    if not causes:
        return (
            "No cause shows in the numbers: the student may be large enough to learn the same by itself; a "
            "smaller student, or rows without labels, would leave more to give"
        )
    word = "Likely cause" if len(causes) == 1 else "Likely causes"
    return f"{word}: " + "; ".join(f"{cause['found']} ({cause['remedy']})" for cause in causes)


def likely_causes(
    context: Context,
    done: Done,
    hard: MemberTask,
    members: np.ndarray,
    ensemble: np.ndarray,
    labels: np.ndarray,
    *,
    calibration: list[float] | None = None,
) -> list[Cause]:
    """What the numbers say; `members` (N, M, C) and `ensemble` (N, C) on validation rows.

    `calibration`: each member's temperature, None for 1.
    """
    teachers, of_classes = done["teachers"].manifest, target_in(done.info).classified
    manifest = finished(hard, members_folder(context.folder, "student"))
    assert manifest is not None, "it has just been trained"
    networks = []
    if teachers.summary["source"] != "predictions":
        networks = [finished_at(Path(folder)) for _, folder in trained(context.folder, teachers)]
    own = context.config.teachers.source == "train"
    student = as_trained(manifest)
    answers = [members[:, m].argmax(1) for m in range(members.shape[1])]
    found = [undertrained([as_trained(network) for network in networks], student) if own else None]
    found.append(
        same_kind([as_trained(n) for n in networks], student, answers, labels if of_classes else None)
    )
    if of_classes:
        found.append(confidence(ensemble, labels, calibrates(context.config)))
        if own:
            seen, theirs = training_answers(context, done)
            accuracy = float(np.mean([(logits.argmax(1) == seen).mean() for logits in theirs]))
            asked = torch.from_numpy(np.stack(theirs, 1))  # (N, few, C)
            few = None if calibration is None else calibration[: len(theirs)]
            mean = mean_logits(asked, 1.0, context.config.mean, calibration=few)
            others = float(np.mean([(a == labels).mean() for a in answers]))
            found.append(few_labels(accuracy, others, done.info["counts"]["labelled"]))
            found.append(label_noise(mean.numpy(), seen))
    return [cause for cause in found if cause is not None]


def finished_at(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None, "the teachers stage has just looked after its members"
    return manifest


def as_trained(manifest: Manifest) -> Trained:
    settings, summary = manifest.config, manifest.summary
    rows = round(settings["examples_per_epoch"] * settings["rows"]["fraction"])
    steps = max(1, rows // settings["training"]["batch_size"])
    return Trained(
        summary["history"],
        steps * summary["epochs"],
        summary["parameters"],
        settings["model"],
        bool(settings.get("initial")),
    )


def training_answers(context: Context, done: Done) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels of some labelled training rows (N,), and what some teachers answer to them, each (N, C)."""
    info = DataInfo.from_dict(done.info)
    inputs, labels, missing = [], [], ROWS
    for path in shard_paths(done["data"].folder, "transfer"):
        shard = read_shard(path, info)
        rows = np.flatnonzero(labelled(shard.labels))[:missing]
        inputs.append(shard.inputs[rows])
        labels.append(shard.labels[rows])
        missing -= len(rows)
        if missing <= 0:
            break
    seen, device = as_tensor(np.concatenate(inputs)), torch.device("cpu")
    found = []
    for settings, folder in trained(context.folder, done["teachers"].manifest)[:MEMBERS]:
        network = load_network(settings, done.info, Path(folder))
        found.append(predict(network, seen, device).numpy())
    return np.concatenate(labels), found


class Gap(Stage):
    name = "gap"
    serves = "student"  # whoever wants the soft targets alone need not train a student for them

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        data = done["data"].fingerprint
        settings = dict(student_stage.plan(config, run, data, "").config)
        for name in SOFT:
            settings.pop(name, None)
        settings["phases"] = [
            phase.model_dump(mode="json") for phase in config.student.phases if phase.shared
        ]
        settings |= {"seeds": seeds_of(config), "mean": config.mean}
        settings |= {"calibrate": True} if calibrates(config) else {}
        return StagePlan.of(run, "gap", settings, {"data": data, "teachers": done["teachers"].fingerprint})

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, done)

    def work(self, config: Config, done: Done) -> Work | None:
        student = config.student
        if not done.info["counts"]["labelled"]:
            return None
        return Work(seeds_of(config), done.info["counts"]["transfer"], student.training.num_epochs)

    def demand(self, summary: dict[str, Any]) -> None:
        require(summary)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return str(summary["finding"])


STAGE = Gap()
