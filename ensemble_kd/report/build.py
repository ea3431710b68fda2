"""From every system's outputs on the test rows to one JSON-able report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ensemble_kd.report.chain import CHAIN_ROLES, chain_text, first_of
from ensemble_kd.report.constant import constant_answer
from ensemble_kd.report.likelihood import in_nats, likelihood_difference, likelihood_text
from ensemble_kd.report.pieces import plain
from ensemble_kd.report.specialists import specialists_section
from ensemble_kd.report.sweep import sweep_section
from ensemble_kd.report.teachers_calibration import calibration_section
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import Measures
from ensemble_kd.targets.metrics import confusion_matrix
from ensemble_kd.train.causes import FALLING, still_falling
from ensemble_kd.train.statistics import (
    Interval,
    combined_interval,
    gap_error,
    gap_reason,
    gap_recovered,
    mean_and_error,
    paired_interval,
)
from ensemble_kd.train.verdict import Gap, verdict

ROLES = {
    "teacher": "Teachers",
    "generalist_specialists": "One teacher + specialists",
    "ensemble": "Ensemble",
    "ensemble_specialists": "Ensemble + specialists",
    "hard": "Student, hard labels",
    "plain": "Student, hard labels, no augmentation",
    "pseudo": "Student, hard pseudo-labels",
    "from_ensemble": "Student, from the ensemble alone",
    "from_specialists": "Student, from ensemble + specialists",
    **CHAIN_ROLES,
    "distilled": "Student, distilled",
    "together": "Ensemble of what learned together",
    "refit": "Student, distilled, with the validation rows",
}
"""Every role a system can have, in the order of the tables, and how it is called there."""


@dataclass
class System:
    """One trained model and its outputs on the N test rows."""

    name: str
    role: str
    """One of `ROLES`."""
    seed: int | None
    logits: np.ndarray  # (N, C) float32; values (N, 1)
    parameters: int | None = None
    bytes: int | None = None
    """Size of its weights on disk."""
    latency: dict[str, float] | None = None
    """Milliseconds of one forward pass: `batch_1`, `batch_32`."""
    validation_nll: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """Per epoch: epoch, train_loss, validation_loss, validation_accuracy, seconds, learning_rate."""
    calibration: float = 1.0
    """Temperature that suits its validation rows; for comparing probabilities alone."""


@dataclass
class Specialised:
    """What the report is told of clusters and specialists."""

    systems: list[System]
    """`generalist_specialists` and `ensemble_specialists`; their logits are log q."""
    generalist: str
    """The teacher in `generalist_specialists`."""
    clusters: list[dict[str, Any]]
    """`classes`, `confusion_captured`, `weight` in the ensemble's combination, conditional accuracies."""
    without: list[int]
    """Classes that no specialist knows."""
    text: str
    """What was decided on validation rows."""
    targets: str
    """What the shipped student learned from."""
    matrix: np.ndarray | None = None  # (C, C)
    """Covariance or confusion that the clusters come from; None where it was not kept."""


@dataclass
class ReportInputs:
    """All that a report is made of."""

    name: str
    created: float
    """Seconds since 1970."""
    info: dict[str, Any]
    """`DataInfo.to_dict()`."""
    labels: np.ndarray  # (N,)
    teachers: list[System]
    ensemble_log_probs: np.ndarray | None  # (N, C); values (N, 1)
    students: list[System]
    shipped: str
    """Name of the student in the model folder."""
    temperature: float
    alpha: float
    objective: str
    mean: str
    pseudo: float = 0.0
    reads_teachers: bool = True
    """Whether the student learned from the teachers, and not from networks beside it alone."""
    temperatures: list[float] | None = None
    """Of the teachers' own, by which their logits were divided for the ensemble; None where they were not."""
    choose: dict[str, Any] | None = None
    """What was chosen on validation rows (`report.choose`)."""
    plain_ensemble: np.ndarray | None = None  # (N, C)
    """Log-probabilities of the mean of logits as they are, where temperatures were fitted."""
    settings: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    """Members that were left out of the ensemble, with the reason."""
    reference: list[dict[str, Any]] = field(default_factory=list)
    """Rows to print beside ours: {"name": str, "values": {column: number or text}}."""
    specialised: Specialised | None = None
    sweep: dict[str, Any] | None = None
    """Summary of the search for the student's settings: its trials with their histories, and the winner."""
    ships: dict[str, Any] | None = None
    """Summary of the export: `systems`, `forms`, `calibration`, `calibrated`."""
    gap: dict[str, Any] | None = None
    """Summary of the stage `gap`: ensemble against hard labels on validation rows, and likely causes."""

    @property
    def measures(self) -> Measures:
        return target_in(self.info).measures


