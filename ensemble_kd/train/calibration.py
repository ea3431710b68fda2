"""After training: one temperature for the logits, and from which confidence on to answer. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble_kd.targets.metrics import expected_calibration_error, log_softmax

RANGE = (0.05, 20.0)
"""Temperatures that are looked at."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the likelihood loss of (N, C) `logits` / T (arXiv 1706.04599).

    The loss is convex in 1 / T, so that there is one minimum. No answer changes by it.
    """
    from scipy.optimize import minimize_scalar

    def nll(inverse: float) -> float:
        return float(-log_softmax(logits * inverse)[np.arange(len(labels)), labels].mean())

    low, high = RANGE
    found = minimize_scalar(nll, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


def threshold_for(log_probs: np.ndarray, labels: np.ndarray, precision: float) -> dict[str, Any]:
    """The lowest confidence from which on at least `precision` of the answers are right, on these rows.

    `threshold` and `coverage`, the share of rows that are answered; both None where no confidence is enough.
    """
    confidence = np.exp(log_probs.max(axis=1))
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(log_probs.argmax(axis=1)[order] == labels[order])
    answered = np.arange(1, len(order) + 1)
    last = np.append(confidence[order][1:] < confidence[order][:-1], True)  # rows of one confidence together
    good = np.flatnonzero((right / answered >= precision) & last)
    if not len(good):
        return {"precision": precision, "threshold": None, "coverage": None}
    rows = int(good[-1]) + 1
    return {
        "precision": precision,
        "threshold": float(confidence[order][rows - 1]),
        "coverage": rows / len(order),
    }


def calibrate(
    logits: np.ndarray, labels: np.ndarray, temperature: bool, precision: float | None
) -> dict[str, Any]:
    """What a model folder keeps: `temperature` (1 where none is asked for), and of `threshold_for`."""
    found: dict[str, Any] = {"temperature": fit_temperature(logits, labels) if temperature else 1.0}
    if precision is not None:
        found |= threshold_for(log_softmax(logits / found["temperature"]), labels, precision)
    return found


def before_and_after(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, Any]:
    """Negative log-likelihood and calibration error, before and after division by the temperature."""
    found: dict[str, Any] = {}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        found[name] = nll_and_ece(log_softmax(logits / divisor), labels)
    return found


def nll_and_ece(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Negative log-likelihood and expected calibration error of (N, C) log-probabilities."""
    return {
        "nll": float(-log_probs[np.arange(len(labels)), labels].mean()),
        "ece": expected_calibration_error(log_probs, labels),
    }
