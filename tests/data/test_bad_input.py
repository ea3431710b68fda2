"""Bad input: every message, all of them at once, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config, make_images, png

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo, load_split, read_shard, shard_paths
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.errors import ArtifactError, InputError


def problems_of(config: Config, folder: Path) -> list[str]:
    """What `prepare` reports; `inspect_source` must say the same."""
    with pytest.raises(InputError) as caught:
        prepare(config, folder / "out")
    assert not list((folder / "out").iterdir())
    assert inspect_source(config) == caught.value.problems
    return caught.value.problems


def numeric(folder: Path, table: dict[str, Any], name: str = "train.parquet", **data: Any) -> Config:
    pq.write_table(pa.table(table), folder / name)
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | data))


def good(rows: int = 40) -> dict[str, Any]:
    return {"x": np.arange(float(rows)), "y": np.arange(rows) % 2}


def test_good_data_has_no_problems(tmp_path: Path) -> None:
    assert inspect_source(numeric(tmp_path, good())) == []


def test_missing_file(tmp_path: Path) -> None:
    config = make_config(path=f"{tmp_path}/no-*.csv", unlabelled=f"{tmp_path}/none.csv")
    expected = [
        f"data.path: no file matches {tmp_path}/no-*.csv",
        f"data.unlabelled: no such file or folder: {tmp_path}/none.csv",
    ]
    assert problems_of(config, tmp_path) == expected
    with pytest.raises(InputError, match="no file matches"):
        source_fingerprint(config.data)


def test_unknown_ending_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    (line,) = problems_of(make_config(path=str(tmp_path / "a.xlsx")), tmp_path)
    assert line.startswith("data.path: ") and "of no known kind; the name must end in one of .parquet" in line
    (line,) = problems_of(make_config(path=str(tmp_path)), tmp_path)
    assert "data.path: no data file in" in line


def test_folder_without_train(tmp_path: Path) -> None:
    (line,) = problems_of(numeric(tmp_path, good(), "test.parquet"), tmp_path)
    assert "data.path: no train.* in" in line and "found test.parquet" in line


@pytest.mark.parametrize("name", ["train.parquet", "train.csv", "train.jsonl", "train.arrow"])
def test_broken_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff{]\nbroken,1,2\n")
    lines = problems_of(make_config(path=str(tmp_path)), tmp_path)
    assert lines[0].startswith(f"{name}: cannot be read as ") or "no column 'input'" in lines[0]


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert problems_of(make_config(path=str(tmp_path)), tmp_path) == [f"{name}: empty"]


def test_no_rows(tmp_path: Path) -> None:
    config = numeric(tmp_path, {"x": pa.array([], pa.float64()), "y": pa.array([], pa.int64())})
    assert problems_of(config, tmp_path) == ["train: no rows in train.parquet"]
    config = numeric(tmp_path, good())
    numeric(tmp_path, {"x": pa.array([], pa.float64()), "y": pa.array([], pa.int64())}, "test.parquet")
    assert problems_of(config, tmp_path) == ["test: no rows in test.parquet"]


def test_missing_columns(tmp_path: Path) -> None:
    columns = {"input": "imgae", "label": "klass", "id": "key"}
    config = numeric(tmp_path, {"image": [1.0], "label": [0]}, columns=columns)
    assert problems_of(config, tmp_path) == [
        "data.columns.input: no column 'imgae' in train.parquet; it has 'image', 'label'; "
        "did you mean 'image'?",
        "data.columns.label: no column 'klass' in train.parquet; it has 'image', 'label'",
        "data.columns.id: no column 'key' in train.parquet; it has 'image', 'label'",
    ]


def test_label_among_the_inputs(tmp_path: Path) -> None:
    config = numeric(tmp_path, good(), columns={"input": ["x", "y"], "label": "y"})
    (line,) = problems_of(config, tmp_path)
    assert line == "data.columns.input: 'y' is the label; a model would only copy it"


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    table = good()
    table["y"][[3, 17]] = [2, -5]
    config = numeric(tmp_path, table, class_names=["no", "yes"])
    assert problems_of(config, tmp_path) == [
        "row 3 of train.parquet: label 2 is outside 0..1, the 2 classes of data.class_names",
        "row 17 of train.parquet: label -5 is outside 0..1, the 2 classes of data.class_names",
    ]
    names: list[str | None] = ["no", "yes"] * 20
    names[5], names[6] = "yess", "2"
    config = numeric(tmp_path, good() | {"y": names}, class_names=["no", "yes"])
    assert problems_of(config, tmp_path) == [
        "row 5 of train.parquet: label 'yess' is not in data.class_names; did you mean 'yes'?",
        "row 6 of train.parquet: label '2' is not in data.class_names",
    ]


def test_fractional_labels_and_class_names(tmp_path: Path) -> None:
    lines = problems_of(numeric(tmp_path, good() | {"y": np.arange(40) / 2}), tmp_path)
    assert "data.columns: 'y' of train.parquet holds numbers that are not whole" in lines[0]
    (tmp_path / "names.txt").write_text("a\nb\na\n")
    lines = problems_of(numeric(tmp_path, good(), class_names="names.txt"), tmp_path)
    assert lines == ["data.class_names: 'a' listed more than once"]
    lines = problems_of(numeric(tmp_path, good(), class_names="labels.txt"), tmp_path)
    assert lines == [f"data.class_names: no such file: {tmp_path}/labels.txt"]


def test_one_class_only(tmp_path: Path) -> None:
    config = numeric(tmp_path, good() | {"y": np.zeros(40, int)})
    assert problems_of(config, tmp_path) == [
        "data.columns.label: train holds only the class '0'; a classifier needs at least two classes"
    ]
    config = numeric(tmp_path, good() | {"y": pa.nulls(40, pa.int64())}, class_names=["a", "b"])
    assert "train holds no label" in problems_of(config, tmp_path)[0]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_class_absent_from_train(tmp_path: Path, split: str) -> None:
    config = numeric(tmp_path, good(), class_names=["a", "b", "c"])
    numeric(tmp_path, {"x": [1.0, 2.0], "y": [0, 2]}, f"{split}.parquet")
    assert problems_of(config, tmp_path) == [
        f"{split}: class 'c' (1 rows) does not occur in train; add train rows of it or remove these"
    ]
    config = numeric(tmp_path, good())
    assert problems_of(config, tmp_path) == [
        f"row 1 of {split}.parquet: label 2 is outside 0..1, the 2 classes of train"
    ]


def test_validation_without_a_label(tmp_path: Path) -> None:
    config = numeric(tmp_path, good())
    numeric(tmp_path, {"x": [1.0, 2.0], "y": [0, None]}, "validation.parquet")
    assert problems_of(config, tmp_path) == [
        "row 1 of validation.parquet: no label; validation rows need one"
    ]


def test_nan_and_more_are_counted(tmp_path: Path) -> None:
    table = good()
    table["x"][5:17] = np.nan
    table["x"][30:32] = np.inf, 1e300
    lines = problems_of(numeric(tmp_path, table), tmp_path)
    assert lines[0] == "row 5 of train.parquet: column 'x' is missing or NaN"
    assert lines[-1] == "... and 4 more rows with bad inputs (14 in all)"
    assert len(lines) == 11
    table["x"][5:17] = 0
    assert problems_of(numeric(tmp_path, table), tmp_path) == [
        "row 30 of train.parquet: column 'x' is inf",
        "row 31 of train.parquet: column 'x' is 1e+300, too large",
    ]


def test_row_numbers_count_in_each_file(tmp_path: Path) -> None:
    for part in range(2):
        table = good()
        table["x"][7 + part] = np.nan
        config = numeric(tmp_path, table, f"train-{part}.parquet", shard_rows=3)
    assert problems_of(config, tmp_path) == [
        "row 7 of train-0.parquet: column 'x' is missing or NaN",
        "row 8 of train-1.parquet: column 'x' is missing or NaN",
    ]


def test_words_among_numbers_in_csv(tmp_path: Path) -> None:
    rows = [f"{i},{i % 2}" for i in range(40)]
    rows[8], rows[9] = "eight,0", ",1"
    (tmp_path / "train.csv").write_text("\n".join(["x,y", *rows]))
    config = make_config(path=str(tmp_path), kind="numeric", columns={"input": "x", "label": "y"})
    assert problems_of(config, tmp_path) == [
        "row 8 of train.csv: column 'x' is 'eight', not a number",
        "row 9 of train.csv: column 'x' is missing or NaN",
    ]


def test_lists_of_other_lengths(tmp_path: Path) -> None:
    rows: list[Any] = [[1.0, 2.0]] * 40
    rows[3], rows[4], rows[5] = [1.0], None, [1.0, None]
    assert problems_of(numeric(tmp_path, good() | {"x": rows}), tmp_path) == [
        "row 3 of train.parquet: 1 values, expected 2",
        "row 4 of train.parquet: missing (null)",
        "row 5 of train.parquet: value 1 is missing or NaN",
    ]


def images(folder: Path, rows: list[Any], **data: Any) -> Config:
    pq.write_table(pa.table({"input": rows, "label": np.arange(len(rows)) % 2}), folder / "train.parquet")
    return make_config(path=str(folder), **data)


def test_mixed_and_undecodable_images(tmp_path: Path) -> None:
    rows: list[Any] = [png(image) for image in make_images(40, (8, 8, 1))]
    rows[4] = png(make_images(1, (9, 8, 1))[0])
    rows[11] = b"not an image"
    rows[17] = rows[17][:70]
    rows[23] = None
    lines = problems_of(images(tmp_path, rows), tmp_path)
    assert lines[0] == (
        "row 4 of train.parquet: image of 9x8 pixels, expected 8x8; data.image.resize=[8,8] brings all "
        "images to one size"
    )
    assert lines[1] == (
        "row 11 of train.parquet: 12 bytes that are neither an image (PNG, JPEG, WebP, GIF, BMP, TIFF) nor "
        "64 raw pixels of [8, 8, 1]"
    )
    assert lines[2].startswith("row 17 of train.parquet: image cannot be decoded: ")
    assert lines[3] == "row 23 of train.parquet: no image (null)"
    assert len(lines) == 4


def test_pixels_out_of_range(tmp_path: Path) -> None:
    rows: list[Any] = [[1, 2, 3, 4]] * 40
    rows[6], rows[7] = [1, 2, 3, 256], [1, 2, 3]
    lines = problems_of(images(tmp_path, rows, image={"shape": [2, 2, 1]}), tmp_path)
    assert lines == [
        "row 6 of train.parquet: pixel value 256 is not a whole number in 0..255",
        "row 7 of train.parquet: 3 values, expected 2x2x1",
    ]
    rows = [[0.5, 0.1, 0.0, 1.0]] * 40
    lines = problems_of(images(tmp_path, rows, image={"shape": [2, 2, 1]}), tmp_path)
    assert lines[0] == "row 0 of train.parquet: pixel value 0.5 is not a whole number in 0..255"


def test_columns_of_the_wrong_type(tmp_path: Path) -> None:
    (line,) = problems_of(images(tmp_path, ["a.png"] * 40), tmp_path)
    assert line == (
        "data.columns.input: 'input' of train.parquet holds string, expected bytes, lists of numbers, "
        "or encoded images (PNG, JPEG, WebP, GIF, BMP, TIFF)"
    )
    config = images(tmp_path, [b"1234"] * 40, image={"shape": [3, 3, 1]})
    assert "4 bytes that are neither" in problems_of(config, tmp_path)[0]
    pq.write_table(pa.table({"input": np.arange(40), "label": np.arange(40) % 2}), tmp_path / "train.parquet")
    (line,) = problems_of(make_config(path=str(tmp_path), kind="text"), tmp_path)
    assert line == "data.columns.input: 'input' of train.parquet holds int64, expected text"


def test_null_text(tmp_path: Path) -> None:
    rows: list[Any] = ["a b"] * 40
    rows[9] = None
    lines = problems_of(images(tmp_path, rows, kind="text"), tmp_path)
    assert lines == ["row 9 of train.parquet: no text (null)"]


def test_ids_must_differ(tmp_path: Path) -> None:
    keys: list[Any] = [f"k{i}" for i in range(40)]
    keys[9], keys[12] = "k3", None
    columns = {"input": "x", "label": "y", "id": "key"}
    config = numeric(tmp_path, good() | {"key": keys}, columns=columns)
    assert problems_of(config, tmp_path) == [
        "row 9 of train.parquet: id 'k3' repeats that of row 3 of the split",
        "row 12 of train.parquet: no id (null)",
    ]


def test_ids_of_unlabelled_rows_must_differ_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0], "key": [40, 7]}), tmp_path / "more.pq")
    columns = {"input": "x", "label": "y", "id": "key"}
    config = numeric(
        tmp_path,
        good() | {"key": np.arange(40)},
        columns=columns,
        path=str(tmp_path / "train.parquet"),
        unlabelled=str(tmp_path / "more.pq"),
    )
    assert problems_of(config, tmp_path) == ["row 1 of more.pq: id 7 repeats that of row 7 of the split"]


def test_fewer_rows_than_a_batch(tmp_path: Path) -> None:
    numeric(tmp_path, good())
    config = make_config(
        path=str(tmp_path), kind="numeric", columns={"input": "x", "label": "y"}, batch_size=64
    )
    assert problems_of(config, tmp_path) == [
        "student.training.batch_size: 64 is more than the 28 train rows; lower it",
        "teachers.training.batch_size: 64 is more than the 28 labelled train rows; lower it",
    ]


def test_holdout_without_rows(tmp_path: Path) -> None:
    config = numeric(tmp_path, good(6), validation_fraction=0.01)
    lines = problems_of(config, tmp_path)
    assert lines[0] == (
        "data.validation_fraction: 0.01 of 6 labelled train rows leaves no validation row; "
        "raise it, or give a validation split"
    )
    config = numeric(tmp_path, good(), validation_fraction=0.5, test_fraction=0.5)
    assert "together they must be below 1" in problems_of(config, tmp_path)[0]


def test_everything_at_once(tmp_path: Path) -> None:
    table = good()
    table["x"][2], table["y"][3] = np.nan, 9
    config = numeric(tmp_path, table, class_names=["a", "b"])
    numeric(tmp_path, {"x": [np.inf], "y": [0]}, "test.parquet")
    assert problems_of(config, tmp_path) == [
        "row 3 of train.parquet: label 9 is outside 0..1, the 2 classes of data.class_names",
        "row 2 of train.parquet: column 'x' is missing or NaN",
        "row 0 of test.parquet: column 'x' is inf",
    ]


def test_inspect_reads_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_kd.data.first_pass.INSPECTED_ROWS", 10)
    table = good()
    table["y"] = np.arange(40) // 20  # the first rows hold one class only
    assert inspect_source(numeric(tmp_path, table)) == []
    table["x"][[5, 30]] = np.nan
    assert inspect_source(numeric(tmp_path, table)) == [
        "row 5 of train.parquet: column 'x' is missing or NaN"
    ]


def test_hub_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    config = make_config(source="hub", hub_name=str(tmp_path / "set"))
    (line,) = problems_of(config, tmp_path)
    assert line.startswith("data.hub_name: cannot load ") and "give a local folder" in line


# ------------------------------------------------------------------------- predict, damaged shards


def test_predict_reports_bad_rows(tmp_path: Path) -> None:
    pixels = make_images(40, (8, 8, 1))
    config = images(tmp_path, [png(image) for image in pixels])
    info, _ = prepare(config, tmp_path / "out")
    preprocessor = Preprocessor(DataInfo.from_dict(info.to_dict()), tmp_path)
    rows: list[Any] = [png(pixels[0]), b"broken", pixels[1].tobytes(), None]
    inputs, problems = preprocessor.transform(pa.table({"input": rows}))
    assert inputs.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(inputs[[0, 2]], pixels[:2])
    assert problems[0] is None and problems[2] is None
    assert problems[1] is not None and "TIFF) nor 64 raw pixels" in problems[1]
    assert problems[3] == "no image (null)"
    assert not inputs[[1, 3]].any()
    with pytest.raises(InputError, match="no column 'input' in the input; it has 'inputs'; did you mean"):
        preprocessor.transform(pa.table({"inputs": rows}))
    _, problems = preprocessor.transform(pa.table({"input": ["a", "b"]}))
    assert (
        problems
        == [
            "column 'input' holds string, expected bytes, lists of numbers, or encoded images (PNG, JPEG, "
            "WebP, GIF, BMP, TIFF)"
        ]
        * 2
    )


def test_predict_reads_what_prepare_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    config = numeric(tmp_path, good() | {"x": rows.tolist()})
    info, _ = prepare(config, tmp_path / "out")
    part = load_split(tmp_path / "out", "test")
    inputs, _ = Preprocessor(info, tmp_path / "out").transform(pa.table({"x": rows[part.ids].tolist()}))
    np.testing.assert_array_equal(inputs, part.inputs)
    _, problems = Preprocessor(info, tmp_path / "out").transform(pa.table({"x": [[1.0, 2.0]]}))
    assert problems == ["2 values, expected 3"]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    config = numeric(tmp_path, good(), shard_rows=10)
    info, _ = prepare(config, tmp_path / "out")
    paths = shard_paths(tmp_path / "out", "transfer")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="transfer-00001.parquet: not a readable shard"):
        read_shard(paths[1], info)
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(ArtifactError, match=r"transfer-00001.parquet: its rows are not 10\.\.19 of 28"):
        load_split(tmp_path / "out", "transfer")
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(ArtifactError, match="10 of 28 transfer rows"):
        load_split(tmp_path / "out", "transfer")
    paths[0].unlink()
    with pytest.raises(ArtifactError, match="no transfer-"):
        load_split(tmp_path / "out", "transfer")