def build_report(inputs: ReportInputs) -> dict[str, Any]:
    """The report as plain JSON values; numbers that are not finite become None."""
    measures = inputs.measures
    systems = [_measure(system, inputs) for system in inputs.teachers]
    special = {s.role: s for s in inputs.specialised.systems} if inputs.specialised else {}
    if "generalist_specialists" in special:
        systems.append(_measure(special["generalist_specialists"], inputs))
    if inputs.ensemble_log_probs is not None:
        systems.append(_ensemble(inputs))
    if "ensemble_specialists" in special:
        systems.append(_measure(special["ensemble_specialists"], inputs))
    order = list(ROLES)
    students = sorted(inputs.students, key=lambda s: (order.index(s.role), s.seed or 0))
    systems += [_measure(system, inputs) for system in students]

    difference, pseudo = (_difference(inputs, "distilled", other) for other in ("hard", "pseudo"))
    gap = _gap(inputs, systems)
    if difference is None:
        judged = {
            "outcome": "not measured",
            "text": "Whether distillation helped was not measured: there is no student on hard labels.",
        }
    else:
        text = verdict(difference, _for_verdict(inputs, gap), pseudo, measures.noun)
        judged = {"outcome": difference.outcome, "text": text}
    likelihood = likelihood_difference(inputs)
    if likelihood is not None and likelihood.outcome != judged["outcome"]:  # else it says the same again
        judged["text"] += likelihood_text(likelihood)
    first = first_of([student.role for student in inputs.students])
    added = _difference(inputs, "distilled", first) if first is not None else None
    if added is not None:
        judged["text"] += chain_text(added, measures.noun)
    plain_gap = None
    if any(student.role == "plain" for student in inputs.students):
        plain_gap = _gap(inputs, systems, "plain")
        if plain_gap["value"] is not None:
            judged["text"] += (
                f" Against the student that sees hard labels and no augmentation it recovered "
                f"{100 * plain_gap['value']:.0f}%."
            )
    constant = _constant(inputs)
    if constant is not None:
        judged["text"] = f"{constant['text']} {judged['text']}"
    report = {
        "name": inputs.name,
        "created": inputs.created,
        "counts": {**inputs.info.get("counts", {}), "test": len(inputs.labels)},
        "kind": inputs.info.get("kind"),
        "class_names": list(inputs.info["class_names"]),
        "verdict": judged,
        "difference": asdict(difference) if difference else None,
        "likelihood": in_nats(likelihood) if likelihood else None,
        "difference_to_pseudo_labels": asdict(pseudo) if pseudo else None,
        "difference_by_chain": asdict(added) if added else None,
        "gap_recovered": gap,
        "gap_recovered_from_unaugmented": plain_gap,
        "gap_check": inputs.gap,
        "summary": _summary(systems, measures.summarised),
        "systems": systems,
        "shipped": inputs.shipped,
        "confused": _confused(inputs),
        "specialists": specialists_section(inputs),
        "calibration": calibration_section(inputs),
        "choose": inputs.choose,
        "sweep": sweep_section(inputs.sweep) if inputs.sweep else None,
        "ships": plain(inputs.ships) if inputs.ships else None,
        "temperature": inputs.temperature,
        "alpha": inputs.alpha,
        "pseudo": inputs.pseudo,
        "objective": inputs.objective,
        "mean": inputs.mean,
        "reference": inputs.reference,
        "excluded": list(inputs.excluded),
        "settings": inputs.settings,
        "lineage": inputs.lineage,
    }
    if target := inputs.info.get("target"):
        report["target"] = target
    else:
        seen = np.bincount(inputs.labels)
        report["class_ratio"] = float(seen.max() / seen[seen > 0].min())
    if constant is not None:
        report["constant"] = constant
    return plain(report)


def shipped_system(inputs: ReportInputs) -> System | None:
    return next((s for s in inputs.students if s.name == inputs.shipped), None)


def _constant(inputs: ReportInputs) -> dict[str, Any] | None:
    system = shipped_system(inputs)
    return None if system is None else constant_answer(system.logits, inputs.labels, inputs.info)


def _measure(system: System, inputs: ReportInputs) -> dict[str, Any]:
    metrics = inputs.measures.metrics(inputs.measures.prepare(system.logits), inputs.labels)
    latency = system.latency or {}
    return {
        "name": system.name,
        "role": system.role,
        "seed": system.seed,
        **metrics,
        "parameters": system.parameters,
        "bytes": system.bytes,
        "latency_ms_batch_1": latency.get("batch_1"),
        "latency_ms_batch_32": latency.get("batch_32"),
        "validation_nll": system.validation_nll,
    }


