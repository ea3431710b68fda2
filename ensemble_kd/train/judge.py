"""Does a given teacher know the data's classes, and do its outputs stand in their order?

Two kinds of evidence on labelled rows, and no verdict where the rows are too few for one:

moved       right far more often once its classes are permuted: by more than 20 points, and not by chance
guessing    labels are hit as often as by drawing from its own answers at random, a much better teacher would
            hardly come out like this, and its log-probabilities do not follow the labels either

The best permutation is a linear assignment on the confusion matrix. It is found on one half of the rows and
judged on the other, in turn: among many classes, some permutation fits any few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemble_kd.targets.metrics import confusion_matrix, log_softmax

GAIN = 0.2
"""Share of rows that a permutation has to win."""
SURE = 1e-3
"""Probability of such a win where neither order is better."""
LUCK = 0.05
"""Probability below which so many right answers are no guesses."""
FEWEST = 30
"""Rows that it takes to say that a teacher guesses."""
USEFUL = 0.2
"""Share of what is beyond chance that a useful teacher gets right (Cohen's kappa)."""
MOST_SEARCHED = 3000
"""Classes for which the best permutation is searched: its cost grows with their cube."""
FOLLOWS = 3.0
"""Standard errors by which log-probabilities of the true class are raised where a teacher knows something."""

Outcome = Literal["good", "unsure", "guessing", "moved"]


@dataclass(frozen=True)
class Judgement:
    """What N labelled rows say of a teacher."""

    outcome: Outcome
    rows: int
    accuracy: float
    chance: float
    """Accuracy of answers drawn at random from those that it gave."""
    order: tuple[int, ...] = ()
    """Where its classes moved: the data's class of each of its outputs."""
    permuted: float = 0.0
    """Its accuracy in that order."""


def judge(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> Judgement:
    """(N, C) logits against labels (N,), of which those below 0 are left out."""
    from scipy.stats import beta, binom

    logits, labels = logits[labels >= 0], labels[labels >= 0]
    count, classes = len(labels), len(names)
    if not count or classes < 2:
        return Judgement("good", count, 0.0, 0.0)
    answers = logits.argmax(1)
    hits = int((answers == labels).sum())
    shares = [np.bincount(numbers, minlength=classes) / count for numbers in (answers, labels)]
    accuracy, chance = hits / count, float(shares[0] @ shares[1])
    order, permuted = _moved(answers, labels, names)
    if order is not None:
        return Judgement("moved", count, accuracy, chance, order, permuted)
    better = float(binom.sf(hits - 1, count, chance)) < LUCK
    if better or np.count_nonzero(shares[1]) < 2 or _follows(logits, labels) > FOLLOWS:
        return Judgement("good", count, accuracy, chance)
    highest = float(beta.ppf(0.99, hits + 1, count - hits)) if hits < count else 1.0
    sure = count >= FEWEST and highest < chance + USEFUL * (1 - chance)
    return Judgement("guessing" if sure else "unsure", count, accuracy, chance)


def _moved(answers: np.ndarray, labels: np.ndarray, names: list[str]) -> tuple[tuple[int, ...] | None, float]:
    """The order that fits far better than the data's own, and the accuracy with it."""
    found = []
    if len(names) <= MOST_SEARCHED:
        moved = np.empty(len(labels), np.int64)  # the answers, each permuted by what the other half says
        first = np.arange(len(labels)) % 2 == 0
        for here in (first, ~first):
            moved[here] = _assigned(answers[~here], labels[~here], len(names))[answers[here]]
        if _clear(moved, answers, labels):
            found.append(_assigned(answers, labels, len(names)))
    # Orders that occur of themselves need not be searched for, so that fewer rows show them.
    found += [order for order in _usual(names) if _clear(order[answers], answers, labels)]
    if not found:
        return None, 0.0
    right = [float((order[answers] == labels).mean()) for order in found]
    # One of the usual orders, where it fits as well as the searched one but for a few rows.
    chosen = max(range(len(found)), key=lambda i: (round(right[i], 2), i))
    return tuple(int(c) for c in found[chosen]), right[chosen]


def _usual(names: list[str]) -> list[np.ndarray]:
    """Reversed, shifted by one either way, and sorted by name: the data's class of each output."""
    classes = np.arange(len(names))
    by_name = np.array(sorted(range(len(names)), key=lambda i: names[i]))
    by_case = np.array(sorted(range(len(names)), key=lambda i: names[i].casefold()))
    return [by_case, by_name, np.roll(classes, 1), np.roll(classes, -1), classes[::-1]]


def _assigned(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(C,) the data's class of each output, so that most rows are right; unseen ones stay where they can."""
    from scipy.optimize import linear_sum_assignment

    matrix = confusion_matrix(answers, labels, classes).T.astype(np.float64)  # (outputs, classes)
    np.fill_diagonal(matrix, matrix.diagonal() + 0.5 / classes)
    found: np.ndarray = linear_sum_assignment(matrix, maximize=True)[1]
    return found


def _clear(moved: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> bool:
    """Whether `moved` is right far more often than `answers`: an exact McNemar test, and the size of it."""
    from scipy.stats import binom

    won = int(((moved == labels) & (answers != labels)).sum())
    lost = int(((moved != labels) & (answers == labels)).sum())
    large = won - lost > GAIN * len(labels)
    return large and float(binom.sf(won - 1, won + lost, 0.5)) < SURE


def _follows(logits: np.ndarray, labels: np.ndarray) -> float:
    """By how many standard errors the log-probabilities of true classes exceed those of all rows."""
    logs = np.maximum(log_softmax(logits), -20.0)
    raised = (logs - logs.mean(0))[np.arange(len(labels)), labels]
    error = float(raised.std()) / len(raised) ** 0.5
    return float(raised.mean()) / error if error > 1e-9 else 0.0  # the same answer always
