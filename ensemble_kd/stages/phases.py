"""The tasks of a student's phases, each starting from the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ensemble_kd.config import Config
from ensemble_kd.config.growth import NOISE
from ensemble_kd.models.transplant import resolve
from ensemble_kd.stages.members import STREAM_OF_STUDENTS
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.stages.teachers_beside import online_of
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.task import MemberTask

PHASE = "phase"
"""Role of a task that others start from."""


def phase_tasks(config: Config, sources: Sources, seed: int) -> list[MemberTask]:
    """The phases of one seed, each starting from the one before."""
    found: list[MemberTask] = []
    for number, phase in enumerate(config.student.phases):
        own = basis = sources.basis
        if phase.model is not None:
            settings, _ = resolve(phase.model, path=f"student.phases.{number}.model")
            own = replace(basis, model=settings)
        initial = _after(found[-1], own.model) if found else basis.initial
        found.append(_phase(config, number, replace(sources, basis=own), initial, seed))
    return found


def start_of(config: Config, basis: Basis, phases: list[MemberTask], baseline: bool) -> dict[str, Any] | None:
    """What the last phase starts from; a baseline goes through shared phases alone."""
    taken = phases
    if baseline:
        taken = [task for task, phase in zip(phases, config.student.phases, strict=True) if phase.shared]
    return _after(taken[-1], basis.model) if taken else basis.initial


def _after(task: MemberTask, model: dict[str, Any]) -> dict[str, Any]:
    """What a network of these settings starts from: the task's, or that grown to its size."""
    place: dict[str, Any] = {"stage": "student", "member": task.fingerprint}
    return place if task.model == model else {**place, "noise": NOISE}


def _phase(
    config: Config, number: int, sources: Sources, initial: dict[str, Any] | None, seed: int
) -> MemberTask:
    """The task of the phase of that number; `sources` have the basis of its own model."""
    phase, basis, weights = config.student.phases[number], sources.basis, sources.weights
    path = f"student.phases.{number}"
    soft = phase.objective is not None and phase.alpha > 0
    beside = bool(phase.terms) or (soft and (phase.corpus is not None or phase.online.logits))
    terms = phase.terms if phase.corpus is None else []
    computed = soft and phase.corpus is not None  # a corpus has no stored logits
    online = online_of(phase.online, basis, weights, path, terms, averaged=computed) if beside else None
    if online is not None and computed:
        online["logits"] = True
    reads = soft and not (online is not None and online["logits"])
    states = online is not None and bool(online.get("stored"))
    inputs = {"data": sources.data, **({"soft_targets": sources.store} if reads or states else {})}
    corpus = None
    if phase.corpus is not None:
        corpus = {"fingerprint": basis.corpora[phase.name]}
        inputs["corpus"] = basis.corpora[phase.name]
    rows: dict[str, Any] = {"labelled": False, "bootstrap": False, "fraction": 1.0}
    if corpus is None:
        labelled = phase.alpha < 1 and not soft and not phase.terms
        rows |= {"labelled": labelled, "fraction": config.student.fraction}
        if config.student.without_classes:
            rows["without"] = config.student.without_classes
    return MemberTask(
        name=f"{phase.name}-seed-{seed}",
        role=PHASE,
        seed=mix(config.seed, STREAM_OF_STUDENTS, seed),  # the student's own: same start, same rows
        model=basis.model,
        training=phase.training.model_dump(mode="json"),
        inputs=inputs,
        rows=rows,
        examples_per_epoch=0 if corpus else sources.counts["transfer"],
        views=1,
        alpha=phase.alpha,
        objective=phase.objective_fields if soft else None,
        temperature=phase.temperature,
        mean=(config if phase.task == "classify" else config.student).mean if soft else "arithmetic",
        weights=weights if reads else None,
        calibration=basis.calibration if reads else None,
        initial=initial,
        terms=phase.terms,
        online=online,
        phase=phase.name,
        corpus=corpus,
        mask_probability=phase.mask_probability if phase.task == "mlm" else None,
    )
