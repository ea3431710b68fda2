"""One class out of several: labels are class numbers, outputs logits (N, C)."""

from __future__ import annotations

import json
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
    noun = "logits"
    shipped = ("accuracy", "nll", "ece")
    units = "NLL in nats; Brier summed over classes, ECE over 15 bins"

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

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """-log p of the label."""
        found: np.ndarray = -log_softmax(outputs)[np.arange(len(labels)), labels]
        return found

    def table(
        self, answers: np.ndarray, bad: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> dict[str, pa.Array]:
        import pyarrow as pa
        import pyarrow.compute as pc

        best = answers.argmax(axis=1) if len(answers) else np.empty(0, np.int64)
        top = answers[np.arange(len(answers)), best]
        names = pa.array([classes[i] for i in best], pa.string())
        columns = {
            "label": pa.array(best.astype(np.int64), mask=bad),
            "label_name": pc.if_else(pa.array(bad), pa.scalar(None, pa.string()), names),
            "probability": pa.array(top, mask=bad),
            "probabilities": pa.array(
                [None if wrong else p.tolist() for wrong, p in zip(bad, answers, strict=True)],
                pa.list_(pa.float64()),
            ),
        }
        if threshold is not None:
            columns["answered"] = pa.array(top >= threshold, mask=bad)
        return columns

    def row_format(self, classes: Sequence[str], threshold: float | None) -> tuple[str, str]:
        # Numbers of nine digits are float32 to the bit; one format string a row is several times faster than
        # json.dumps of its numbers.
        numbers = ",".join(["%.9g"] * len(classes))
        answered, unanswered = ("", "") if threshold is None else (',"answered":%s', ',"answered":null')
        return (
            f'{{"label":%d,"label_name":%s,"probability":%.9g,"probabilities":[{numbers}]{answered}',
            f'{{"label":null,"label_name":null,"probability":null,"probabilities":null{unanswered}',
        )

    def row_values(
        self, answers: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> list[tuple[Any, ...]]:
        best = np.nan_to_num(answers).argmax(axis=1)
        top = answers[np.arange(len(best)), best]
        names = [json.dumps(name) for name in classes]
        rows = []
        for label, highest, row in zip(best.tolist(), top.tolist(), answers.tolist(), strict=True):
            sure = () if threshold is None else ("true" if highest >= threshold else "false",)
            rows.append((label, names[label], highest, *row, *sure))
        return rows

    def row_schema(self, threshold: float | None) -> dict[str, Any]:
        properties: dict[str, Any] = {
            "label": {"type": ["integer", "null"], "description": "number of the class"},
            "label_name": {"type": ["string", "null"]},
            "probability": {"type": ["number", "null"], "description": "of the label"},
            "probabilities": {
                "type": ["array", "null"],
                "items": {"type": "number"},
                "description": "of all classes, in the order of /metadata's class_names",
            },
        }
        if threshold is not None:
            text = "whether the probability reaches the model's threshold"
            properties["answered"] = {"type": ["boolean", "null"], "description": text}
        return properties

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
