"""Which of several settings, from their students' answers on validation rows? numpy and scipy only.

Accuracy is what counts, and on few rows it tells little; likelihood tells more, and is not what counts. So
accuracy speaks as far as it can be heard, likelihood decides among what it leaves, and the simple default
stands unless something is better by more than a standard error (the rule of Breiman et al. 1984), or by more
where many are tried: the best of ten that are alike is one and a half of them better than the first.

N rows, C classes, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.calibration import fit_temperature

By = Literal["default", "accuracy", "likelihood", "loss"]


@dataclass(frozen=True)
class Scores:
    """What each row adds for one candidate, mean over seeds: more is better."""

    right: np.ndarray | None  # (N,); None of values
    likelihood: np.ndarray  # (N,) log-probability of the label, or less the squared error
    seeds: int = 1

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None else float(self.right.mean())

    @property
    def loss(self) -> float:
        return -float(self.likelihood.mean())


@dataclass(frozen=True)
class Decision:
    """The candidate that was chosen, and the reason."""

    chosen: int
    by: By
    close: list[int]
    """Candidates whose accuracy is not told apart from the best one's."""


def scores_of_classes(
    logits: Sequence[np.ndarray], labels: np.ndarray, by_row: np.ndarray | None = None
) -> Scores:
    """Of S students, (N, C) each; every one at the temperature that suits it on these rows, so that what
    differs in sharpness alone does not differ in likelihood. `by_row` (N,) says what each row counts, on
    average 1."""
    rows, right, likelihood = np.arange(len(labels)), [], []
    for one in logits:
        right.append(one.argmax(1) == labels)
        likelihood.append(log_softmax(one / fit_temperature(one, labels))[rows, labels])
    counts = np.ones(len(labels)) if by_row is None else by_row
    return Scores(counts * np.mean(right, axis=0), counts * np.mean(likelihood, axis=0), len(logits))


def scores_of_values(errors: Sequence[np.ndarray]) -> Scores:
    """Of S students, (N,) each: less the squared error of each row."""
    return Scores(None, np.mean(errors, axis=0), len(errors))


def gain(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean of a - b over rows, and its standard error."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(difference) < 2:
        return float(difference.mean()), math.inf
    return float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))


def decide(candidates: Sequence[Scores], default: int = 0) -> Decision:
    """1. What is worse than the most accurate candidate by more than `bar` standard errors of their
    difference, over the same rows and beyond the step of a count, is out. 2. Of the others the default
    stands, unless the likeliest is better than it by as many; where the default is out, the likeliest is it.
    """
    most = bar(len(candidates))
    close = list(range(len(candidates)))
    if candidates[default].right is not None:
        best = max(close, key=lambda i: (candidates[i].accuracy, -candidates[i].loss))
        close = [i for i in close if not _told_apart(candidates[best], candidates[i], most)]
    likeliest = min(close, key=lambda i: candidates[i].loss)
    if default not in close:
        return Decision(likeliest, "accuracy", close)
    more, error = gain(candidates[likeliest].likelihood, candidates[default].likelihood)
    if more > most * error:
        by: By = "likelihood" if candidates[default].right is not None else "loss"
        return Decision(likeliest, by, close)
    return Decision(default, "default", close)


def bar(candidates: int) -> float:
    """Standard errors that a lead has to exceed: 1 of two candidates; of more, what their best exceeds by
    chance as rarely as one does 1 (Bonferroni)."""
    return float(-ndtri(ndtr(-1.0) / max(1, candidates - 1)))


def _told_apart(better: Scores, worse: Scores, most: float) -> bool:
    assert better.right is not None and worse.right is not None
    lead, error = gain(better.right, worse.right)
    return lead - 1 / (len(better.right) * better.seeds) > most * error


def compared(chosen: Scores, other: Scores) -> dict[str, Any]:
    """The chosen one against another on the same rows: accuracy and likelihood gained, with their errors."""
    found: dict[str, Any] = {}
    if chosen.right is not None and other.right is not None:
        found["accuracy_gain"], found["accuracy_gain_error"] = gain(chosen.right, other.right)
    found["likelihood_gain"], found["likelihood_gain_error"] = gain(chosen.likelihood, other.likelihood)
    return found
