"""How a report judges outputs, of classifiers and of regressors, behind one record of functions. numpy only.

N examples, C classes; outputs are logits (N, C), or values (N, 1) in the label's own units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_kd.train.metrics import classification_metrics, log_softmax, regression_metrics

FAR_FROM_EQUAL = 3.0
"""Test rows of the most frequent class by those of the rarest, from which on means over classes are shown."""


@dataclass(frozen=True)
class Column:
    """A metric in the tables."""

    key: str
    title: str
    digits: int | None = 4
    """Shown behind the point; None for as many as make four figures."""
    scale: int = 1
    """100: a share, shown in percent."""
    imbalanced: bool = False
    """Shown only where the classes' test rows are far from equally many."""

    def places(self, value: float | None) -> int:
        """Digits behind the point for values of this size."""
        if self.digits is not None:
            return self.digits
        return max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0


@dataclass(frozen=True)
class Measures:
    """What is measured of one kind of target."""

    headline: str
    """The metric that students are compared by: more is better, 1 is perfect."""
    noun: str
    """What a point of it, a hundredth, is a point of."""
    columns: tuple[Column, ...]
    """Of the tables; the headline comes first."""
    prepare: Callable[[np.ndarray], np.ndarray]
    """A network's outputs as the ensemble's are: of classes log-probabilities."""
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, Any]]
    """(prepared outputs, labels) -> test metrics."""
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(outputs, labels) -> (N,) what each row adds: their mean is the headline metric."""
    counts: bool
    """Whether scores are 0 or 1, so that intervals allow for the steps of a count."""

    @property
    def summarised(self) -> tuple[str, ...]:
        return tuple(column.key for column in self.columns)


def _right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = outputs.argmax(axis=1) == labels
    return right


def _explained(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - (y - v)^2 / var(y): a row's part of R^2."""
    truth = labels.astype(np.float64)
    explained: np.ndarray = 1 - (truth - outputs[:, 0].astype(np.float64)) ** 2 / _variance(truth)
    return explained


def _variance(labels: np.ndarray) -> float:
    """Of test labels that are all alike 1: R^2 is not defined then, and differences are of the MSE."""
    return float(labels.var()) or 1.0


CLASSES = Measures(
    headline="accuracy",
    noun="accuracy",
    columns=(
        Column("accuracy", "accuracy", 2, 100),
        Column("errors", "errors", 0),
        Column("nll", "NLL"),
        Column("brier", "Brier"),
        Column("ece", "ECE"),
        Column("balanced_accuracy", "balanced", 2, 100, imbalanced=True),
        Column("macro_f1", "macro-F1", 2, 100, imbalanced=True),
    ),
    prepare=log_softmax,
    metrics=classification_metrics,
    scores=_right,
    counts=True,
)

# The verdict is on R^2 = 1 - MSE / var(y), not on Pearson's r: it is a mean over rows, so paired intervals
# need no bootstrap, a wrong scale or offset counts as the error that it is, and the share of its gap that a
# student recovers is exactly the share of the gap in MSE.
VALUES = Measures(
    headline="r2",
    noun="variance explained",
    columns=(
        Column("r2", "R²", 2, 100),
        Column("mse", "MSE", None),
        Column("mae", "MAE", None),
        Column("pearson", "Pearson"),
        Column("spearman", "Spearman"),
    ),
    prepare=lambda outputs: outputs,
    metrics=lambda outputs, labels: regression_metrics(outputs[:, 0], labels),
    scores=_explained,
    counts=False,
)


def measures_of(target: Any) -> Measures:
    """`target` is that of a DataInfo, or of a report: None for classes."""
    return CLASSES if target is None else VALUES


def columns_of(report: dict[str, Any]) -> tuple[Column, ...]:
    """The columns of a report's tables; `class_ratio`: test rows of its largest class by its smallest's."""
    columns = measures_of(report.get("target")).columns
    if (report.get("class_ratio") or 1.0) >= FAR_FROM_EQUAL:
        return columns
    return tuple(column for column in columns if not column.imbalanced)
