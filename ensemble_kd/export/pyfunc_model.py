"""The code of the exported MLflow model: a table in, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

from ensemble_kd.data.preprocess import TOO_LONG
from ensemble_kd.inference.predictor import Predictor


class Served(mlflow.pyfunc.PythonModel):
    """Answers in the columns label, label_name, probability, probabilities; of values in one for each.

    A text beyond the length that the model takes is an error, or cut where the parameter `truncate` is true.
    """

    predictor: Predictor

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Raises ValueError with the first rows that cannot be answered."""
        table = pa.Table.from_pandas(model_input, preserve_index=False)
        truncate = bool((params or {}).get("truncate", False))
        answers = self.predictor.answer(table, truncate=truncate)
        bad = [f"row {i}: {problem}" for i, problem in enumerate(answers.problems) if problem is not None]
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            hint = "; params={'truncate': True} cuts long texts" if any(TOO_LONG in p for p in bad) else ""
            raise ValueError("; ".join(bad[:5]) + more + hint)
        numbers, none_bad = answers.probabilities.astype(float), np.zeros(len(answers.problems), bool)
        columns = self.predictor.target.table(numbers, none_bad, self.predictor.class_names, None)
        return pd.DataFrame({name: column.to_pylist() for name, column in columns.items()})


mlflow.models.set_model(Served())
