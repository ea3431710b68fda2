"""Numbers that lie absurdly far out are told with column, value and row, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, real_set, told_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.remarks import FarNumbers
from ensemble_kd.errors import InputError


def config_of(folder: Path, table: dict[str, Any], name: str = "train", **data: Any) -> Config:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / f"{name}.parquet")
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | data))


def noise(rows: int = 500) -> np.ndarray:
    return np.random.default_rng(0).normal(size=rows)


@pytest.mark.parametrize("value", [1e38, -1e38, 1e9])
@pytest.mark.parametrize("form", ["column", "columns", "list"])
def test_one_number_far_out(tmp_path: Path, value: float, form: str) -> None:
    numbers = noise()
    numbers[137] = value
    other = noise()[::-1].copy()
    y = np.arange(500) % 2
    if form == "column":
        config, name = config_of(tmp_path / "in", {"x": numbers, "y": y}), "column 'x'"
    elif form == "columns":
        columns = {"input": ["a", "b"], "label": "y"}
        config = config_of(tmp_path / "in", {"a": other, "b": numbers, "y": y}, columns=columns)
        name = "column 'b'"
    else:
        rows = np.stack([other, numbers], axis=1).tolist()
        config, name = config_of(tmp_path / "in", {"x": rows, "y": y}), "column 'x', value 1,"
    (line,) = told_of(config, tmp_path / "out")
    assert line.startswith(
        f"data.columns.input: {name} holds {np.float32(value):g} (row 137 of train.parquet)"
    )


def test_a_number_far_out_in_another_split(tmp_path: Path) -> None:
    config_of(tmp_path / "in", {"x": noise(), "y": np.arange(500) % 2})
    numbers = noise(50)
    numbers[3] = 1e30
    config = config_of(tmp_path / "in", {"x": numbers, "y": np.arange(50) % 2}, "test")
    assert any("row 3 of test.parquet" in line for line in told_of(config, tmp_path / "out"))


def test_numbers_that_overflow_are_an_error(tmp_path: Path) -> None:
    numbers = noise()
    numbers[[5, 9]] = 3e38, -3e38
    config = config_of(tmp_path, {"x": numbers, "y": np.arange(500) % 2})
    (line,) = inspect_source(config)
    assert line.startswith(
        "data.columns.input: column 'x' of train runs from -3e+38 (row 9 of train.parquet) to 3e+38 (row 5 "
        "of train.parquet), further apart than 32-bit numbers reach"
    )
    with pytest.raises(InputError, match="further apart than 32-bit numbers reach"):
        prepare(config, tmp_path / "out")


@pytest.mark.parametrize(
    "numbers",
    [
        np.where(np.arange(500) == 7, 1.0, 0.0),  # a rare feature
        np.where(np.arange(500) % 100 == 7, 99999.0, 0.0),  # capital gains
        np.exp(8 * noise()),  # a heavy tail
        np.full(500, 1e12),
        1e-9 * noise(),
        np.arange(500) * 1e30,
        1.7e9 + np.arange(500),  # times
    ],
)
def test_ordinary_columns_are_not_told(tmp_path: Path, numbers: np.ndarray) -> None:
    config = config_of(tmp_path / "in", {"x": numbers, "y": np.arange(500) % 2})
    assert not [line for line in told_of(config, tmp_path / "out") if "times as far" in line]


def test_a_value_to_predict_that_is_far_out(tmp_path: Path) -> None:
    labels = noise()
    labels[77] = 1e20
    config = config_of(tmp_path / "in", {"x": np.arange(500.0), "y": labels}, target="value")
    (line,) = told_of(config, tmp_path / "out")
    assert line.startswith("data.columns.label: 1e+20 (row 77 of train.parquet) is more than 1,000,000 times")


def test_real_sets_have_none(tmp_path: Path) -> None:
    folder = real_set("adult")
    table = pq.read_table(next(iter(sorted(folder.glob("train*.parquet")))))
    numeric = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    watch = FarNumbers(len(numeric))
    rows = np.stack([table[name].to_numpy() for name in numeric], axis=1).astype(np.float32)
    watch.add(np.nan_to_num(rows), 0)
    assert watch.found() == []


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(20, 3000),
    row=st.integers(0, 2999),
    batch=st.integers(1, 700),
    seed=st.integers(0, 100),
    sign=st.sampled_from([-1, 1]),
)
def test_found_whatever_the_batches(rows: int, row: int, batch: int, seed: int, sign: int) -> None:
    numbers = np.random.default_rng(seed).uniform(1, 2, (rows, 3)).astype(np.float32)
    clean, watch = FarNumbers(3), FarNumbers(3)
    clean.room = watch.room = 64
    row %= rows
    odd = numbers.copy()
    odd[row, 1] = sign * 1e8
    for first in range(0, rows, batch):
        clean.add(numbers[first : first + batch], first)
        watch.add(odd[first : first + batch], first)
    assert clean.found() == []
    assert watch.found() == [(1, row, sign * 1e8)]
    assert watch.kept <= 64
