"""Values, one of each label column: outputs are (N, K) in the labels' own units.

Labels are (N,) float32 where there is one column, (N, K) where there are several. Each column is standardised
by its own mean and deviation over train, and counts alike in losses and in the headline metric. There is no
calibration: a value says nothing of how sure it is, and its squared error has no temperature to fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_kd.targets.base import Column, Measures, Target, labelled, register
from ensemble_kd.targets.metrics import regression_metrics

if TYPE_CHECKING:
    import pyarrow as pa

AVERAGED = ("r2", "mse", "mae", "pearson", "spearman")
"""Metrics of each column that several columns have the mean of."""
FIGURES = (Column("r2", "R²", 2, 100), Column("mse", "MSE", None), Column("mae", "MAE", None))
CORRELATIONS = (Column("pearson", "Pearson"), Column("spearman", "Spearman"))


def _as_matrix(labels: np.ndarray) -> np.ndarray:
    """(N,) or (N, K) labels -> (N, K)."""
    return labels[:, None] if labels.ndim == 1 else labels


def _variance(labels: np.ndarray) -> float:
    """Variance of (N,) test labels; 1 where they are all alike: R^2 is not defined then, and differences are
    of the MSE."""
    return float(labels.var()) or 1.0


def _explained(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) 1 - (y - v)^2 / var(y), a row's part of R^2; mean over columns."""
    truth = _as_matrix(labels).astype(np.float64)
    parts = [
        1 - (truth[:, k] - outputs[:, k].astype(np.float64)) ** 2 / _variance(truth[:, k])
        for k in range(truth.shape[1])
    ]
    return parts[0] if len(parts) == 1 else np.mean(parts, axis=0)


