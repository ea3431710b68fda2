"""Hold-outs: stratified, seeded, complete; statistics from train alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.data.splits import TEST, TRAIN, VALIDATION, plan_splits, random_keys

label_lists = st.lists(st.integers(-1, 5), min_size=1, max_size=300).map(np.array)


@settings(max_examples=200, deadline=None)
@given(
    labels=label_lists,
    seed=st.integers(0, 2**31 - 1),
    validation=st.floats(0.01, 0.45),
    test=st.none() | st.floats(0.01, 0.45),
)
def test_holdout_is_stratified(labels: np.ndarray, seed: int, validation: float, test: float | None) -> None:
    plan = plan_splits(labels, 6, seed, validation, test)
    assert (plan.part[labels < 0] == TRAIN).all()
    for label in range(6):
        of_class = plan.part[labels == label]
        if len(of_class):
            assert (of_class == TRAIN).any()
        for part, fraction in ((VALIDATION, validation), (TEST, test or 0.0)):
            drawn, exact = int((of_class == part).sum()), len(of_class) * fraction
            assert drawn <= exact + 1
            room = int((of_class == part).sum() + (of_class == TRAIN).sum()) - 1  # train keeps its row
            assert drawn >= min(exact - 1, room)
    np.testing.assert_array_equal(plan.part, plan_splits(labels, 6, seed, validation, test).part)
    np.testing.assert_array_equal(plan.labels, labels)


def test_holdout_has_the_size_asked_for() -> None:
    labels = np.repeat(np.arange(77), 13)  # 1.3 rows per class: rounding each class would give 77
    plan = plan_splits(labels, 77, 0, 0.1, None)
    assert (plan.part == VALIDATION).sum() == 100


def test_another_seed_draws_other_rows() -> None:
    labels = np.arange(1000) % 10
    first, second = (plan_splits(labels, 10, seed, 0.1, 0.1).part for seed in (0, 1))
    assert (first != second).any()
    assert ((first == VALIDATION) & (first == TEST)).sum() == 0


def test_draw_is_the_same_on_every_machine() -> None:
    assert random_keys(7, 1, 3).tolist() == random_keys(7, 1, 5)[:3].tolist()
    labels = np.arange(40) % 2
    plan = plan_splits(labels, 2, 0, 0.1, None)
    assert np.flatnonzero(plan.part == VALIDATION).tolist() == [7, 8, 34, 35]


@settings(max_examples=200, deadline=None)
@given(labels=label_lists, seed=st.integers(0, 100), fraction=st.floats(0.001, 1.0))
def test_label_fraction(labels: np.ndarray, seed: int, fraction: float) -> None:
    plan = plan_splits(labels, 6, seed, None, None, fraction)
    kept = plan.labels >= 0
    np.testing.assert_array_equal(plan.labels[kept], labels[kept])
    assert (plan.part == TRAIN).all()
    for label in np.unique(labels[labels >= 0]):
        count, drawn = int((labels == label).sum()), int((plan.labels == label).sum())
        assert max(1, count * fraction - 1) <= drawn + 1e-9
        assert drawn <= max(1, count * fraction + 1)


def test_label_fraction_leaves_the_other_splits_labelled(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(200.0), "y": np.arange(200) % 4})
    pq.write_table(table, tmp_path / "a.parquet")
    config = make_config(
        path=str(tmp_path / "a.parquet"),
        kind="numeric",
        columns={"input": "x", "label": "y"},
        label_fraction=0.1,
    )
    info, _ = prepare(config, tmp_path / "out")
    assert info.counts == {"train": 140, "validation": 20, "test": 40, "transfer": 140, "labelled": 14}
    transfer = load_split(tmp_path / "out", "transfer")
    assert (transfer.labels >= 0).sum() == 14
    assert set(transfer.labels) == {-1, 0, 1, 2, 3}
    for split in ("validation", "test"):
        assert (load_split(tmp_path / "out", split).labels >= 0).all()


def test_statistics_come_from_train_rows_alone(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal([5, -100], [1, 20], (500, 2)).astype(np.float32)
    rows = np.concatenate([rows, np.full((500, 1), 0.1, np.float32)], axis=1)  # the last never changes
    table = pa.table({"x": rows.tolist(), "y": np.arange(500) % 4})
    pq.write_table(table, tmp_path / "a.parquet")
    config = make_config(
        path=str(tmp_path / "a.parquet"), kind="numeric", columns={"input": "x", "label": "y"}, shard_rows=37
    )
    info, _ = prepare(config, tmp_path / "out")
    train = load_split(tmp_path / "out", "transfer").inputs.astype(np.float64)
    assert len(train) == 350
    assert info.mean == pytest.approx(train.mean(axis=0).tolist(), rel=1e-6)
    assert info.std[:2] == pytest.approx(train.std(axis=0)[:2].tolist(), rel=1e-6)
    assert info.std[2] == 1.0
    assert info.mean != pytest.approx(rows.mean(axis=0).tolist(), rel=1e-6)


def test_image_statistics(tmp_path: Path) -> None:
    images = make_images(100, (3, 4, 3))
    images[..., 2] = 51  # a constant channel
    table = pa.table({"input": [image.tobytes() for image in images], "label": np.arange(100) % 2})
    pq.write_table(table, tmp_path / "a.parquet")
    config = make_config(path=str(tmp_path / "a.parquet"), image={"shape": [3, 4, 3]}, shard_rows=9)
    prepare(config, tmp_path / "out")
    info = load_info(tmp_path / "out")
    train = load_split(tmp_path / "out", "transfer").inputs / 255
    assert info.mean == pytest.approx(train.mean(axis=(0, 1, 2)).tolist())
    assert info.std == pytest.approx([*train.std(axis=(0, 1, 2))[:2].tolist(), 1.0])
    assert info.mean[2] == pytest.approx(0.2)


def test_shards_are_bounded_and_numbered(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(100.0), "y": np.arange(100) % 2})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = {"input": "x", "label": "y"}
    for shard_rows in (7, 30, 1000):  # each run replaces the files of the one before
        config = make_config(
            path=str(tmp_path / "a.parquet"), kind="numeric", columns=columns, shard_rows=shard_rows
        )
        _, files = prepare(config, tmp_path / "out")
        shards = [name for name in files if name.startswith("transfer")]
        sizes = [pq.read_metadata(tmp_path / "out" / name).num_rows for name in shards]
        assert sum(sizes) == 70
        assert all(size == shard_rows for size in sizes[:-1])
        rows = np.concatenate([pq.read_table(tmp_path / "out" / name)["row"] for name in shards])
        assert rows.tolist() == list(range(70))
        assert load_split(tmp_path / "out", "transfer").inputs.shape == (70, 1)
