"""Pairs of texts: two columns to one row of tokens, in preparing and in predicting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_cases import make_config
from pydantic import TypeAdapter
from text_cases import WORDS, write_tokenizer

from ensemble_kd.config import Config, ModelConfig
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.build import build
from ensemble_kd.models.package import save_package
from ensemble_kd.predict import predict_file


def pairs(rows: int = 40) -> dict[str, list[Any]]:
    return {
        "premise": [" ".join(WORDS[: 1 + i % 7]) for i in range(rows)],
        "hypothesis": [WORDS[i % 11] for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
    }


def pairs_config(
    folder: Path, table: dict[str, Any], name: str = "train.parquet", max_length: int = 64
) -> Config:
    path = folder / name
    if name.endswith(".csv"):
        import pyarrow.csv as pc

        pc.write_csv(pa.table(table), path)
    else:
        pq.write_table(pa.table(table), path)
    source = str(write_tokenizer(folder / "source"))
    return make_config(
        path=str(path),
        kind="text",
        columns={"input": ["premise", "hypothesis"]},
        text={"tokenizer": "pretrained", "source": source, "max_length": max_length},
    )


def reference(folder: Path, table: dict[str, Any], max_length: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(folder / "source")
    both = zip(table["premise"], table["hypothesis"], strict=True)
    return [
        [i + 1 for i in auto([a], [b], truncation="longest_first", max_length=max_length)["input_ids"][0]]
        for a, b in both
    ]


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
@pytest.mark.parametrize("max_length", [64, 6])
def test_pairs_are_prepared(tmp_path: Path, name: str, max_length: int) -> None:
    table = pairs()
    config = pairs_config(tmp_path, table, name, max_length)
    assert inspect_source(config) == []
    info, _ = prepare(config, tmp_path / "out")
    expected = reference(tmp_path, table, max_length)
    assert info.input_shape == [max(map(len, expected))]
    for split in ("transfer", "validation", "test"):
        arrays = load_split(tmp_path / "out", split)
        for row, ids in zip(arrays.ids, arrays.inputs, strict=True):
            assert ids[ids > 0].tolist() == expected[row]


def test_bad_rows_name_the_column(tmp_path: Path) -> None:
    table = pairs()
    table["premise"][3] = table["hypothesis"][7] = table["premise"][9] = table["hypothesis"][9] = None
    table["premise"][5] = table["hypothesis"][5] = " "
    table["premise"][6] = ""  # one text of the pair is enough
    config = pairs_config(tmp_path, table)
    expected = [
        "row 3 of train.parquet: column 'premise' has no text (null)",
        "row 5 of train.parquet: an empty text; a model learns nothing from it, drop the row",
        "row 7 of train.parquet: column 'hypothesis' has no text (null)",
        "row 9 of train.parquet: column 'premise' has no text (null)",
    ]
    with pytest.raises(InputError) as caught:
        prepare(config, tmp_path / "out")
    assert caught.value.problems == expected == inspect_source(config)


def test_wrong_and_missing_columns(tmp_path: Path) -> None:
    config = pairs_config(tmp_path, pairs() | {"hypothesis": list(range(40))})
    (line,) = inspect_source(config)
    assert line.endswith("of train.parquet 'hypothesis' holds int64, expected text")
    table = pairs()
    table["premises"] = table.pop("premise")
    (line,) = inspect_source(pairs_config(tmp_path, table))
    assert line.startswith("data.columns.input: no column 'premise' in train.parquet; it has ")
    assert line.endswith("did you mean 'premises'?")


def test_no_room_for_a_pair(tmp_path: Path) -> None:
    (line,) = inspect_source(pairs_config(tmp_path, pairs(), max_length=2))
    assert line == "data.text.max_length: 2 has no room for the 3 special tokens of a pair; raise it"


def test_a_tokenizer_that_knows_no_pairs(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    config = pairs_config(tmp_path, pairs())
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "card": 1}, unk_token="[UNK]"))
    (tmp_path / "source" / "tokenizer.json").write_text(made.to_str())
    (line,) = inspect_source(config)
    assert line.startswith("data.columns.input: two columns, but the tokenizer of ")


@pytest.mark.parametrize("columns", [["a"], [], ["a", "b", "c"], ["a", "a"]])
def test_pairs_are_two_columns(columns: list[str]) -> None:
    with pytest.raises(ConfigError, match="^data.columns.input: one column for text, or two for pairs, got "):
        make_config(
            source="hub",
            hub_name="any",
            kind="text",
            columns={"input": columns},
            text={"tokenizer": "pretrained", "source": "any"},
        )


def test_pairs_need_a_pretrained_tokenizer() -> None:
    with pytest.raises(ConfigError, match="for pairs set data.text.tokenizer=pretrained, it is 'hashed'$"):
        make_config(source="hub", hub_name="any", kind="text", columns={"input": ["a", "b"]})


def test_predicting_pairs(tmp_path: Path) -> None:
    config = pairs_config(tmp_path, pairs())
    info, _ = prepare(config, tmp_path / "out")
    model = {"name": "bag", "embedding": 8}
    torch.manual_seed(0)
    network = build(TypeAdapter(ModelConfig).validate_python(model), info.to_dict()).eval()
    tokenizer = tmp_path / "out" / "tokenizer.json"
    save_package(tmp_path / "model", network, model, info.to_dict(), "# card", tokenizer, lineage={})
    table: dict[str, Any] = {"premise": ["my card", None, "the cat"], "hypothesis": ["is lost", "a", ""]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    shown: list[str] = []
    problems = predict_file(tmp_path / "model", str(tmp_path / "rows.parquet"), None, 2, shown.append)
    assert problems == ["row 1: column 'premise' has no text (null)"]
    inputs = np.zeros((2, info.input_shape[0]), np.int32)
    kept = {name: [values[0], values[2]] for name, values in table.items()}
    for i, ids in enumerate(reference(tmp_path, kept, 64)):
        inputs[i, : len(ids)] = ids
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(inputs)).logits, 1).numpy()
    found = np.array([json.loads(line)["probabilities"] for line in shown])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    pq.write_table(pa.table({"premise": ["a"]}), tmp_path / "half.parquet")
    with pytest.raises(InputError, match="no column 'hypothesis' in half.parquet; it has 'premise'"):
        predict_file(tmp_path / "model", str(tmp_path / "half.parquet"), None, 2, shown.append)
