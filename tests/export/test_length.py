"""How long a text may be: as configured, in every form, and nothing is cut without a word."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from model_cases import BERT, SIZES, info_of, package
from pydantic import TypeAdapter
from test_given_teachers import CLASSES, WORDS, texts_config, write_classifier

from ensemble_kd import pipeline
from ensemble_kd.artifacts import checksum
from ensemble_kd.config import Config, ModelConfig
from ensemble_kd.export.mlflow_form import behind
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.build import build
from ensemble_kd.models.package import load_package, shipped_info


def info_with(kind: str, configured: int) -> dict[str, Any]:
    """Of a data set whose longest text of train has 12 tokens."""
    info = info_of(kind)
    info["preprocess"]["text"]["max_length"] = configured
    return info


class OneWidth(torch.nn.Module):
    """A user's network of texts of one length."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = torch.nn.Linear(input_shape[0], num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(tokens.float())
        return found


BERT_32 = {"model_type": "bert", **BERT, **SIZES, "max_position_embeddings": 32}
ROBERTA = {"model_type": "roberta", **BERT, **SIZES, "max_position_embeddings": 32, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("model", "configured", "ships"),
    [
        ({"name": "bag"}, 100, 100),
        ({"name": "bilstm"}, 100, 100),
        ({"name": "bag"}, 12, 12),
        ({"name": "transformer", "architecture": BERT_32}, 20, 20),
        ({"name": "transformer", "architecture": BERT_32}, 100, 32),
        ({"name": "transformer", "architecture": ROBERTA}, 100, 30),
        ({"name": "custom", "callable": "test_length:OneWidth"}, 100, 12),
    ],
)
def test_the_length_that_ships(model: dict[str, Any], configured: int, ships: int) -> None:
    info = info_with("pieces" if model["name"] == "transformer" else "text", configured)
    network = build(TypeAdapter[Any](ModelConfig).validate_python(model), info)
    found = shipped_info(network, info)
    assert found == {**info, "input_shape": [ships]}
    assert info["input_shape"] == [12], "what is trained on stays as it is"


def test_pixels_and_numbers_have_no_length() -> None:
    info = info_of("numeric")
    network = build(TypeAdapter[Any](ModelConfig).validate_python({"name": "mlp"}), info)
    assert shipped_info(network, info) is info


def test_a_wide_limit_costs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    """A folder that takes 5,000 tokens answers short texts as one that takes 12."""
    short, _ = package(tmp_path / "short", "text")
    wide, _ = package(tmp_path / "wide", "text")
    config = json.loads((wide / "config.json").read_text())
    config["info"]["input_shape"] = [5000]
    config["info"]["preprocess"]["text"]["max_length"] = 5000
    (wide / "config.json").write_text(json.dumps(config))
    manifest = json.loads((wide / "manifest.json").read_text())
    manifest["files"]["config.json"] |= {
        "bytes": (wide / "config.json").stat().st_size,
        "sha256": checksum(wide / "config.json"),
    }
    (wide / "manifest.json").write_text(json.dumps(manifest))
    rows = pa.table({"input": ["cat", "a", "my"]})
    found = [Predictor(folder, "pytorch").answer(rows).probabilities for folder in (short, wide)]
    np.testing.assert_array_equal(found[0], found[1])


def configuration(tmp_path: Path) -> Config:
    """A student of 32 positions; texts of train have at most 9 tokens, 20 are configured."""
    given = str(write_classifier(tmp_path / "classifier", CLASSES))
    student = {"model": {"name": "transformer", "source": given}}
    config = texts_config(tmp_path, {"source": "pretrained", "given": [given]}, **student)
    data = config.data.model_copy(update={"text": config.data.text.model_copy(update={"max_length": 20})})
    raw = config.model_copy(update={"data": data}).model_dump(mode="json")
    return Config.model_validate({**raw, "export": {"forms": ["onnx", "huggingface", "mlflow"]}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_form_treats_a_long_text_alike(tmp_path: Path) -> None:
    from mlflow import pyfunc
    from transformers import AutoTokenizer

    pipeline.run(configuration(tmp_path), tmp_path / "run")
    model = tmp_path / "run" / "model"
    assert load_package(model).info["input_shape"] == [20]
    card = (model / "README.md").read_text()
    assert "texts of up to 20 tokens. No form cuts a longer one by itself" in card
    middle, long = " ".join(WORDS[:15]), " ".join(WORDS * 2)  # 17 and 32 tokens
    rows = pa.table({"input": [middle, long]})
    answers = {form: Predictor(model, form).answer(rows, truncate=False) for form in ("pytorch", "onnx")}
    for found in answers.values():
        assert found.problems[0] is None
        assert found.problems[1] == "a text of 32 tokens; the model takes 20, the rest would be cut off"
    cut = Predictor(model, "onnx").answer(rows).probabilities
    with warnings.catch_warnings(), behind():
        warnings.simplefilter("ignore")
        served = pyfunc.load_model(str(model / "export" / "mlflow"))
    frame = rows.to_pandas()
    with pytest.raises(ValueError, match=r"row 1: a text of 32 tokens; the model takes 20.*truncate"):
        served.predict(frame)
    alone = served.predict(frame[:1])
    np.testing.assert_allclose(alone["probabilities"].tolist(), cut[:1], atol=1e-5)
    both = served.predict(frame, params={"truncate": True})
    np.testing.assert_allclose(both["probabilities"].tolist(), cut, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(model / "export" / "huggingface")
    assert tokenizer.model_max_length == 20
    assert len(tokenizer(long, truncation=True)["input_ids"]) == 20 < len(tokenizer(long)["input_ids"])
