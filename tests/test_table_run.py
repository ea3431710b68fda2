"""A table of words and numbers from its file to the answers of every form that is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ensemble_kd import pipeline
from ensemble_kd.config import validate
from ensemble_kd.export.mlflow_form import behind
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.predict import predict_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(1)
    n = 600
    job = rng.choice(["clerk", "smith", "baker", "king"], n, p=[0.5, 0.3, 0.19, 0.01])
    hours = rng.normal(40, 8, n)
    label = np.where((job == "smith") ^ (hours > 42), "rich", "poor")
    rows = {
        "job": [None if i % 19 == 0 else str(value) for i, value in enumerate(job)],
        "hours": [None if i % 17 == 0 else float(value) for i, value in enumerate(hours)],
        "label": label,
    }
    (folder / "data").mkdir()
    pq.write_table(pa.table(rows), folder / "data/train.parquet")
    raw = {
        "name": "table",
        "data": {
            "path": str(folder / "data"),
            "kind": "numeric",
            "columns": {"input": ["job", "hours"], "label": "label"},
            "table": {"most_values": 3},
        },
        "teachers": {
            "num_members": 1,
            "model": {"name": "mlp", "hidden": [32]},
            "training": {"epochs": 30, "learning_rate": 0.01},
        },
        "student": {
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 30, "learning_rate": 0.01},
        },
        "export": {"forms": ["onnx", "int8", "mlflow", "program"]},
        "compute": {"executor": "local"},
        "tracking": {"enabled": False},
    }
    pipeline.run(validate(raw), folder / "run")
    return folder


@pytest.mark.slow
def test_words_gaps_and_strangers_are_answered_alike_in_all_forms(run: Path) -> None:
    model = run / "run/model"
    given = {"job": ["smith", "astronaut", None, "king"], "hours": [50.0, 41.0, None, 38.0]}
    pa.csv.write_csv(pa.table(given), run / "new.csv")
    answers = []
    for form in ("pytorch", "onnx"):
        predict_file(model, str(run / "new.csv"), run / f"{form}.parquet", 64, lambda text: None, form=form)
        found = pq.read_table(run / f"{form}.parquet").to_pydict()
        assert all(np.isfinite(found["probability"]))
        answers.append(found["probability"])
    assert np.allclose(answers[0], answers[1], atol=1e-4)
    predictor = Predictor(model)
    assert predictor.columns == ["job", "hours"]
    import mlflow.pyfunc

    with behind():  # the modules that the model carries are not for the tests that follow
        loaded = mlflow.pyfunc.load_model(str(next(model.glob("export/mlflow*"))))
    frame = pa.table(given).to_pandas()
    assert np.allclose(loaded.predict(frame)["probability"], answers[0], atol=1e-4)