def _ensemble(inputs: ReportInputs) -> dict[str, Any]:
    """The mean of the teachers: parameters, bytes and latency are sums (members run one after another)."""
    assert inputs.ensemble_log_probs is not None

    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    latencies = [teacher.latency or {} for teacher in inputs.teachers]
    return {
        "name": "ensemble",
        "role": "ensemble",
        "seed": None,
        **inputs.measures.metrics(inputs.ensemble_log_probs, inputs.labels),
        "parameters": total([t.parameters for t in inputs.teachers]),
        "bytes": total([t.bytes for t in inputs.teachers]),
        "latency_ms_batch_1": total([latency.get("batch_1") for latency in latencies]),
        "latency_ms_batch_32": total([latency.get("batch_32") for latency in latencies]),
        "validation_nll": None,
    }


def _summary(systems: list[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Per role: n and, of every metric, mean and standard error over members or seeds."""
    summary: dict[str, Any] = {}
    for role in ROLES:
        rows = [system for system in systems if system["role"] == role]
        if rows:
            summary[role] = {"n": len(rows)}
            for key in metrics:
                mean, error = mean_and_error([row[key] for row in rows])
                summary[role][key] = {"mean": mean, "standard_error": error}
    return summary


def _by_seed(inputs: ReportInputs, role: str) -> dict[int | None, np.ndarray]:
    """(N,) scores per seed of the students of a role: of classes, correctness."""
    scores = inputs.measures.scores
    return {s.seed: scores(s.logits, inputs.labels) for s in inputs.students if s.role == role}


def _difference(inputs: ReportInputs, role: str, other: str) -> Interval | None:
    ours, theirs = _by_seed(inputs, role), _by_seed(inputs, other)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    counts = inputs.measures.counts
    return combined_interval([ours[s] for s in seeds], [theirs[s] for s in seeds], counts=counts)


def _gap(inputs: ReportInputs, systems: list[dict[str, Any]], baseline: str = "hard") -> dict[str, Any]:
    """`value` is the ratio of the means over paired seeds, `per_seed` the ratio of each."""
    distilled, hard = (
        {seed: float(correct.mean()) for seed, correct in _by_seed(inputs, role).items()}
        for role in ("distilled", baseline)
    )
    headline = inputs.measures.headline
    ensemble = next((s[headline] for s in systems if s["role"] == "ensemble"), None)
    seeds = [seed for seed in distilled if seed in hard]
    ours, theirs = [distilled[s] for s in seeds], [hard[s] for s in seeds]
    reason = gap_reason(float(np.mean(theirs)) if seeds else None, ensemble)
    advantage = None
    if inputs.ensemble_log_probs is not None and seeds:
        right = inputs.measures.scores(inputs.ensemble_log_probs, inputs.labels)
        students = _by_seed(inputs, baseline)
        counts = inputs.measures.counts
        # Over rows: the ensemble is one, and a few students say little of how much they vary.
        advantage = paired_interval(right, np.mean([students[s] for s in seeds], axis=0), counts=counts)
    if reason or ensemble is None or advantage is None:
        return {
            "value": None,
            "per_seed": [],
            "standard_error": None,
            "reason": reason,
            "within_noise": None,
            "advantage": asdict(advantage) if advantage else None,
        }
    return {
        "value": gap_recovered(float(np.mean(ours)), float(np.mean(theirs)), ensemble),
        "per_seed": [gap_recovered(d, h, ensemble) for d, h in zip(ours, theirs, strict=True)],
        "standard_error": gap_error(ours, theirs, ensemble),
        "reason": None,
        # Whether the gap itself, ensemble less baseline, is no more than noise: its share then says little.
        "within_noise": advantage.outcome != "helped",
        "advantage": asdict(advantage),
    }


def _for_verdict(inputs: ReportInputs, gap: dict[str, Any]) -> Gap:
    """What the verdict is explained by."""
    falls = [still_falling(s.history) for s in inputs.students if s.role == "distilled"]
    known = [fall for fall in falls if fall is not None]
    falling = float(np.median(known)) if known and float(np.median(known)) > FALLING else None
    causes = [cause["found"] for cause in (inputs.gap or {}).get("causes", [])]
    advantage = Interval(**gap["advantage"]) if gap["advantage"] else None
    chosen = inputs.choose is not None or inputs.sweep is not None
    softened = target_in(inputs.info).classified
    return Gap(
        gap["value"],
        gap["reason"],
        advantage,
        causes,
        chosen=chosen,
        softened=softened,
        falling=falling,
        read=inputs.reads_teachers,
    )


def _confused(inputs: ReportInputs, most: int = 15) -> list[dict[str, Any]]:
    """The shipped student's most frequent mistakes: true class, predicted class, how often."""
    system = shipped_system(inputs)
    if system is None or not target_in(inputs.info).classified:
        return []
    names = inputs.info["class_names"]
    matrix = confusion_matrix(system.logits.argmax(axis=1), inputs.labels, len(names))
    seen = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    cells = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, matrix.shape), strict=True)]
    return [
        {"true": names[i], "predicted": names[j], "count": int(matrix[i, j]), "of": int(seen[i])}
        for i, j in cells
        if matrix[i, j]
    ]
