"""The store of soft targets: exact, small, and never half there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble_kd.artifacts import Manifest, checksum
from ensemble_kd.data.records import shard_paths
from ensemble_kd.data.store import Kept, ShardWriter, StoreLayout, load_columns, read_shard, shard_name
from ensemble_kd.errors import ArtifactError
from ensemble_kd.stages.training_data import shards_of


def columns(layout: StoreLayout, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (100 * generator.normal(size=(rows, *shape))).astype(kind)
        for name, (shape, kind) in layout.columns().items()
    }


def write(folder: Path, layout: StoreLayout, shards: list[int], batch: int = 1024) -> dict[str, np.ndarray]:
    """Shards of so many rows; returns what is in them."""
    held, first = columns(layout, sum(shards)), 0
    for number, rows in enumerate(shards):
        writer = ShardWriter(folder / shard_name(number), layout)
        for begin in range(first, first + rows, batch):
            part = slice(begin, min(begin + batch, first + rows))
            writer.write(np.arange(part.start, part.stop), **{k: v[part] for k, v in held.items()})
        entry = writer.close()
        path = folder / shard_name(number)
        assert entry == {"bytes": path.stat().st_size, "sha256": checksum(path), "rows": rows}
        first += rows
    return held


def names(count: int) -> list[str]:
    return [shard_name(i) for i in range(count)]


LAYOUTS = [
    StoreLayout(1, 1, 2),
    StoreLayout(3, 5, 10),
    StoreLayout(2, 4, 50, top_k=7),
    StoreLayout(1, 2, 40000, top_k=3),
    StoreLayout(1, 2, 3, kept=Kept((0, 2), (1, 2), 2, 8, 4, 6)),
    StoreLayout(1, 1, 9, top_k=2, kept=Kept((2,), (), 2, 8, 4, 6, first_only=True, dtype="float32")),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(tmp_path: Path, layout: StoreLayout) -> None:
    held = write(tmp_path, layout, [50, 33, 1], batch=16)
    found = load_columns(tmp_path, names(3), layout, 84)
    assert found.keys() == held.keys()
    for name, array in found.items():
        assert array.dtype == held[name].dtype and np.array_equal(array, held[name])
    rows, part = read_shard(tmp_path / shard_name(1), layout)
    assert np.array_equal(rows, np.arange(50, 83))
    assert all(np.array_equal(part[name], held[name][50:83]) for name in part)


def test_class_numbers_take_two_bytes_as_long_as_they_fit() -> None:
    widths = [StoreLayout(1, 1, classes, 1).columns()["indices"][1] for classes in (10, 32768, 32769)]
    assert widths == [np.int16, np.int16, np.int32]


def test_what_is_kept_beside_logits_has_a_fixed_size() -> None:
    kept = Kept((0, 2), (1, 2), 2, 8, 4, 6)
    layout = StoreLayout(1, 3, 10, kept=kept)
    columns = layout.columns()
    assert columns["hidden"] == ((1, 3, 2, 6, 8), np.float16)
    assert columns["attention"] == ((1, 3, 2, 4, 6, 6), np.float16)
    assert layout.bytes_per_row == 2 * 3 * (10 + 2 * 6 * 8 + 2 * 4 * 6 * 6)
    first = replace(kept, attention=(), first_only=True, dtype="float32").columns(1, 3)
    assert first == {"hidden": ((1, 3, 2, 1, 8), np.float32)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_comes_back_from_json(layout: StoreLayout) -> None:
    fields = json.loads(json.dumps(layout.to_dict()))
    assert StoreLayout(**fields) == layout
    # As before there was anything to keep: what is written down of a store of logits has not changed.
    assert layout.kept is not None or fields.keys() == {"views", "members", "classes", "top_k"}


def test_logits_alone_are_read_without_the_rest(tmp_path: Path) -> None:
    layout = LAYOUTS[-2]
    held = write(tmp_path, layout, [7, 3])
    found = load_columns(tmp_path, names(2), layout.logits_alone, 10)
    assert found.keys() == {"logits"} and np.array_equal(found["logits"], held["logits"])
    alone = StoreLayout(1, 2, 3)
    write(tmp_path, alone, [4])
    with pytest.raises(ArtifactError, match="part-00000.parquet: column 'hidden' of 384 bytes expected"):
        read_shard(tmp_path / shard_name(0), layout)


@pytest.mark.parametrize(
    ("members", "classes", "views", "rows"),
    [(5, 10, 1, 1000), (1, 10, 1, 8192), (10, 77, 4, 500), (1, 2, 1, 8192)],
)
def test_size_on_disk_is_the_numbers_and_little_else(
    tmp_path: Path, members: int, classes: int, views: int, rows: int
) -> None:
    layout = StoreLayout(views, members, classes)
    write(tmp_path, layout, [rows])
    wanted = 2 * members * classes * views
    assert layout.bytes_per_row == wanted
    assert (tmp_path / shard_name(0)).stat().st_size <= 1.1 * wanted * rows


def test_many_classes_make_no_page_over_the_limit(tmp_path: Path) -> None:
    """Arrow would put 1024 rows into one page, and a page must stay below 2 GB."""
    layout = StoreLayout(2, 4, 150_000)  # 2.4 MB a row
    held = write(tmp_path, layout, [20])
    _, found = read_shard(tmp_path / shard_name(0), layout)
    assert np.array_equal(found["logits"], held["logits"])
    path = tmp_path / shard_name(0)
    # Each page has a header: with one page for all rows there would be some 550 bytes beside the numbers.
    overhead = path.stat().st_size - held["logits"].nbytes
    assert overhead > 800


def test_nothing_appears_before_the_shard_is_whole(tmp_path: Path) -> None:
    layout = LAYOUTS[1]
    writer = ShardWriter(tmp_path / shard_name(0), layout)
    writer.write(np.arange(5), **columns(layout, 5))
    assert not (tmp_path / shard_name(0)).exists()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_aborting_removes_the_file_even_if_it_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ShardWriter(tmp_path / shard_name(0), LAYOUTS[0])
    close = writer.writer.close

    class Full:
        @staticmethod
        def close() -> None:
            close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "writer", Full)
    with pytest.raises(OSError, match="No space"):
        writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_new_attempt_replaces_the_old_shard(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    write(tmp_path, layout, [10])
    held = write(tmp_path, layout, [20])
    assert np.array_equal(load_columns(tmp_path, names(1), layout, 20)["logits"], held["logits"])


# ------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    write(tmp_path, LAYOUTS[1], [40])
    path = tmp_path / shard_name(0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=f"{path}: not a readable shard of soft targets"):
        read_shard(path, LAYOUTS[1])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="part-00007.parquet"):
        read_shard(tmp_path / shard_name(7), LAYOUTS[1])


def test_a_store_of_another_shape_is_named(tmp_path: Path) -> None:
    write(tmp_path, StoreLayout(1, 5, 10), [4])
    with pytest.raises(ArtifactError, match="part-00000.parquet: column 'logits' of 120 bytes expected"):
        read_shard(tmp_path / shard_name(0), StoreLayout(1, 6, 10))
    with pytest.raises(ArtifactError, match="column 'values' of 30 bytes expected"):
        read_shard(tmp_path / shard_name(0), StoreLayout(1, 5, 10, top_k=3))


def test_a_parquet_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    pq.write_table(pa.table({"colour": ["red"]}), path)
    with pytest.raises(
        ArtifactError, match="part-00000.parquet: column 'row' expected; the schema is colour"
    ):
        read_shard(path, LAYOUTS[0])


def test_rows_missing_repeated_or_out_of_order(tmp_path: Path) -> None:
    layout = LAYOUTS[1]
    write(tmp_path, layout, [10, 10, 5])
    with pytest.raises(ArtifactError, match="20 rows of soft targets for 25 rows of the transfer set"):
        load_columns(tmp_path, names(2), layout, 25)
    with pytest.raises(ArtifactError, match="part-00002.parquet: holds other rows than 20 to 24, of 24"):
        load_columns(tmp_path, names(3), layout, 24)
    with pytest.raises(ArtifactError, match="part-00001.parquet: holds other rows than 0 to 9, of 25"):
        load_columns(tmp_path, [shard_name(1), shard_name(0), shard_name(2)], layout, 25)
    with pytest.raises(ArtifactError, match="part-00000.parquet: holds other rows than 10 to 19"):
        load_columns(tmp_path, [shard_name(0)] * 2, layout, 25)


def test_shards_stay_in_order_beyond_five_digits(tmp_path: Path) -> None:
    """100,000 shards of 8,192 rows are 819 million examples."""
    names = [f"transfer-{number}.parquet" for number in ("00009", "99999", "100000", "100001", "1000000")]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in shard_paths(tmp_path, "transfer")] == names
    parts = [shard_name(number) for number in (9, 99_999, 100_000, 100_001, 1_000_000)]
    manifest = Manifest("soft_targets", "0", {}, {}, {part: {} for part in [*reversed(parts), "x.json"]})
    assert shards_of(manifest) == parts
