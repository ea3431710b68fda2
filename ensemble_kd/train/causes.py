"""Why an ensemble has nothing to give: likely causes found from numbers, and what to change. numpy only.

M members, N rows, C classes. A cause is told only where its number says so; none of them is proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ensemble_kd.targets.metrics import expected_calibration_error, log_softmax

FALLING = 0.1
"""Share of the loss by which its last quarter lies below the quarter before, where training was too short."""
FEWER_STEPS = 0.5
"""Share of the student's optimiser steps."""
TUNED = 500
"""Optimiser steps that `epochs: auto` gives a network that starts from trained weights, at the least."""
ALIKE = 0.5
"""Disagreement of two members as a share of their mean error: 2 where they err independently, and rarely."""
SIZE = 1.1
"""Times the student's parameters up to which a teacher is no larger."""
OFF = 0.05
"""Difference of mean confidence and accuracy, and calibration error."""
LEARNED, UNLEARNED = 0.99, 0.1
"""Train accuracy of members that know their rows by heart, and what validation accuracy then lacks."""
SURE, WRONG = 0.9, 0.02
"""Confidence of another class than the label, and the share of train rows of which that is noise."""
FEWEST = 50
"""Rows that it takes to speak of shares."""


@dataclass(frozen=True)
class Cause:
    """One likely reason why the ensemble knows no more than the student."""

    name: str
    """undertrained, same_kind, confidence, few_labels, label_noise."""
    found: str
    """What the numbers say."""
    remedy: str
    """What to change."""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """One trained network, as far as causes ask."""

    history: list[dict[str, float]]
    steps: int
    """Optimiser steps that it took."""
    parameters: int
    model: dict[str, Any]
    starts_trained: bool
    """Whether it started from trained weights."""


def undertrained(teachers: Sequence[Trained], student: Trained) -> Cause | None:
    """Teachers whose validation loss was still falling at the end, or that took far too few steps.

    Too few: against the student's; from trained weights, which need fewer, against `TUNED`.
    """
    if not teachers:
        return None
    remedy = (
        "train the teachers longer: teachers.training.epochs=auto, or a higher teachers.training.min_steps "
        "(or epochs); with --budget, give more time"
    )
    falls = [fall for teacher in teachers if (fall := still_falling(teacher.history)) is not None]
    if falls and float(np.median(falls)) > FALLING:
        found = (
            f"the teachers are undertrained: their validation loss was still falling at the end, by "
            f"{100 * float(np.median(falls)):.0f}% over the last quarter of the epochs"
        )
        return Cause("undertrained", found, remedy)
    steps = float(np.median([teacher.steps for teacher in teachers]))
    fresh = not any(teacher.starts_trained for teacher in teachers)
    enough = student.steps if fresh else TUNED
    if 0 < steps < FEWER_STEPS * enough:
        than = f"the student {enough:,}" if fresh else f"`auto` gives at least {enough:,}"
        found = f"the teachers are undertrained: they took {steps:,.0f} optimiser steps, {than}"
        return Cause("undertrained", found, remedy)
    return None


def still_falling(history: Sequence[dict[str, float]]) -> float | None:
    """By which share the validation loss of the last quarter of the epochs lies below the quarter before.

    The calibrated loss where there is one: confidence that grows hides what is still learned. None for fewer
    than four epochs, or without validation rows.
    """
    key = "calibrated_loss" if history and "calibrated_loss" in history[-1] else "validation_loss"
    losses = [entry[key] for entry in history if key in entry]
    part = len(losses) // 4
    if part < 1:
        return None
    before, last = float(np.mean(losses[-2 * part : -part])), float(np.mean(losses[-part:]))
    return (before - last) / before if before > 0 else 0.0


def same_kind(
    teachers: Sequence[Trained], student: Trained, answers: Sequence[np.ndarray], labels: np.ndarray | None
) -> Cause | None:
    """Teachers of the student's own model or no larger, or that make the same mistakes.

    `answers` are each member's (N,), `labels` (N,); None where these are values.
    """
    remedy = (
        "take teachers of another kind: larger networks, a pretrained encoder, or different ones beside each "
        "other (teachers.model, teachers.overrides)"
    )
    agreement, alike = None, False
    if labels is not None and len(answers) > 1:
        differ = float(np.mean([(a != b).mean() for a, b in combinations(answers, 2)]))
        wrong = float(np.mean([(a != labels).mean() for a in answers]))
        agreement, alike = 1 - differ, differ < ALIKE * wrong
    told = "" if agreement is None else f", and agree with each other on {100 * agreement:.0f}% of the rows"
    if teachers and all(teacher.model == student.model for teacher in teachers):
        found = f"the teachers are the student's own network, with {student.parameters:,} parameters{told}"
        return Cause("same_kind", found, remedy)
    largest = max((teacher.parameters for teacher in teachers), default=None)
    if largest is not None and largest <= SIZE * student.parameters:
        found = (
            f"the teachers are no larger than the student ({largest:,} parameters, the student "
            f"{student.parameters:,}){told}"
        )
        return Cause("same_kind", found, remedy)
    if alike:
        assert agreement is not None
        found = f"the teachers make the same mistakes: they agree on {100 * agreement:.0f}% of the rows"
        return Cause("same_kind", found, remedy)
    return None


def confidence(ensemble: np.ndarray, labels: np.ndarray, calibrated: bool = False) -> Cause | None:
    """An ensemble that is surer, or less sure, than it is right; (N, C) log-probabilities against (N,).

    `calibrated`: each member has a temperature of its own already.
    """
    if len(labels) < FEWEST:
        return None
    log_probs = log_softmax(ensemble)
    sure = float(np.exp(log_probs.max(1)).mean())
    right = float((log_probs.argmax(1) == labels).mean())
    error = expected_calibration_error(log_probs, labels)
    if abs(sure - right) <= OFF or error <= OFF:
        return None
    word, remedy = "overconfident", "soften them: a higher student.temperature"
    if sure < right:
        word, remedy = "underconfident", "sharpen them: a student.temperature below 1"
    found = (
        f"the ensemble is {word}: mean confidence {100 * sure:.1f}%, right on {100 * right:.1f}% (ECE "
        f"{error:.3f})"
    )
    return Cause("confidence", found, remedy if calibrated else f"{remedy}; or set teachers.calibrate=true")


def few_labels(train: float, validation: float, labels: int) -> Cause | None:
    """Members that know their labelled rows by heart and others far less; accuracies, and how many rows."""
    if train < LEARNED or train - validation < UNLEARNED:
        return None
    found = (
        f"too few labels: the teachers are right on {100 * train:.1f}% of their training rows and on "
        f"{100 * validation:.1f}% of the validation rows, with {labels:,} labelled rows"
    )
    remedy = (
        "label more rows, start the teachers from a pretrained model, or regularise them (dropout, augment)"
    )
    return Cause("few_labels", found, remedy)


def label_noise(ensemble: np.ndarray, labels: np.ndarray) -> Cause | None:
    """Many training rows on which the (N, C) ensemble is sure of another class than the label (N,)."""
    if len(labels) < FEWEST:
        return None
    log_probs = log_softmax(ensemble)
    sure = np.exp(log_probs.max(1)) >= SURE
    wrong = sure & (log_probs.argmax(1) != labels)
    share = float(wrong.mean())
    if share <= WRONG:
        return None
    found = (
        f"labels look wrong: on {100 * share:.1f}% of {len(labels):,} training rows the ensemble is at least "
        f"{100 * SURE:.0f}% sure of another class"
    )
    return Cause(
        "label_noise", found, "look at the labels of such rows, or set teachers.training.label_smoothing"
    )
