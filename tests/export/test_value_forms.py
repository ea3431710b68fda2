"""Exported forms of students that predict values: the same numbers, in the labels' units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_cases import MODELS, inputs_of, package

from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ExportError
from ensemble_kd.export import form_checks
from ensemble_kd.export.folder import export_folder
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import export_forms
from ensemble_kd.export.huggingface import load_huggingface
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.package import load_package
from ensemble_kd.train.loop import predict

ONE: dict[str, Any] = {"mean": 1e4, "std": 300.0}
TWO: dict[str, Any] = {"mean": [1e4, -0.02], "std": [300.0, 0.005], "names": ["price", "50% of age"]}


@pytest.fixture(autouse=True)
def measured_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_checks, "SECONDS", 0.01)


def regressor(folder: Path, name: str, target: dict[str, Any]) -> tuple[Path, np.ndarray, np.ndarray]:
    """The model folder, inputs, and what the network answers to them."""
    kind, model = MODELS[name]
    path, _ = package(folder, kind, model, target=target)
    source = load_package(path)
    inputs = inputs_of(source.info)
    values = predict(source.network, torch.from_numpy(inputs), torch.device("cpu")).numpy()
    return path, inputs, values


def labels_near(values: np.ndarray) -> np.ndarray:
    labels = values + 0.1 * values.std(0) * np.random.default_rng(0).normal(size=values.shape)
    return (labels[:, 0] if labels.shape[1] == 1 else labels).astype(np.float32)


@pytest.mark.parametrize("target", [ONE, TWO], ids=["one", "two"])
def test_onnx_and_int8_of_numbers(target: dict[str, Any], tmp_path: Path) -> None:
    model, inputs, values = regressor(tmp_path, "numbers", target)
    rows = Rows(inputs, labels_near(values))
    options = ExportConfig(forms=["onnx", "int8"], max_accuracy_loss=20)
    found = export_forms(load_package(model), model / "export", options, rows)
    assert found["onnx"]["logit_difference"] < 1e-3 and found["onnx"]["agreement"] > 1 - 1e-6
    assert found["onnx"]["r2"] > 0.95 and "accuracy" not in found["onnx"]
    assert 0 < found["int8"]["logit_difference"] and found["int8"]["points_lost"] < 20
    predictor = Predictor(model)
    answers = predictor.answer(pa.table({"input": inputs.tolist()})).probabilities
    assert predictor.form == "onnx" and answers.shape == values.shape
    np.testing.assert_allclose(answers, values, rtol=1e-4)


def test_int8_is_judged_by_the_variance_explained(tmp_path: Path) -> None:
    model, inputs, values = regressor(tmp_path, "numbers", TWO)
    rows = Rows(inputs, labels_near(values))
    with pytest.raises(ExportError, match="points of variance explained on 40 validation rows"):
        export_forms(
            load_package(model), model / "export", ExportConfig(forms=["int8"], max_accuracy_loss=0), rows
        )


def test_a_folder_is_exported_from_rows_without_labels(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    model, inputs, _ = regressor(tmp_path, "numbers", ONE)
    pq.write_table(pa.table({"input": inputs.tolist()}), tmp_path / "rows.parquet")
    found = export_folder(model, ["onnx"], str(tmp_path / "rows.parquet"))
    assert found["onnx"]["points_lost"] < 1e-3 and "r2" not in found["onnx"]


@pytest.mark.parametrize("target", [ONE, TWO], ids=["one", "two"])
def test_the_hugging_face_form_answers_in_the_labels_units(target: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, inputs, values = regressor(tmp_path, "bert", target)
    options = ExportConfig(forms=["huggingface"])
    export_forms(load_package(model), model / "export", options, Rows(inputs, labels_near(values)))
    folder = model / "export" / "huggingface"
    found = load_huggingface(folder, load_package(model).info)(inputs)
    np.testing.assert_allclose(found, values, rtol=1e-3)
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.num_labels == values.shape[1] and config.problem_type == "regression"
