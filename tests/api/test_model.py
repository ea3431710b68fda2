"""`load`: a model folder with scikit-learn's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from model_cases import NAMES, package
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.metrics import accuracy_score

import ensemble_kd
from ensemble_kd.api.model import labels_of

COLUMNS = ["a", "b", "c", "d"]
X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


def test_a_classifier_answers_as_its_network(tmp_path: Path) -> None:
    folder, network = package(tmp_path, "numeric", input=COLUMNS)
    model = ensemble_kd.load(folder)
    wanted = torch.softmax(network(torch.from_numpy(X)).logits, 1).detach().numpy()
    frame = pd.DataFrame(X, columns=COLUMNS).assign(more="x")
    for data in (X, X.tolist(), frame, pa.table(frame), frame[COLUMNS].to_dict("list"), torch.from_numpy(X)):
        assert np.allclose(model.predict_proba(data), wanted, atol=1e-6)
    labels = np.array(NAMES)[wanted.argmax(1)]
    assert list(model.classes_) == NAMES and list(model.predict(X)) == list(labels)
    assert model.score(X, labels) == accuracy_score(labels, model.predict(frame)) == 1.0
    with torch.inference_mode():
        assert torch.equal(model.to_torch()(torch.from_numpy(X)).logits, network(torch.from_numpy(X)).logits)


def test_it_is_an_estimator(tmp_path: Path) -> None:
    folder, _ = package(tmp_path, "numeric")
    model = ensemble_kd.load(tmp_path)  # a run folder has it in `model`
    assert isinstance(model, ensemble_kd.Model) and is_classifier(model) and not is_regressor(model)
    again = clone(model)
    assert again.get_params() == model.get_params() and again.fit(X, None) is again
    assert np.array_equal(again.predict(X), model.predict(X))
    from sklearn.inspection import permutation_importance

    assert permutation_importance(model, X, model.predict(X), n_repeats=1)["importances"].shape == (4, 1)


def test_texts_and_images(tmp_path: Path) -> None:
    folder, _ = package(tmp_path / "text", "text")
    texts = ["one two", "three"]
    model = ensemble_kd.load(folder)
    one = model.predict_proba(texts)
    assert np.array_equal(one, model.predict_proba(pd.Series(texts)))
    assert np.array_equal(one, model.predict_proba(pd.DataFrame({"input": texts})))
    folder, network = package(tmp_path / "image", "image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5, 4, 3), np.uint8)
    wanted = torch.softmax(network(torch.from_numpy(pixels)).logits, 1).detach().numpy()
    model = ensemble_kd.load(folder)
    assert np.allclose(model.predict_proba(pixels), wanted, atol=1e-6)
    assert np.allclose(model.predict_proba(pixels.reshape(3, -1).astype(float)), wanted, atol=1e-6)


def test_values(tmp_path: Path) -> None:
    folder, network = package(tmp_path, "numeric", target={"mean": 3.0, "std": 2.0})
    model = ensemble_kd.load(folder)
    assert is_regressor(model) and not hasattr(model, "predict_proba")
    assert np.allclose(
        model.predict(X), network(torch.from_numpy(X)).logits[:, 0].detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (X[:, :3], "shape (20, 3), expected (N, 4)"),
        (X[0], "X.reshape(1, -1)"),
        (pd.DataFrame(X[:, :3], columns=COLUMNS[:3]), "no column 'd'"),
        (pd.DataFrame(X, columns=COLUMNS).assign(a=np.nan), "20 of 20 rows cannot be answered: row 0"),
        (X * np.nan, "row 0: column 'a' is missing or NaN"),
        ([], "expected (N, 4)"),
    ],
)
def test_rows_that_cannot_be_answered(rows: Any, says: str, tmp_path: Path) -> None:
    folder, _ = package(tmp_path, "numeric", input=COLUMNS)
    model = ensemble_kd.load(folder)
    with pytest.raises(ValueError, match="(?s).*") as caught:
        model.predict(rows)
    assert says in str(caught.value), caught.value


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder|config.json"):
        ensemble_kd.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no run there"):
        ensemble_kd.Run(tmp_path)
    folder, _ = package(tmp_path, "numeric")
    with pytest.raises(ValueError, match="no int8 in"):
        ensemble_kd.load(folder, form="int8")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="weights.safetensors"):
        ensemble_kd.load(folder)


def test_labels_are_what_they_were() -> None:
    assert labels_of(["0", "1", "10"]).tolist() == [0, 1, 10]
    assert labels_of(["false", "true"]).tolist() == [False, True]
    assert labels_of(["01", "1"]).tolist() == ["01", "1"]
    assert labels_of(["-3", "4"]).dtype == np.int64
