"""Rows that occur twice: counted, told with their places, and dropped from train where that is asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, make_images, png, told_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import Config
from ensemble_kd.data.copies import Copies, copy_remarks, hashes, to_drop
from ensemble_kd.data.prepared import prepare, raw_rows
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import InputError
from ensemble_kd.stages import augment as augment_stage
from ensemble_kd.stages import data as data_stage

SPLITS = ("transfer", "validation", "test")


def config_of(folder: Path, inputs: Any, labels: Any, name: str = "train", **data: Any) -> Config:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": inputs, "y": labels}), folder / f"{name}.parquet")
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | data))


def doubled(rows: int = 100) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(np.arange(float(rows)), 2), np.tile(np.arange(rows) % 2, 2)


def test_leaks_of_a_cut_are_counted(tmp_path: Path) -> None:
    config = config_of(tmp_path / "in", *doubled())
    told = told_of(config, tmp_path / "out")
    parts = {split: load_split(tmp_path / "out", split).inputs[:, 0] for split in SPLITS}
    for split in ("validation", "test"):
        count = int(np.isin(parts[split], parts["transfer"]).sum())
        assert count > 0
        expected = (
            f"{split}: {count} of {len(parts[split])} rows have an input that is in train too (first: row "
        )
        assert any(line.startswith(expected) for line in told)
    again = len(parts["transfer"]) - len(np.unique(parts["transfer"]))
    assert any(line.startswith(f"train: {again} of {len(parts['transfer'])} rows have") for line in told)


def test_dropping_leaves_each_input_once(tmp_path: Path) -> None:
    config = config_of(tmp_path / "in", *doubled(), duplicates="drop")
    assert told_of(config, tmp_path / "out") == [
        "train: 100 of 200 rows left out as copies (data.duplicates: drop)"
    ]
    parts = [load_split(tmp_path / "out", split).inputs[:, 0] for split in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert [len(part) for part in parts] == [70, 10, 20]
    # What other stages read are the same rows.
    raw = list(raw_rows(config))
    for split, part in zip(SPLITS, parts, strict=True):
        np.testing.assert_array_equal(
            np.concatenate([rows[:, 0] for name, _, rows in raw if name == split]), part
        )


def test_rows_of_given_splits_are_dropped_from_train(tmp_path: Path) -> None:
    config_of(tmp_path / "in", [3.0, 5.0, 200.0], [1, 1, 0], "test")
    config_of(tmp_path / "in", [4.0, 300.0], [0, 0], "validation")
    inputs, labels = np.arange(100.0), np.arange(100) % 2
    told = told_of(config_of(tmp_path / "in", inputs, labels), tmp_path / "out")
    assert told[0] == (
        "test: 2 of 3 rows have an input that is in train too (first: row 0 of test.parquet, as row 3 of "
        "train.parquet), so that they say nothing of new ones; set data.duplicates=drop, and train goes "
        "without them"
    )
    assert told[1].startswith("validation: 1 of 2 rows")
    config = config_of(tmp_path / "in", inputs, labels, duplicates="drop")
    assert told_of(config, tmp_path / "out")[0].startswith("train: 3 of 100 rows left out")
    assert not np.isin(load_split(tmp_path / "out", "transfer").inputs, [3, 4, 5]).any()
    assert len(load_split(tmp_path / "out", "test").inputs) == 3


def test_contradictions_are_told(tmp_path: Path) -> None:
    inputs, labels = np.arange(100.0), np.arange(100) % 2
    inputs[40], labels[40] = 7.0, 0  # row 7 is 1
    told = told_of(config_of(tmp_path / "in", inputs, labels), tmp_path / "out")
    (line,) = (line for line in told if "more than one label" in line)
    assert line.startswith("data.columns.label: 1 input occurs with more than one label (first: row ")
    assert "row 7 of train.parquet is '1'" in line and "row 40 of train.parquet is '0'" in line


def test_without_copies_nothing_changes(tmp_path: Path) -> None:
    inputs, labels = np.random.default_rng(0).permutation(np.arange(300.0)), np.arange(300) % 3
    for option in ("keep", "drop"):
        config = config_of(tmp_path / "in", inputs, labels, duplicates=option, label_fraction=0.5)
        assert told_of(config, tmp_path / option) == []
    names = sorted(path.name for path in (tmp_path / "keep").iterdir())
    for name in names:
        assert (tmp_path / "keep" / name).read_bytes() == (tmp_path / "drop" / name).read_bytes()


def test_the_option_counts_for_the_fingerprint_only_where_it_is_set(tmp_path: Path) -> None:
    keep = config_of(tmp_path / "in", *doubled())
    settings = data_stage.plan(keep, tmp_path).config["data"]
    assert "duplicates" not in settings and "splits" not in settings
    drop = config_of(tmp_path / "in", *doubled(), duplicates="drop")
    assert data_stage.plan(drop, tmp_path).fingerprint != data_stage.plan(keep, tmp_path).fingerprint
    texts: dict[str, Any] = {"kind": "text", "text_augment": {}}
    plans = [
        augment_stage.plan(config_of(tmp_path / "in", ["a", "b"], [0, 1], **texts, **more), tmp_path)
        for more in ({}, {"duplicates": "drop"})
    ]
    assert "duplicates" not in plans[0].config["data"]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_values_texts_and_images(tmp_path: Path) -> None:
    value = config_of(tmp_path / "a", *doubled(), target="value")
    assert any("rows have the input of another" in line for line in told_of(value, tmp_path / "out-a"))
    texts = [f"text {i % 50}" for i in range(100)]
    text = config_of(tmp_path / "b", texts, np.arange(100) % 2, kind="text", duplicates="drop")
    assert told_of(text, tmp_path / "out-b")[-1].startswith("train: 50 of 100 rows left out")
    pixels = make_images(50)
    rows = [png(pixels[i % 50]) if i % 3 else pixels[i % 50].tobytes() for i in range(100)]
    image = config_of(tmp_path / "c", rows, np.arange(100) % 2, kind="image", image={"shape": [5, 4, 3]})
    told = told_of(image, tmp_path / "out-c")  # the same pixels, as PNG or as they are
    assert any("rows have the input of another" in line for line in told)


def test_dropping_leaves_too_little(tmp_path: Path) -> None:
    config = config_of(tmp_path / "in", np.zeros(100), np.arange(100) % 2, duplicates="drop")
    with pytest.raises(InputError, match="train holds only the class '0'"):
        prepare(config, tmp_path / "out")


@settings(max_examples=200, deadline=None)
@given(
    train=st.lists(st.integers(0, 12), max_size=40),
    test=st.lists(st.integers(0, 12), max_size=10),
    labels=st.lists(st.integers(-1, 2), min_size=40, max_size=40),
)
def test_what_is_dropped(train: list[int], test: list[int], labels: list[int]) -> None:
    inputs = Copies()
    inputs.add("train", [str(x) for x in train])
    inputs.add("test", [str(x) for x in test])
    known = np.array(labels[: len(train)], np.int64)
    dropped = to_drop(inputs, known)
    kept = [x for x, gone in zip(train, dropped, strict=True) if not gone]
    assert sorted(kept) == sorted(set(train) - set(test))
    for x in kept:  # the first with a label, or else the first
        rows = [i for i, other in enumerate(train) if other == x]
        best = next((i for i in rows if known[i] >= 0), rows[0])
        assert not dropped[best]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 2)), min_size=1, max_size=40))
def test_counts_are_those_of_sets(rows: list[tuple[int, int]]) -> None:
    part = np.arange(len(rows)) % 3
    names = ("train", "validation", "test")
    inputs = {
        s: hashes([str(x) for (x, _), p in zip(rows, part, strict=True) if p == i])
        for i, s in enumerate(names)
    }
    labels = {
        s: np.array([y for (_, y), p in zip(rows, part, strict=True) if p == i], np.int64)
        for i, s in enumerate(names)
    }
    lines = copy_remarks(inputs, labels, lambda split, row: f"row {row} of {split}", list("abc"))
    train = [x for i, (x, _) in enumerate(rows) if part[i] == 0]
    leaked = sum(x in train for i, (x, _) in enumerate(rows) if part[i] == 2)
    assert any(line.startswith(f"test: {leaked} of ") and "in train" in line for line in lines) == (
        leaked > 0
    )
    torn = {x for x, y in rows if y >= 0 and any(a == x and b not in (y, -1) for a, b in rows)}
    assert any(line.startswith(f"data.columns.label: {len(torn)} input") for line in lines) == bool(torn)


def test_a_million_rows_take_seconds() -> None:
    numbers = np.random.default_rng(0).normal(size=(1_000_000, 8)).astype(np.float32)
    numbers[500_000:500_100] = numbers[:100]
    began, inputs = time.perf_counter(), Copies()
    for i in range(0, len(numbers), 8192):
        inputs.add("train", numbers[i : i + 8192])
    labels = np.zeros(len(numbers), np.int64)
    assert to_drop(inputs, labels).sum() == 100
    assert time.perf_counter() - began < 10  # 0.6 s on a quiet core


def test_hashes_tell_rows_apart() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (5000, 64)).astype(np.uint8)
    assert len(np.unique(hashes(bits))) == len(np.unique(bits, axis=0))
    turned = hashes(np.array([[1, 2], [2, 1], [1, 2]], np.float32))
    assert turned[0] == turned[2] != turned[1]
    assert len(set(hashes(np.array([[0.0], [-0.0]], np.float32)))) == 1
    assert len(set(hashes([("a", "b"), ("ab", ""), ("a", "b")]))) == 2
