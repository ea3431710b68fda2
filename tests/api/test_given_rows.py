"""Rows of every kind become one table a split; what cannot is a ValueError with what, got, fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ensemble_kd.api.frames import write_rows
from ensemble_kd.api.tables import rows_of, splits_of

X = np.arange(12, dtype=np.float64).reshape(4, 3)
Y = ["a", "b", "a", "b"]


class Streams:
    """A library's table that hands over Arrow streams, as polars' does."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(X[i]), i % 2


def huggingface() -> Any:
    import datasets

    return datasets.Dataset.from_dict({"text": Y, "label": [0, 1, 0, 1]})


TABLE = pa.table({"x": [1.0, 2.0], "label": ["a", "b"]})


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (pd.DataFrame({"x": [1.0, 2.0], 3: ["a", "b"]}), ["x", "3"]),
        (TABLE, ["x", "label"]),
        (Streams(TABLE), ["x", "label"]),
        (huggingface(), ["text", "label"]),
        ((X, Y), ["input", "label"]),
        ((X.tolist(), pd.Series(Y)), ["input", "label"]),
        ((["one text", "two", "3", "4"], [1, 2, 1, 2]), ["input", "label"]),
        ((pd.DataFrame({"x": [1, 2, 3, 4]}), Y), ["x", "label"]),
        (TensorDataset(torch.from_numpy(X), torch.tensor([0, 1, 0, 1])), ["input", "label"]),
        (Pairs(), ["input", "label"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_of_every_kind(data: Any, names: list[str]) -> None:
    rows = rows_of(data, "train")
    assert rows.table.column_names == names and len(rows) in (2, 4)


def test_arrays_keep_their_values() -> None:
    rows = rows_of((X, np.array([1.0, np.nan, 2.0, 1.0])), "train")
    assert np.array_equal(np.stack(rows.table["input"].to_numpy()), X)
    assert rows.table["label"].to_pylist() == [1.0, None, 2.0, 1.0]
    pictures = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    rows = rows_of((pictures, Y), "train")
    assert rows.shape == (2, 3, 3) and rows.table["input"][1].as_py() == pictures[1].tobytes()
    whole = rows_of((np.ones((4, 5, 6)) * 7.0, Y), "train")
    assert whole.shape == (5, 6, 1) and whole.table["input"][0].as_py() == bytes([7] * 30)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((X, Y[:3]), "X has 4 rows, y has 3; give a label for each row"),
        ((X * np.nan, Y), "contains NaN in 4 of 4 rows (row 0, column 0 first)"),
        ((X * 1e300, Y), "as float32, contains infinity"),
        ((X[0], Y[:3]), "X.reshape(-1, 1)"),
        ((X, ["a", 1, "b", 2]), "mixed types, str (2 rows) and int (2 rows)"),
        ((X, np.eye(4)), "of one-hot rows give y.argmax(1)"),
        ((np.random.rand(4, 8, 8), Y), "(255 * X).round().astype('uint8')"),
        ((np.zeros((4, 3, 8, 8), np.uint8), Y), "channels come last: X.transpose(0, 2, 3, 1)"),
        (([[1, 2], [3]], [0, 1]), "give rows of equal length"),
        (X, "ndarray without labels; give the pair (train_X, train_y)"),
        (pd.DataFrame({"x": [1, 2], "y": ["a", 1]}), "column 'y': mixed types"),
        (pd.DataFrame({"x": []}), "no rows"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "several columns are called 'x'"),
        (DataLoader(Pairs()), "give its data set, loader.dataset"),
        (3, "int cannot be read as rows; give a pandas"),
    ],
)
def test_rows_that_cannot_be_used(data: Any, says: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="(?s).*") as caught:
        rows_of(data, "train")
    assert says in str(caught.value), caught.value


def test_splits_of_a_dict() -> None:
    found = splits_of({"dev": 1, "train": 2, "extra": 3})
    assert found == {"train": 2, "validation": 1}
    with pytest.raises(ValueError, match="without 'train'"):
        splits_of({"text": [1], "label": [2]})


def test_the_same_rows_are_written_once(tmp_path: Path) -> None:
    folders = {write_rows(tmp_path, {"train": rows_of((X, Y), "train")}) for _ in range(2)}
    other = write_rows(tmp_path, {"train": rows_of((X + 1, Y), "train")})
    assert len(folders) == 1 and other not in folders
    assert sorted(path.name for path in (tmp_path / "input").iterdir()) == sorted(
        folder.name for folder in {other, *folders}
    )
