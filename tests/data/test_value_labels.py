"""Labels that are values: read, checked, split and stored; those of classes stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from data_cases import make_config

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import DataInfo, load_labels, load_split
from ensemble_kd.errors import InputError
from ensemble_kd.stages import data as data_stage

ROWS = 40


def scores(rows: int = ROWS) -> np.ndarray:
    """All different, both signs, -1 among them."""
    return np.arange(rows) * 0.5 - 5.0


def config_of(folder: Path, labels: Any, csv: bool = False, **data: Any) -> Config:
    table = pa.table({"x": np.arange(float(len(labels))), "y": labels})
    if csv:
        pacsv.write_csv(table, folder / "train.csv")
    else:
        pq.write_table(table, folder / "train.parquet")
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | {"target": "value"} | data))


def problems_of(config: Config, folder: Path) -> list[str]:
    """What `prepare` reports; `inspect_source` must say the same."""
    with pytest.raises(InputError) as caught:
        prepare(config, folder / "out")
    assert inspect_source(config) == caught.value.problems
    return caught.value.problems


@pytest.mark.parametrize("csv", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_values_are_kept_as_float32(tmp_path: Path, csv: bool, whole: bool) -> None:
    labels = np.arange(ROWS) - 3 if whole else scores()
    info, _ = prepare(config_of(tmp_path, labels, csv), tmp_path / "out")
    assert (info.num_classes, info.class_names) == (1, [])
    found = []
    for split in ("transfer", "validation", "test"):
        part = load_split(tmp_path / "out", split)
        assert part.labels.dtype == np.float32
        # Ids are row numbers, and the input is the row's number too: labels stay with their rows.
        np.testing.assert_array_equal(part.labels, labels[part.ids].astype(np.float32))
        np.testing.assert_array_equal(part.inputs[:, 0], part.ids)
        found.append(part.labels)
    assert info.target is not None
    assert info.target["mean"] == pytest.approx(found[0].mean())
    assert info.target["std"] == pytest.approx(found[0].std())  # population
    assert (info.counts["validation"], info.counts["test"]) == (4, 8)  # 10% and 20%, of no classes
    assert DataInfo.from_dict(info.to_dict()) == info


def test_negative_values_are_labels_and_nan_is_none(tmp_path: Path) -> None:
    extra = tmp_path / "extra.parquet"
    pq.write_table(pa.table({"x": np.arange(6.0)}), extra)
    folder = tmp_path / "in"
    folder.mkdir()
    config = config_of(folder, scores(), label_fraction=0.5, unlabelled=str(extra))
    info, _ = prepare(config, tmp_path / "out")
    labels = load_labels(tmp_path / "out", "transfer")
    assert info.counts["labelled"] == int((~np.isnan(labels)).sum()) == 14
    assert info.counts["transfer"] == 28 + 6
    assert np.isnan(labels[-6:]).all()
    assert (labels < 0).any() and labelled(labels).sum() == 14
    known = labels[~np.isnan(labels)]
    assert info.target == {"mean": pytest.approx(known.mean()), "std": pytest.approx(known.std())}


def test_labelled_of_classes_and_values() -> None:
    codes, numbers = np.array([-1, 0, 3]), np.array([np.nan, -1.0, 0.0], np.float32)
    for array in (codes, numbers):
        assert labelled(array).tolist() == [False, True, True]
        assert labelled(torch.from_numpy(array)).tolist() == [False, True, True]


def test_rows_without_a_finite_number_are_told_one_by_one(tmp_path: Path) -> None:
    labels = scores().tolist()
    labels[3], labels[7], labels[9], labels[11] = None, float("nan"), float("inf"), 1e300  # not of float32
    remedy = "a value is a finite number; rows without one belong into data.unlabelled"
    assert problems_of(config_of(tmp_path, labels), tmp_path) == [
        f"row {row} of train.parquet: label {shown}: {remedy}"
        for row, shown in ((3, "null"), (7, "nan"), (9, "inf"), (11, "1e+300"))
    ]


def test_text_in_a_csv_file_is_told(tmp_path: Path) -> None:
    labels = [str(value) for value in scores()]
    labels[5], labels[6] = "high", ""
    first, second = problems_of(config_of(tmp_path, labels, csv=True), tmp_path)
    assert first.startswith("row 5 of train.csv: label 'high': a value is a finite number")
    assert second.startswith("row 6 of train.csv: label null: ")


def test_rows_of_validation_need_a_value(tmp_path: Path) -> None:
    config = config_of(tmp_path, scores())
    table = pa.table({"x": [1.0, 2.0], "y": pa.array([None, 2.0])})
    pq.write_table(table, tmp_path / "validation.parquet")
    (line,) = problems_of(config, tmp_path)
    assert line.startswith("row 0 of validation.parquet: label null: ")


@pytest.mark.parametrize(
    "labels, expected",
    [
        (
            np.full(ROWS, 2.5),
            "data.columns.label: train holds only the value 2.5; there is nothing to predict",
        ),
        (np.arange(ROWS) % 2 == 0, "data.columns: 'y' of train.parquet holds bool, expected numbers"),
    ],
)
def test_labels_that_teach_nothing(tmp_path: Path, labels: np.ndarray, expected: str) -> None:
    assert expected in problems_of(config_of(tmp_path, labels), tmp_path)


def test_withheld_test_labels_are_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, scores())
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [-1.0, -1.0]}), tmp_path / "test.parquet")
    (line,) = problems_of(config, tmp_path)
    assert line.startswith(
        "data.columns.label: test holds only the value -1.0, by which nothing can be judged"
    )


def test_label_fraction_that_leaves_one_value(tmp_path: Path) -> None:
    config = config_of(tmp_path, scores(), label_fraction=0.02)
    assert any("data.label_fraction: the 1 labelled rows" in line for line in problems_of(config, tmp_path))


def test_what_classes_write_says_nothing_of_values(tmp_path: Path) -> None:
    config = config_of(tmp_path, np.arange(ROWS) % 2, target="class")
    info, _ = prepare(config, tmp_path / "out")
    assert "target" not in info.to_dict()
    assert load_labels(tmp_path / "out", "transfer").dtype == np.int64
    assert "target" not in data_stage.plan(config, tmp_path).config["data"]
    other = config.model_copy(update={"data": config.data.model_copy(update={"target": "value"})})
    assert data_stage.plan(other, tmp_path).config["data"]["target"] == "value"