@register("value")
@dataclass(frozen=True)
class Values(Target):
    """Numbers, of the label's column or columns."""

    means: tuple[float, ...]
    """Means of train's labels, by column."""
    stds: tuple[float, ...]
    """Population deviations of train's labels, by column."""
    names: tuple[str, ...] = ()
    """Names of the columns; empty where there is one."""

    classified = False
    several = True
    early_stopping_by = "loss"
    objective = "mse"
    noun = "values"
    shipped = ("r2", "mse", "pearson")
    units = (
        "R² is the share of the test labels' variance explained; MSE and MAE in the label's units (of "
        "several columns in deviations of the test labels, and the mean over columns)"
    )
    defaults = {
        "student": {"objective": "mse"},
        "sweep": {"metric": "validation_loss", "space": {"alpha": "uniform(0.1, 1)"}},
    }

    @classmethod
    def mean(cls, configured: str) -> str:
        return "value"

    @classmethod
    def read(cls, column: pa.Array) -> pa.Array:
        from ensemble_kd.targets.columns import value_column

        return value_column(column)

    @classmethod
    def missing(cls, rows: int, columns: int = 1) -> np.ndarray:
        return np.full(rows if columns == 1 else (rows, columns), np.float32(np.nan))

    @classmethod
    def strata(cls, labels: np.ndarray) -> np.ndarray:
        """All rows with a label are one group."""
        return np.where(labelled(labels), 0, -1)

    @classmethod
    def describe(cls, known: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
        """`mean` and `std` (population), as lists beside the columns' `names` where there are several."""
        moments = [
            (float(c.mean(dtype=np.float64)), float(c.std(dtype=np.float64))) for c in _as_matrix(known).T
        ]
        if known.ndim == 1:
            return {"mean": moments[0][0], "std": moments[0][1]}
        return {"mean": [m for m, _ in moments], "std": [s for _, s in moments], "names": list(columns)}

    @classmethod
    def of(cls, described: dict[str, Any] | None) -> Values:
        assert described is not None, "values have a mean and a deviation"
        mean, std = described["mean"], described["std"]
        if not isinstance(mean, list | tuple):
            return cls((mean,), (std,))
        return cls(tuple(mean), tuple(std), tuple(described.get("names", ())))

    def outputs(self, classes: Sequence[str]) -> int:
        return len(self.means)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (len(self.means),) if len(self.means) > 1 else ()

    @property
    def unit(self) -> float | tuple[float, ...]:
        return self.stds if len(self.stds) > 1 else self.stds[0]

    @property
    def fields(self) -> list[str]:
        """What answers are called: `value`, or `value_NAME` for each column."""
        return [f"value_{name}" for name in self.names] if len(self.means) > 1 else ["value"]

    @property
    def moments(self) -> str:
        """Mean and deviation of the train labels, as a clause."""
        pairs = zip(self.means, self.stds, strict=True)
        told = [f"mean {mean:.4g} and standard deviation {std:.4g}" for mean, std in pairs]
        if len(told) == 1:
            return f"those of train have {told[0]}"
        named = [f"`{name}` {one}" for name, one in zip(self.names, told, strict=True)]
        return f"in train they have, by column: {'; '.join(named)}"

    def output_names(self, classes: Sequence[str]) -> list[str]:
        return self.fields

    def summary(self, classes: Sequence[str]) -> str:
        return f"{len(self.means)} values" if len(self.means) > 1 else "values"

    @property
    def measures(self) -> Measures:
        """Of several columns each metric is the mean over columns, MSE and MAE in the deviations of the test
        labels, so that no column counts more for its unit: then MSE = 1 - R^2.

        The verdict is on R^2 = 1 - MSE / var(y), not on Pearson's r: it is a mean over rows, so paired
        intervals need no bootstrap, a wrong scale or offset counts as the error that it is, and the share of
        its gap that a student recovers is exactly the share of the gap in MSE.
        """
        return Measures(
            headline="r2",
            noun="variance explained",
            columns=FIGURES + CORRELATIONS,
            prepare=lambda outputs: outputs,
            metrics=self._metrics,
            scores=_explained,
            counts=False,
        )

    def _metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        truth = _as_matrix(labels)
        each = [regression_metrics(outputs[:, k], truth[:, k]) for k in range(truth.shape[1])]
        if len(each) == 1:
            return each[0]
        scales = [_variance(column.astype(np.float64)) for column in truth.T]
        unitless = [
            {**one, "mse": one["mse"] / scale, "mae": one["mae"] / scale**0.5}
            for one, scale in zip(each, scales, strict=True)
        ]
        together = {key: float(np.mean([one[key] for one in unitless])) for key in AVERAGED}
        columns = [{"name": name, **one} for name, one in zip(self.names, each, strict=True)]
        return {**together, "count": len(labels), "per_column": columns}

    def validation(
        self, outputs: np.ndarray, labels: np.ndarray, loss: Callable[[], float]
    ) -> dict[str, float]:
        """The loss is the mean over columns of MSE / variance of the train labels, as the training loss is,
        so that the labels' units do not show; in float64, whatever torch computes with."""
        truth = _as_matrix(labels)
        each = [regression_metrics(outputs[:, k], truth[:, k]) for k in range(truth.shape[1])]
        losses = [one["mse"] / std**2 for one, std in zip(each, self.stds, strict=True)]
        together = losses[0], each[0]["pearson"]
        if len(each) > 1:
            together = float(np.mean(losses)), float(np.mean([one["pearson"] for one in each]))
        return {"validation_loss": together[0], "validation_pearson": together[1]}

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Mean over columns of ((v - y) / std)^2, std of the train labels."""
        error = (outputs - _as_matrix(labels)) / np.asarray(self.stds, outputs.dtype)
        squared: np.ndarray = (error**2).mean(1)
        return squared

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def table(
        self, answers: np.ndarray, bad: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> dict[str, pa.Array]:
        import pyarrow as pa

        return {name: pa.array(answers[:, k], mask=bad) for k, name in enumerate(self.fields)}

    def row_format(self, classes: Sequence[str], threshold: float | None) -> tuple[str, str]:
        keys = [json.dumps(name).replace("%", "%%") for name in self.fields]
        # Numbers of nine digits are float32 to the bit.
        good, bad = (",".join(f"{key}:{value}" for key in keys) for value in ("%.9g", "null"))
        return "{" + good, "{" + bad.replace("%%", "%")

    def row_values(
        self, answers: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in answers.tolist()]

    def row_schema(self, threshold: float | None) -> dict[str, Any]:
        shown = {"type": ["number", "null"], "description": "in the labels' units"}
        return {name: dict(shown) for name in self.fields}

    def difference(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """In deviations of the train labels."""
        return float((np.abs(outputs - expected) / np.asarray(self.stds)).max())

    def agreement(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """1 - mean over rows and columns of ((v - v') / std)^2: the R^2 of one model by the other."""
        return 1 - float((((outputs - expected) / np.asarray(self.stds)) ** 2).mean())
