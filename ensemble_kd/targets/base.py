"""What a label is, and what a model predicts of it: the questions that each kind of target answers.

A kind of target is one class in a file of this package, entered in `TARGETS` under the name that
`data.target` uses. Other rooms ask it rather than asking which kind it is. This room imports no torch; what a
kind needs of torch is registered in `objectives.targets`.

N rows, C outputs of a model. An instance knows what the data stage measured of the labels
(`DataInfo.target`); what depends on the settings alone is asked of the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FAR_FROM_EQUAL = 3.0
"""Test rows of the most frequent class by those of the rarest, from which on means over classes are shown."""


@dataclass(frozen=True)
class Column:
    """A metric in the tables."""

    key: str
    title: str
    digits: int | None = 4
    """Digits behind the point; None for as many as make four figures."""
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
    """How outputs are judged against labels."""

    headline: str
    """The metric that students are compared by: more is better, 1 is perfect."""
    noun: str
    """What a point of it, a hundredth, is a point of."""
    columns: tuple[Column, ...]
    """Columns of the tables; the headline comes first."""
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


class Target:
    """One kind of target: its class answers by the settings, an instance by what the data stage found."""

    name: ClassVar[str]
    """Its name in `data.target`."""
    classified: ClassVar[bool]
    """Whether a label is one of several classes, of which a model gives a distribution: there are class names
    and weights of classes, softmax, temperatures, calibration and likelihoods, pseudo-labels, specialists."""
    several: ClassVar[bool] = False
    """Whether the label may be several columns."""
    early_stopping_by: ClassVar[str]
    """What `epochs: auto` stops by, where nothing else is said."""
    objective: ClassVar[str]
    """The usual soft loss."""
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings by block that differ from those of classes where they are not set."""

    # ------------------------------------------------------------------------------ what settings decide

    @classmethod
    def mean(cls, configured: str) -> str:
        """How the members' outputs are averaged, given `student.mean`."""
        raise NotImplementedError

    @classmethod
    def read(cls, column: pa.Array) -> pa.Array:
        """A label column as the source has it, in one of few types. Raises ColumnError for other types."""
        raise NotImplementedError

    @classmethod
    def missing(cls, rows: int, columns: int = 1) -> np.ndarray:
        """Prepared labels of rows that have none: what `labelled` tells from others."""
        raise NotImplementedError

    @classmethod
    def strata(cls, labels: np.ndarray) -> np.ndarray:
        """(N,) int64 groups that splits keep their shares of; -1 for rows without a label."""
        raise NotImplementedError

    @classmethod
    def describe(cls, known: np.ndarray, columns: Sequence[str]) -> dict[str, Any] | None:
        """What `DataInfo.target` keeps of train's labels, those of rows without one left out."""
        raise NotImplementedError

    @classmethod
    def of(cls, described: dict[str, Any] | None) -> Target:
        """The instance for what `describe` returned."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------- what data decides

    def outputs(self, classes: Sequence[str]) -> int:
        """Outputs of a model."""
        raise NotImplementedError

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a row's label: () for one number, (K,) for several."""
        return ()

    @property
    def unit(self) -> float | Sequence[float] | None:
        """What losses divide outputs and labels by, one number or one a column; None for nothing."""
        return None

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) losses of each row in float, in the unit that `validation` tells of: paired statistics of a
        search go by them."""
        raise NotImplementedError

    def output_names(self, classes: Sequence[str]) -> list[str]:
        """What each output stands for."""
        return list(classes)

    def summary(self, classes: Sequence[str]) -> str:
        """What is predicted, in a few words: `10 classes`."""
        raise NotImplementedError

    noun: ClassVar[str]
    """What a model's outputs are called in messages."""
    shipped: ClassVar[tuple[str, ...]]
    """Metrics told of exported forms, the headline first."""
    units: ClassVar[str]
    """What the report says of the units of its figures."""

    @property
    def measures(self) -> Measures:
        """Test metrics, and each row's score for paired statistics."""
        raise NotImplementedError

    def validation(
        self, outputs: np.ndarray, labels: np.ndarray, loss: Callable[[], float]
    ) -> dict[str, float]:
        """`validation_loss` first, then what else is told of each epoch.

        `loss` computes the mean hard loss in torch.
        """
        raise NotImplementedError

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        """(N, C) outputs as users see them: probabilities, or values in the label's own units."""
        raise NotImplementedError

    def table(
        self, answers: np.ndarray, bad: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> dict[str, pa.Array]:
        """Columns that `predict` writes of (N, C) answers; null where (N,) `bad`."""
        raise NotImplementedError

    def row_format(self, classes: Sequence[str], threshold: float | None) -> tuple[str, str]:
        """What `serve` sends of a row, as JSON without the closing brace: a %-format of `row_values`, and
        that of a bad row."""
        raise NotImplementedError

    def row_values(
        self, answers: np.ndarray, classes: Sequence[str], threshold: float | None
    ) -> list[tuple[Any, ...]]:
        """What goes into `row_format`, for each row of (N, C) answers."""
        raise NotImplementedError

    def row_schema(self, threshold: float | None) -> dict[str, Any]:
        """The JSON schema of the fields of such a row."""
        raise NotImplementedError

    def difference(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """Largest difference between two models' outputs, in the unit of `export.tolerance`."""
        raise NotImplementedError

    def agreement(self, outputs: np.ndarray, expected: np.ndarray) -> float:
        """How far two models answer alike, 1 for the same answers."""
        raise NotImplementedError

    def points_lost(self, outputs: np.ndarray, expected: np.ndarray, labels: np.ndarray | None) -> float:
        """Points of the headline metric below those of `expected`; without labels, of agreement with it."""
        if labels is None:
            return 100 * (1 - self.agreement(outputs, expected))
        before, after = (float(self.measures.scores(x, labels).mean()) for x in (expected, outputs))
        return 100 * (before - after)

    def quality(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """What is told of an exported form: metrics `shipped` of its outputs."""
        found = self.measures.metrics(self.measures.prepare(outputs), labels)
        return {name: found[name] for name in self.shipped}


TARGETS: dict[str, type[Target]] = {}
"""Kinds of target by name."""

Kind = TypeVar("Kind", bound=type[Target])


def register(name: str) -> Callable[[Kind], Kind]:
    """Enter a kind of target under `name`."""

    def enter(kind: Kind) -> Kind:
        assert TARGETS.get(name, kind) is kind, f"two targets are called {name!r}"
        kind.name = name
        TARGETS[name] = kind
        return kind

    return enter


def target_of(described: Mapping[str, Any] | None) -> Target:
    """The target of prepared data, from `DataInfo.target` or a report's `target`: None for classes.

    A description names its `kind`; one without is of values.
    """
    kind = "class" if described is None else str(described.get("kind", "value"))
    return TARGETS[kind].of(None if described is None else dict(described))


def target_in(described: Mapping[str, Any]) -> Target:
    """The target of a `DataInfo.to_dict()`, or of a report."""
    return target_of(described.get("target"))


def labelled(labels: Any) -> Any:
    """(N,) bool: which rows have a label, of classes (-1: none) or of values (N,) or (N, K) (NaN: none).

    numpy or torch.
    """
    if "float" not in str(labels.dtype):
        return labels >= 0
    known = labels == labels
    return known if labels.ndim == 1 else known.all(-1)


def preference(entry: Mapping[str, Any]) -> tuple[float, float]:
    """What the best of several members has the least of: accuracy where there are classes, then loss."""
    return -entry.get("validation_accuracy", 0.0), entry["validation_loss"]


def columns_of(report: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a report's tables; `class_ratio`: test rows of its largest class by its smallest's."""
    columns = target_in(report).measures.columns
    if (report.get("class_ratio") or 1.0) >= FAR_FROM_EQUAL:
        return columns
    return tuple(column for column in columns if not column.imbalanced)
