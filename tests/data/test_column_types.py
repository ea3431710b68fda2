"""Columns of the types that polars, pandas and databases write, as inputs, labels and ids."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, make_images, png
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.data.decode import plain, plain_type, single
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import load_split

ROWS = 40
WORDS = ["no", "yes", "perhaps"]


def write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=11)
        return
    new = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)


def coded(values: list[Any], kind: pa.DataType, index: pa.DataType) -> pa.Array:
    """A dictionary of the values; its order is not theirs."""
    distinct = sorted(set(values), reverse=True)
    codes = [distinct.index(value) for value in values]
    return pa.DictionaryArray.from_arrays(pa.array(codes, index), pa.array(distinct, kind))


STRINGS: dict[str, Callable[[list[str]], pa.Array]] = {
    "string_view": lambda v: pa.array(v, pa.string_view()),
    "large_string": lambda v: pa.array(v, pa.large_string()),
    "categorical": lambda v: coded(v, pa.string(), pa.int8()),
    "polars categorical": lambda v: coded(v, pa.string_view(), pa.uint32()),
    "large dictionary": lambda v: coded(v, pa.large_string(), pa.uint64()),
    "run lengths": lambda v: pa.RunEndEncodedArray.from_arrays(np.arange(1, len(v) + 1, dtype=np.int32), v),
}
NUMBERS: dict[str, Callable[[list[int]], pa.Array]] = {
    "decimal128": lambda v: pa.array([Decimal(x) for x in v], pa.decimal128(12, 2)),
    "decimal256": lambda v: pa.array([Decimal(x) for x in v], pa.decimal256(40, 0)),
    "decimal32": lambda v: pa.array([Decimal(x) for x in v], pa.decimal32(7, 1)),
    "half": lambda v: pa.array(v, pa.float16()),
    "unsigned": lambda v: pa.array(v, pa.uint64()),
    "dictionary": lambda v: coded(v, pa.int16(), pa.uint8()),
    "dictionary of decimals": lambda v: coded([Decimal(x) for x in v], pa.decimal128(9, 1), pa.int32()),
}
NOT_IN_PARQUET = ("run lengths", "polars categorical")
"""Columns that pyarrow writes into Arrow files alone."""


def saved(folder: Path, columns: dict[str, pa.Array], ending: str) -> str:
    write(pa.table(columns), folder / f"train{ending}")
    return str(folder / f"train{ending}")


ENDINGS = (".parquet", ".arrow", ".ipc")


@pytest.mark.parametrize(
    "kind, ending", [(k, e) for k in STRINGS for e in ENDINGS if e != ".parquet" or k not in NOT_IN_PARQUET]
)
def test_texts_labels_and_ids(tmp_path: Path, kind: str, ending: str) -> None:
    make = STRINGS[kind]
    texts, labels = [f"word{i}" for i in range(ROWS)], [WORDS[i % 3] for i in range(ROWS)]
    ids = [f"k{i}" for i in range(ROWS)]
    path = saved(tmp_path, {"x": make(texts), "y": make(labels), "key": make(ids)}, ending)
    text = {"word_ngrams": 1, "char_ngrams": None, "vocabulary_size": 100_000}
    columns = {"input": "x", "label": "y", "id": "key"}
    config = make_config(path=path, kind="text", columns=columns, text=text, shard_rows=7)
    assert inspect_source(config) == []
    info, _ = prepare(config, tmp_path / "out")
    assert info.class_names == sorted(WORDS)
    asked = Preprocessor(info, tmp_path / "out")
    for split in ("transfer", "validation", "test"):
        part = load_split(tmp_path / "out", split)
        rows = [int(key[1:]) for key in part.ids]
        assert [info.class_names[label] for label in part.labels] == [labels[row] for row in rows]
        # The same column is understood by `predict`.
        inputs, problems = asked.transform(pa.table({"x": make([texts[row] for row in rows])}))
        assert problems == [None] * len(rows)
        np.testing.assert_array_equal(inputs, part.inputs)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("target", ["class", "value"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_labels_and_ids(tmp_path: Path, kind: str, target: str, ending: str) -> None:
    make = NUMBERS[kind]
    labels = [3 + i % 4 for i in range(ROWS)]
    table = {"x": make(list(range(ROWS))), "y": make(labels), "key": make(list(range(100, 100 + ROWS)))}
    columns = {"input": "x", "label": "y", "id": "key"}
    path = saved(tmp_path, table, ending)
    config = make_config(path=path, kind="numeric", columns=columns, target=target)
    assert inspect_source(config) == []
    info, _ = prepare(config, tmp_path / "out")
    assert info.class_names == (["3", "4", "5", "6"] if target == "class" else [])
    for split in ("transfer", "validation", "test"):
        part = load_split(tmp_path / "out", split)
        np.testing.assert_array_equal(part.inputs[:, 0], part.ids - 100)
        first = 3 if target == "class" else 0
        np.testing.assert_array_equal(part.labels + first, np.array(labels)[part.ids - 100])


LISTS: dict[str, Callable[[list[list[int]]], pa.Array]] = {
    "list_view": lambda v: pa.array(v, pa.list_view(pa.float32())),
    "large_list_view": lambda v: pa.array(v, pa.large_list_view(pa.int32())),
    "large_list": lambda v: pa.array(v, pa.large_list(pa.float64())),
    "fixed": lambda v: pa.array(v, pa.list_(pa.int8(), 2)),
    "decimals": lambda v: pa.array([[Decimal(x) for x in row] for row in v], pa.list_(pa.decimal128(9, 2))),
    "dictionaries": lambda v: pa.ListArray.from_arrays(
        list(range(0, 2 * len(v) + 1, 2)), coded([x for row in v for x in row], pa.int32(), pa.int8())
    ),
    "tensors": lambda v: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array(v, pa.list_(pa.float32(), 2))
    ),
}


@pytest.mark.parametrize("ending", [".arrow", ".ipc"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_numbers(tmp_path: Path, kind: str, ending: str) -> None:
    rows = [[i, ROWS - i] for i in range(ROWS)]
    path = saved(tmp_path, {"x": LISTS[kind](rows), "y": pa.array(np.arange(ROWS) % 2)}, ending)
    config = make_config(path=path, kind="numeric", columns={"input": "x", "label": "y"}, shard_rows=7)
    prepare(config, tmp_path / "out")
    for split in ("transfer", "validation", "test"):
        part = load_split(tmp_path / "out", split)
        np.testing.assert_array_equal(part.inputs, np.array(rows, np.float32)[part.ids])


@pytest.mark.parametrize("kind", ["binary_view", "large_binary", "dictionary", "struct of views"])
def test_images(tmp_path: Path, kind: str) -> None:
    images = make_images(ROWS)
    rows = [png(image) for image in images]
    column = {
        "binary_view": lambda: pa.array(rows, pa.binary_view()),
        "large_binary": lambda: pa.array(rows, pa.large_binary()),
        "dictionary": lambda: coded(rows, pa.binary(), pa.int16()),
        "struct of views": lambda: pa.array(
            [{"bytes": row, "path": None} for row in rows],
            pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        ),
    }[kind]()
    path = saved(tmp_path, {"x": column, "y": pa.array(np.arange(ROWS) % 2)}, ".arrow")
    prepare(make_config(path=path, columns={"input": "x", "label": "y"}, shard_rows=7), tmp_path / "out")
    for split in ("transfer", "validation", "test"):
        part = load_split(tmp_path / "out", split)
        np.testing.assert_array_equal(part.inputs, images[part.ids])


def test_pandas_categories_that_do_not_occur(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    labels = pd.Categorical.from_codes(np.arange(ROWS) % 2, ["b", "a", "never"], ordered=True)
    pd.DataFrame({"x": np.arange(float(ROWS)), "y": labels}).to_parquet(tmp_path / "train.parquet")
    config = make_config(path=str(tmp_path), kind="numeric", columns={"input": "x", "label": "y"})
    info, _ = prepare(config, tmp_path.parent / f"{tmp_path.name}-out")
    assert info.class_names == ["a", "b"]


# --------------------------------------------------------------------------------------- properties

values = st.lists(st.none() | st.text(max_size=4), max_size=12)


@settings(max_examples=100, deadline=None)
@given(values, st.integers(0, 12), st.sampled_from(["view", "dictionary", "both", "list view", "runs"]))
def test_a_plain_column_holds_the_same(cells: list[str | None], first: int, kind: str) -> None:
    array = pa.array(cells, pa.string_view() if kind in ("view", "both") else pa.string())
    if kind in ("dictionary", "both"):
        distinct = [*dict.fromkeys(cells)]
        codes = pa.array([distinct.index(cell) for cell in cells], pa.uint16())
        array = pa.DictionaryArray.from_arrays(codes, pa.array(distinct, array.type))
    elif kind == "list view":
        array = pa.array([None if c is None else list(c) for c in cells], pa.list_view(pa.string_view()))
    elif kind == "runs":
        array = pa.RunEndEncodedArray.from_arrays(np.arange(1, len(cells) + 1, dtype=np.int32), array)
    part = array.slice(min(first, len(array)))
    found = plain(part)
    found.validate(full=True)
    assert found.type == plain_type(array.type)
    assert found.to_pylist() == part.to_pylist()
    assert single(pa.chunked_array([part, array])).to_pylist() == part.to_pylist() + array.to_pylist()
