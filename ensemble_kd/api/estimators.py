"""scikit-learn estimators as teachers: what they are asked about, and in which order they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ensemble_kd.api.orders import Task, assumed_order, check_said, own_order
from ensemble_kd.api.problems import InputValueError
from ensemble_kd.api.tables import Rows
from ensemble_kd.data.preprocess import no_column

Ask = Callable[[Rows, slice], Any]


def is_estimator(teacher: Any) -> bool:
    """Whether it has scikit-learn's interface, be it of scikit-learn or of another library."""
    return (
        not isinstance(teacher, type)
        and hasattr(teacher, "fit")
        and any(hasattr(teacher, name) for name in ("predict_proba", "decision_function", "predict"))
    )


def as_estimator(
    teacher: Any, where: str, task: Task, said: list[int] | None
) -> tuple[Ask, list[int] | None]:
    """What to ask, and the data's class of each output; None in the data's order.

    `said`: the order that the user says its classes stand in. Raises ValueError for one that is not fitted,
    that says classes only, whose classes are not the data's, or stand in another order than the user says.
    """
    _check_fitted(teacher, where)
    rows_of = _seen(teacher, where, task)
    if not task.classes:
        if hasattr(teacher, "classes_"):
            raise InputValueError(f"{where}: a classifier, and the labels are values; give a regressor")
        return lambda rows, part: teacher.predict(rows_of(rows, part)), None
    if not hasattr(teacher, "predict_proba") and not hasattr(teacher, "decision_function"):
        what = "has predict alone, whose labels do not say how sure it is"
        fix = "a regressor, and the labels are classes" if not hasattr(teacher, "classes_") else what
        raise InputValueError(
            f"{where}: {fix}; give a classifier with predict_proba, for example CalibratedClassifierCV of it"
        )
    order = None
    if said is not None:
        if hasattr(teacher, "classes_"):
            check_said(said, teacher.classes_, where, task)
    elif hasattr(teacher, "classes_"):
        order = own_order(teacher.classes_, where, task)
    else:
        assumed_order(where, task)
    if hasattr(teacher, "predict_proba"):
        return lambda rows, part: _one(teacher.predict_proba(rows_of(rows, part)), where), order
    return lambda rows, part: _margins(teacher.decision_function(rows_of(rows, part))), order


def _check_fitted(teacher: Any, where: str) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(teacher)
    except NotFittedError:
        raise InputValueError(f"{where}: not fitted; call fit on its own training rows first") from None
    except (TypeError, AttributeError):  # of another library: it says so itself when it is asked
        return


def _one(answer: Any, where: str) -> Any:
    if isinstance(answer, list):
        raise InputValueError(f"{where}: predicts several outputs; give an estimator of one")
    return answer


def _margins(found: Any) -> np.ndarray:
    """Margins (N,) of two classes as logits (N, 2)."""
    margins = np.asarray(found, np.float32)
    return np.stack([np.zeros_like(margins), margins], 1) if margins.ndim == 1 else margins


def _seen(teacher: Any, where: str, task: Task) -> Ask:
    """The rows as the estimator was fitted: columns by name, or a matrix (B, F), or texts."""
    from ensemble_kd.api.model import Model

    names = getattr(teacher, "feature_names_in_", None)
    count = getattr(teacher, "n_features_in_", None)

    def of_rows(rows: Rows, part: slice) -> Any:
        if isinstance(teacher, Model):
            return rows.table.slice(part.start, part.stop - part.start)
        if names is not None:
            wanted = [str(name) for name in names]
            missing = [name for name in wanted if name not in rows.table.column_names]
            if missing:
                raise InputValueError(
                    f"{where}: {no_column(missing[0], 'the data', rows.table.column_names)}; give the "
                    "columns that it was fitted on, or its predictions"
                )
            return rows.columns(wanted).iloc[part]
        if rows.inputs is not None:
            X = rows.inputs[part]
            flat = isinstance(X, np.ndarray) and X.ndim > 2 and count == X[0].size
            return X.reshape(len(X), -1) if flat else X
        return _of_columns(rows, part, count)

    def _of_columns(rows: Rows, part: slice, count: int | None) -> Any:
        table = rows.table.slice(part.start, part.stop - part.start).select(task.inputs)
        if task.kind == "text":
            texts = [column.to_pylist() for column in table.columns]
            return texts[0] if len(texts) == 1 else [" ".join(pair) for pair in zip(*texts, strict=True)]
        if count is not None and count != len(task.inputs) and rows.frame is not None:
            others = rows.frame.drop(columns=task.labels, errors="ignore")
            if others.shape[1] == count:  # fitted on the whole frame as an array
                return others.iloc[part].to_numpy()
        columns = [np.stack(c.to_pylist()) if _lists(c) else c.to_numpy() for c in table.columns]
        return np.column_stack(columns)

    return of_rows


def _lists(column: Any) -> bool:
    return "list" in str(column.type)
