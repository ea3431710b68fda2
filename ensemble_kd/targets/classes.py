"""One class out of several: labels are class numbers, outputs logits (N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_kd.targets.base import Column, Measures, Target, register
from ensemble_kd.targets.metrics import class_means, classification_metrics, log_softmax

if TYPE_CHECKING:
    import pyarrow as pa

UNLABELLED = -1
"""The class of a row without a label."""


def _right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = outputs.argmax(axis=1) == labels
    return right


MEASURES = Measures(
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


@register("class")
class Classes(Target):
    """One class of those that occur among the labels, or of those that are listed."""

    classified = True
    early_stopping_by = "calibrated_loss"
    objective = "kl"

    @classmethod
    def mean(cls, configured: str) -> str:
        return configured

    @classmethod
    def read(cls, column: pa.Array) -> pa.Array:
        from ensemble_kd.targets.columns import class_column

        return class_column(column)

    @classmethod
    def missing(cls, rows: int, columns: int = 1) -> np.ndarray:
        return np.full(rows, UNLABELLED)

    @classmethod
    def strata(cls, labels: np.ndarray) -> np.ndarray:
        return labels

    @classmethod
    def describe(cls, known: np.ndarray, columns: Sequence[str]) -> None:
        return None

    @classmethod
    def of(cls, described: dict[str, Any] | None) -> Classes:
        return cls()

    def outputs(self, classes: Sequence[str]) -> int:
        return len(classes)

    def summary(self, classes: Sequence[str]) -> str:
        return f"{len(classes)} classes"

    @property
    def measures(self) -> Measures:
        return MEASURES

    def validation(
        self, outputs: np.ndarray, labels: np.ndarray, loss: Callable[[], float]
    ) -> dict[str, float]:
        answers = outputs.argmax(1)
        means = class_means(answers, labels, outputs.shape[1])
        return {
            "validation_loss": loss(),
            "validation_accuracy": float((answers == labels).astype(np.float32).mean()),
            **{f"validation_{name}": value for name, value in means.items()},
        }

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        return softmax(outputs)

    def difference(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        return float(np.abs(outputs - expected).max())

    def agreement(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """Share of rows with the same class."""
        return float((outputs.argmax(1) == expected.argmax(1)).mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) float32 rows that sum to 1."""
    with np.errstate(invalid="ignore"):  # of logits that are infinite: NaN, which the caller looks for
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return found
