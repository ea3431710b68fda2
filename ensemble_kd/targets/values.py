"""Values, one of each label column: outputs are (N, K) in the labels' own units.

Labels are (N,) float32 where there is one column, (N, K) where there are several. Each column is standardised
by its own mean and deviation over train, and counts alike in losses and in the headline metric. There is no
calibration: a value says nothing of how sure it is, and its squared error has no temperature to fit.
"""

from __future__ import annotations

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
        """(N,) mean over columns of ((v - y) / std)^2, std of the train labels."""
        error = (outputs - _as_matrix(labels)) / np.asarray(self.stds, outputs.dtype)
        squared: np.ndarray = (error**2).mean(1)
        return squared

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def difference(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """In deviations of the train labels."""
        return float((np.abs(outputs - expected) / np.asarray(self.stds)).max())

    def agreement(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """1 - mean over rows and columns of ((v - v') / std)^2: the R^2 of one model by the other."""
        return 1 - float((((outputs - expected) / np.asarray(self.stds)) ** 2).mean())
