"""Teacher outputs that the user already has: put in order by id, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble_kd.config import PredictionsConfig
from ensemble_kd.data.predictions import align, predictions_fingerprint
from ensemble_kd.errors import InputError

LOGITS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]


def given(
    tmp_path: Path, ids: Any = (0, 1, 2), values: Any = None, kind: Any = "logits", **changes: Any
) -> tuple[str, PredictionsConfig]:
    """A file of predictions and the settings that read it."""
    path = str(tmp_path / "member.parquet")
    values = LOGITS if values is None else values
    pq.write_table(pa.table({"id": pa.array(ids), "logits": values}), path)
    return path, PredictionsConfig(train=[path], values=kind, **changes)


def read(tmp_path: Path, wanted: Any = (0, 1, 2), classes: int = 3, **fields: Any) -> np.ndarray:
    path, files = given(tmp_path, **fields)
    return align(path, files, np.array(wanted), classes)


def test_rows_are_put_in_the_order_of_the_ids(tmp_path: Path) -> None:
    found = read(tmp_path, wanted=[2, 0], ids=[1, 2, 0])
    assert found.dtype == np.float32 and found.tolist() == [LOGITS[1], LOGITS[2]]


def test_ids_may_be_strings(tmp_path: Path) -> None:
    assert read(tmp_path, wanted=["c", "a"], ids=["a", "b", "c"]).tolist() == [LOGITS[2], LOGITS[0]]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float16()), pa.list_(pa.float64(), 3), pa.large_list(pa.float32()), pa.list_(pa.int32())],
)
def test_any_list_of_numbers_will_do(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = np.array(LOGITS).astype(kind.value_type.to_pandas_dtype())
    assert read(tmp_path, values=pa.array([list(row) for row in numbers], kind)).tolist() == LOGITS


def test_a_file_of_several_row_groups(tmp_path: Path) -> None:
    path = str(tmp_path / "member.parquet")
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    pq.write_table(pa.table({"id": np.arange(50), "logits": rows.tolist()}), path, row_group_size=7)
    order = np.arange(50)[::-1]
    assert np.array_equal(align(path, PredictionsConfig(train=[path]), order, 3), rows[order])


def test_probabilities_become_their_logarithms(tmp_path: Path) -> None:
    rows = [[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.3333, 0.3333, 0.3333]]
    path, files = given(tmp_path, values=rows, kind="probabilities")
    found = align(path, files, np.arange(3), 3)
    assert found[0] == pytest.approx(np.log(rows[0]), rel=1e-5)
    assert found[1] == pytest.approx([0, np.log(1e-12), np.log(1e-12)], rel=1e-5)


def test_more_predictions_than_rows_are_no_problem(tmp_path: Path) -> None:
    assert read(tmp_path, wanted=[1]).tolist() == [LOGITS[1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": [0, 1, 1]}, "1 ids occur twice"),
        ({"ids": [0, 1, 3]}, "1 of 3 rows have no prediction, for example id 2; .* data.columns.id"),
        ({"ids": ["0", "1", "2"]}, "3 of 3 rows have no prediction, for example id 0"),
        ({"classes": 4}, "rows of 3 numbers in column 'logits', the data has 4 classes; give one number per"),
        ({"values": [[1.0, 2.0, 3.0], [1.0], None]}, "rows of 0/1/3 numbers in column 'logits'"),
        ({"values": [1.0, 2.0, 3.0]}, "column 'logits' holds double, expected lists of numbers"),
        ({"values": [["a", "b", "c"]] * 3}, "holds list<.*string>, expected lists of numbers"),
        (
            {"values": [[1.0, 2.0, 3.0], [1.0, np.nan, 3.0], [1.0, 2.0, 3.0]]},
            "id 1 holds a number that is not",
        ),
        (
            {"values": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [np.inf, 2.0, 3.0]]},
            "id 2 holds a number that is not",
        ),
        ({"values": [[1.0, None, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]}, "id 0 holds a number that is not"),
        ({"column": "scores"}, r"no column 'scores'; it has \['id', 'logits'\]"),
        ({"id_column": "key"}, r"no column 'key'; it has \['id', 'logits'\]"),
        ({"ids": pa.array([], pa.int64()), "values": pa.array([], pa.list_(pa.float32()))}, "holds no rows"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"teachers\.predictions: .*member\.parquet: .*" + message):
        read(tmp_path, **fields)


@pytest.mark.parametrize(
    ("row", "shown"), [([0.5, 0.2, 0.1], "0.8000"), ([1.5, -0.5, 0.0], "1.0000"), ([3.0, 1.0, 2.0], "6.0000")]
)
def test_logits_given_as_probabilities_are_noticed(tmp_path: Path, row: list[float], shown: str) -> None:
    path, files = given(tmp_path, values=[[1.0, 0.0, 0.0], row, [0.0, 1.0, 0.0]], kind="probabilities")
    with pytest.raises(InputError, match=rf"id 1 is no distribution \(sum {shown}\); set .*values=logits"):
        align(path, files, np.arange(3), 3)


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    path, files = given(tmp_path)
    Path(path).write_text("id,logits\n")
    with pytest.raises(InputError, match="member.parquet: cannot be read as Parquet: "):
        align(path, files, np.arange(3), 3)


def test_fingerprint_is_the_content(tmp_path: Path) -> None:
    path, files = given(tmp_path)
    first = predictions_fingerprint(files)
    moved = tmp_path / "elsewhere.parquet"
    Path(path).rename(moved)
    assert predictions_fingerprint(PredictionsConfig(train=[str(moved)])) == first
    given(tmp_path, values=LOGITS[::-1])
    assert predictions_fingerprint(files) != first


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    path, _ = given(tmp_path)
    files = PredictionsConfig(train=[path, f"{tmp_path}/a"], test=[f"{tmp_path}/b", path])
    with pytest.raises(InputError) as error:
        predictions_fingerprint(files)
    assert error.value.problems == [f"teachers.predictions: no such file: {tmp_path}/{n}" for n in "ab"]
