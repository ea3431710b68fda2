"""Tables with words and missing numbers: what train holds decides how they become numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ensemble_kd.config import Config, validate
from ensemble_kd.data.decode import ColumnError
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.data.table import TableEncoder, learn_table
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.model_description import described
from ensemble_kd.serving.schema import RefusedError, RequestSchema

ROWS: dict[str, list[object]] = {
    "age": [20.0, None, 40.0, 60.0],
    "colour": ["red", "blue", "red", None],
    "code": ["1", "2", "?", "3"],
    "smokes": [True, False, True, True],
}


def encoder(most_values: int = 50, rows: dict[str, list[object]] | None = None) -> TableEncoder:
    table = pa.table(rows or ROWS)
    return learn_table([table.slice(0, 2), table.slice(2)], table.column_names, most_values)


def encoded(table: dict[str, list[object]], by: TableEncoder) -> np.ndarray:
    values, bad = by([pa.array(column) for column in table.values()])
    assert not bad
    return values


def test_each_word_has_a_column_and_a_missing_number_the_mean_of_train() -> None:
    found = encoded(ROWS, encoder())
    #                age missing red blue none code missing smokes
    assert found.tolist() == [
        [20, 0, 1, 0, 0, 1, 0, 1],
        [40, 1, 0, 1, 0, 2, 0, 0],
        [40, 0, 1, 0, 0, 2, 1, 1],
        [60, 0, 0, 0, 1, 3, 0, 1],
    ]
    assert found.dtype == np.float32


def test_it_is_the_same_after_json() -> None:
    again = TableEncoder.from_list(list(ROWS), json.loads(json.dumps(encoder(1).to_list())))
    assert np.array_equal(encoded(ROWS, again), encoded(ROWS, encoder(1)))


def test_rare_words_share_a_column_and_unknown_ones_do_too() -> None:
    words: dict[str, list[object]] = {"w": ["a", "a", "b", "b", "b", "c", "d"]}
    by = encoder(2, words)
    assert by.columns[0].values == ("b", "a")  # by frequency
    found = encoded({"w": ["a", "b", "c", "zebra"]}, by)
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert encoded({"w": [None, " ? "]}, by).tolist() == [[0, 0, 0], [0, 0, 0]]  # none was missing in train
    everything = encoder(4, words)
    assert encoded({"w": ["zebra"]}, everything).tolist() == [[0, 0, 0, 0]]


def test_a_number_that_first_lacks_after_training_is_the_mean() -> None:
    assert encoded({"x": [None, 5.0]}, encoder(rows={"x": [1.0, 3.0]})).tolist() == [[2.0], [5.0]]


def test_a_word_among_numbers_is_a_bad_row() -> None:
    by = encoder(rows={"x": ["1", "2", "3", "4", "5", "6", "7", "8", "9", "oops"]})
    values, bad = by([pa.array(["7", "oops", "1e60"])])
    assert bad == {1: "column 'x' is 'oops', not a number", 2: "column 'x' is inf, too large"} or (
        bad[1] == "column 'x' is 'oops', not a number" and "too large" in bad[2]
    )
    assert values[0] == 7


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([None, None], pa.string()), "no value in train"),
        (pa.array([None, None], pa.float64()), "no number in train"),
        (pa.array([[1], [2]]), "expected numbers or words"),
    ],
)
def test_a_column_that_says_nothing_is_named(column: pa.Array, said: str) -> None:
    with pytest.raises(ColumnError, match=f"'x'.*{said}"):
        learn_table([pa.table({"x": column})], ["x"], 5)


def test_ids_are_no_category() -> None:
    many = pa.table({"x": [f"id-{i}" for i in range(100_001)]})
    with pytest.raises(ColumnError, match="leave it out"):
        learn_table([many], ["x"], 5)


def test_the_order_of_pieces_does_not_matter_for_words() -> None:
    table = pa.table(ROWS)
    one = learn_table([table], table.column_names, 5)
    other = learn_table([table.slice(2), table.slice(0, 2)], table.column_names, 5)
    assert one.columns == other.columns


# ------------------------------------------------------------------------------------------- whole data sets


def configured(tmp_path: Path, **data: object) -> Config:
    rng = np.random.default_rng(0)
    n = 200
    colour = rng.choice(["red", "green", "blue"], n, p=[0.6, 0.3, 0.1])
    age = rng.normal(50, 10, n)
    label = (colour == "red").astype(int)
    ages = [None if i % 7 == 0 else float(value) for i, value in enumerate(age)]
    table = pa.table({"age": ages, "colour": colour, "label": label})
    (tmp_path / "in").mkdir(exist_ok=True)
    pq.write_table(table, tmp_path / "in/train.parquet")
    raw = {
        "name": "t",
        "data": {
            "path": str(tmp_path / "in"),
            "kind": "numeric",
            "columns": {"input": ["age", "colour"], "label": "label"},
            "table": {},
            **data,
        },
        "teachers": {"model": {"name": "mlp"}},
        "student": {"model": {"name": "mlp"}},
    }
    return validate(raw)


def test_a_table_is_prepared_and_predicted_alike(tmp_path: Path) -> None:
    config = configured(tmp_path)
    info, _ = prepare(config, tmp_path / "out")
    assert info.input_shape == [5]  # age, missing, red, green, blue
    assert info.mean[1:] == [0, 0, 0, 0] and info.std[1:] == [1, 1, 1, 1] and info.mean[0] != 0
    test = load_split(tmp_path / "out", "test")
    table = pq.read_table(tmp_path / "in/train.parquet").take(pa.array(test.ids))
    inputs, problems = Preprocessor(load_info(tmp_path / "out"), tmp_path / "out").transform(table)
    assert problems == [None] * table.num_rows
    assert np.array_equal(inputs, test.inputs)


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    config = configured(tmp_path)
    info, _ = prepare(config, tmp_path / "out")
    table = pq.read_table(tmp_path / "in/train.parquet")
    (tmp_path / "in/train.parquet").unlink()
    pa.csv.write_csv(table, tmp_path / "in/train.csv")
    again, _ = prepare(config, tmp_path / "again")
    assert again.preprocess["table"][1] == info.preprocess["table"][1]
    assert again.input_shape == info.input_shape
    assert again.preprocess["table"][0]["mean"] == pytest.approx(info.preprocess["table"][0]["mean"])
    assert np.allclose(
        load_split(tmp_path / "again", "test").inputs, load_split(tmp_path / "out", "test").inputs
    )


def test_without_the_block_words_are_refused_and_the_block_is_named(tmp_path: Path) -> None:
    found = inspect_source(configured(tmp_path, table=None))
    assert any("data.table={}" in line for line in found), found
    assert inspect_source(configured(tmp_path)) == []


def test_a_column_without_values_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    config = configured(tmp_path)
    table = pq.read_table(tmp_path / "in/train.parquet")
    empty = table.set_column(0, "age", pa.nulls(table.num_rows, pa.float64()))
    pq.write_table(empty, tmp_path / "in/train.parquet")
    with pytest.raises(InputError, match="'age' has no number in train"):
        prepare(config, tmp_path / "out")
    assert any("'age' has no number in train" in line for line in inspect_source(config))


def test_it_is_for_tables_only(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"data\.table: only for columns of numbers and words"):
        configured(tmp_path, kind="text", columns={"input": "colour", "label": "label"})


# ------------------------------------------------------------------------------------------------- requests


def test_requests_take_words_and_nulls(tmp_path: Path) -> None:
    info, _ = prepare(configured(tmp_path), tmp_path / "out")
    schema = RequestSchema(info, ["age", "colour"], 10)
    assert not schema.listed
    body = {"rows": [{"age": None, "colour": "red"}, {"age": 3, "colour": None}]}
    table, _, bad = schema.parse(json.dumps(body).encode())
    inputs, problems = Preprocessor(info, tmp_path / "out").transform(table)
    assert not bad and problems == [None, None]
    assert inputs[0, 2] == 1 and inputs[1].tolist() == [3, 0, 0, 0, 0]
    schema.parse(json.dumps(schema.example()).encode())
    with pytest.raises(RefusedError, match=r"rows\.0\.age"):
        schema.parse(json.dumps({"rows": [{"age": "old", "colour": "red"}]}).encode())


@pytest.mark.parametrize("change", ["width", "columns", "kind"])
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    info, _ = prepare(configured(tmp_path), tmp_path / "out")
    raw = info.to_dict()
    if change == "width":
        raw["preprocess"]["table"][1]["values"].append("violet")
    elif change == "columns":
        raw["preprocess"]["table"] = raw["preprocess"]["table"][:1]
    else:
        raw["kind"], raw["input_shape"], raw["mean"], raw["std"] = "image", [1, 5, 1], [], []
    whole = {"format": 1, "model": {"name": "mlp"}, "info": raw}
    with pytest.raises(ArtifactError, match=r"preprocess\.table"):
        described(json.dumps(whole).encode(), "config.json")
    if change == "width":
        raw["preprocess"]["table"][1]["values"].pop()
        described(json.dumps(whole).encode(), "config.json")
