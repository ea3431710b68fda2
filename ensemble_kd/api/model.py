"""`load`: a model folder as a scikit-learn classifier (or regressor)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from ensemble_kd.api.arrays import INPUT, as_array, from_arrays
from ensemble_kd.api.problems import InputValueError, as_value_errors, in_python
from ensemble_kd.api.tables import rows_of
from ensemble_kd.errors import ArtifactError
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.model_folder import EXPORT, model_in

if TYPE_CHECKING:
    from torch import nn

SHOWN = 3
"""Bad rows that a message names."""


class Model(BaseEstimator):
    """A student that answers. `load` makes one; it is fitted already, and `fit` changes nothing."""

    def __init__(self, folder: str | Path = ".", form: str = "auto", trust: Collection[str] = ()) -> None:
        self.folder = folder
        self.form = form
        self.trust = trust

    def _load(self) -> Predictor:
        place = model_in(Path(self.folder).expanduser())
        with as_value_errors():
            try:
                self._predictor = Predictor(place, self.form, trust=tuple(self.trust))
            except ArtifactError as error:
                raise InputValueError([in_python(line) for line in str(error).splitlines()]) from None
        self._place = place
        return self._predictor

    @property
    def predictor(self) -> Predictor:
        """What answers: form, columns, classes, calibration."""
        return getattr(self, "_predictor", None) or self._load()

    @property
    def columns(self) -> list[str]:
        """Columns that a table must have."""
        return self.predictor.columns

    def fit(self, X: Any = None, y: Any = None) -> Model:
        """Nothing: the student is trained. Here for scikit-learn's tools, which ask for it."""
        self._load()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _answers(self, X: Any) -> np.ndarray:
        """(N, C) probabilities, or (N, 1) values. Raises ValueError where a row cannot be answered."""
        with as_value_errors():
            table = self._table(X)
            answers = self.predictor.answer(table)
        bad = [(row, problem) for row, problem in enumerate(answers.problems) if problem is not None]
        if bad:
            shown = "; ".join(f"row {row}: {problem}" for row, problem in bad[:SHOWN])
            raise InputValueError(
                f"X: {len(bad):,} of {table.num_rows:,} rows cannot be answered: {shown}; mend or drop "
                "these rows"
            )
        return answers.probabilities

    def _table(self, X: Any) -> pa.Table:
        info, columns = self.predictor.info, self.columns
        if isinstance(X, dict):
            X = pa.table(X)
        if not (
            isinstance(X, pa.Table) or hasattr(X, "columns") or hasattr(X, "__arrow_c_stream__")
        ) or _series(X):
            X = self._of_array(X, info.kind, columns, list(info.input_shape))
        table = rows_of(X, "X", labelled=False).table
        if missing := [name for name in columns if name not in table.column_names]:
            raise InputValueError(
                f"X: no column {missing[0]!r}; the model was trained on {columns}, this has "
                f"{table.column_names[:10]}"
            )
        return table

    def _of_array(self, X: Any, kind: str, columns: list[str], shape: list[int]) -> pa.Table:
        values = as_array(X, "X")
        if kind == "text":
            texts = values if len(columns) == 1 else values.T
            if values.ndim != len(columns) or (len(columns) == 2 and len(texts) != 2):
                raise InputValueError(
                    f"X: shape {values.shape}; give {len(columns)} text{'s' * (len(columns) > 1)} a row"
                )
            parts = [texts] if len(columns) == 1 else list(texts)
            return pa.table(
                {
                    name: pa.array(part.tolist(), pa.string())
                    for name, part in zip(columns, parts, strict=True)
                }
            )
        if kind == "numeric" or values.ndim == 2:
            wanted = shape[0] if kind == "numeric" else int(np.prod(shape))
            if values.ndim != 2 or values.shape[1] != wanted:
                hint = "; X.reshape(1, -1) if this is one row" if values.ndim == 1 else ""
                raise InputValueError(f"X has shape {values.shape}, expected (N, {wanted}){hint}")
            if len(columns) > 1:
                return pa.table({name: values[:, i] for i, name in enumerate(columns)})
            if kind == "image":
                values = values.reshape(len(values), *shape)
        if kind == "image" and list((*values.shape[1:], 1)[:3]) != shape:
            raise InputValueError(f"X has shape {values.shape}, expected (N, {', '.join(map(str, shape))})")
        table = from_arrays(values, None, "X")[0]
        return table.rename_columns([columns[0] if name == INPUT else name for name in table.column_names])

    def to_torch(self) -> nn.Module:
        """The network, in evaluation mode: raw inputs (numbers (B, F) float32, images (B, H, W, C) uint8,
        tokens (B, L)) to a record with `.logits` (B, C). Calibration is not in it.

        Raises ValueError for an exported form without it.
        """
        from ensemble_kd.models.package import load_package

        self.predictor  # noqa: B018  - finds the folder
        try:
            return load_package(self._place, tuple(self.trust)).network
        except ArtifactError as error:
            raise InputValueError([in_python(line) for line in str(error).splitlines()]) from None

    def to_onnx(self, path: str | Path | None = None, rows: str | Path | None = None) -> Path:
        """Export as ONNX, held against the student; returns the file in the model folder, or its copy `path`.

        rows: a file to hold it against, for a model folder outside its run. Needs the extra `onnx`.
        Raises ValueError where there is nothing to hold it against, ExportError where the two differ.
        """
        import shutil

        from ensemble_kd.export.folder import export_folder

        self.predictor  # noqa: B018  - finds the folder
        with as_value_errors():
            export_folder(self._place, ["onnx"], None if rows is None else str(rows), trust=tuple(self.trust))
        made = self._place / EXPORT / "onnx" / "model.onnx"
        if path is None:
            return made
        return Path(shutil.copyfile(made, path))


class ClassModel(ClassifierMixin, Model):
    """A student that tells classes apart."""

    @property
    def classes_(self) -> np.ndarray:
        """(C,) labels in the order of the probabilities: whole numbers and booleans, others as text."""
        return labels_of(self.predictor.class_names)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, C) calibrated probabilities. X: a table with the input columns, an array, or N texts.

        Raises ValueError with the rows that cannot be answered.
        """
        return self._answers(X)

    def predict(self, X: Any) -> np.ndarray:
        """(N,) the likeliest label of each row."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class ValueModel(RegressorMixin, Model):
    """A student that predicts a number, or several."""

    def predict(self, X: Any) -> np.ndarray:
        """(N,) values in the labels' units, of several label columns (N, K) in their order.

        Raises ValueError with the rows that cannot be answered.
        """
        answers = self._answers(X)
        return answers[:, 0] if answers.shape[1] == 1 else answers


def load(folder: str | Path, form: str = "auto", trust: Collection[str] = ()) -> Any:
    """The model of a model folder, or of a run folder, with scikit-learn's interface.

    form: "pytorch", "onnx" or "int8"; "auto" takes ONNX where it was exported. trust: modules whose code a
    custom model may run. Raises ValueError where there is no model, or its files are damaged.
    """
    first = ClassModel(folder, form, trust)
    if first.predictor.target.classified:
        return first
    return ValueModel(folder, form, trust).fit()


def labels_of(names: list[str]) -> np.ndarray:
    """Classes as the labels were, as far as their names tell."""
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", name) for name in names):
        return np.array([int(name) for name in names])
    if set(names) <= {"false", "true"}:
        return np.array([name == "true" for name in names])
    return np.array(names)


def _series(X: Any) -> bool:
    return getattr(X, "ndim", None) == 1 and hasattr(X, "to_numpy")
