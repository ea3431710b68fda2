"""Which files and splits of a source are train, validation and test; what is left over is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.records import load_split
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.data.split_names import assign
from ensemble_kd.errors import ConfigError, InputError


def write(folder: Path, names: list[str], rows: int = 40) -> None:
    """Files of `rows` rows each, the i-th with inputs from 1000 * i on."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"x": 1000.0 * i + np.arange(rows), "y": np.arange(rows) % 2})
        if ".csv" in name:
            with pa.output_stream(str(path)) as file:  # compressed by its name
                pacsv.write_csv(table, file)
        else:
            pq.write_table(table, path)


def config_of(folder: Path, **data: Any) -> Config:
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | data))


def files_of(config: Config, out: Path) -> tuple[dict[str, set[int]], list[str]]:
    """Numbers of the files in each split, and what was told."""
    told: list[str] = []
    assert inspect_source(config, told.append) == []
    prepare(config, out)
    found = {
        split: {int(x // 1000) for x in load_split(out, split).inputs[:, 0]}
        for split in ("transfer", "validation", "test")
    }
    return found, told


def problems_of(config: Config) -> list[str]:
    lines = inspect_source(config)
    with pytest.raises(InputError):
        source_fingerprint(config.data)
    return lines


ALONE = {"transfer": {0}, "validation": {0}, "test": {0}}
"""All splits from the first file."""


@pytest.mark.parametrize(
    "names",
    [
        ["train.csv", "train.parquet"],
        ["train.csv", "train.csv.gz"],
        ["train-0.csv", "train-1.parquet"],
        ["train.csv", "validation.csv", "validation.parquet"],
        ["train/a.csv", "train/b.parquet"],
        ["rows.csv", "rows.parquet"],
        ["train.csv", "train-1.csv"],
        ["train.csv", "train2.csv"],
        ["train.csv", "backup/train.csv"],
    ],
)
def test_two_forms_of_one_split(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, names)
    (line,) = problems_of(config_of(tmp_path))
    assert line.startswith("data.path: ") and "the same rows twice?" in line
    assert all(name in line for name in names if len(names) == 2 or name != names[0])


def test_a_glob_over_two_forms(tmp_path: Path) -> None:
    write(tmp_path, ["rows.csv", "rows.parquet"])
    (line,) = problems_of(config_of(tmp_path, path=f"{tmp_path}/rows.*"))
    assert "rows.csv and rows.parquet differ in their ending alone" in line


@pytest.mark.parametrize(
    "extra",
    [
        "train_old.csv",
        "train_copy.csv",
        "train (1).csv",
        "train.backup.csv",
        "old-train.csv",
        "train_v2.csv",
        "train_old.parquet",
        "notes.csv",
    ],
)
def test_a_file_that_only_begins_like_a_split_is_left_out_and_told(tmp_path: Path, extra: str) -> None:
    write(tmp_path / "in", ["train.csv", extra])
    found, (line,) = files_of(config_of(tmp_path / "in"), tmp_path / "out")
    assert found == ALONE
    assert f"{extra!r} not used" in line and "data.splits" in line


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"],
        ["train_0.csv", "train_1.csv"],
        ["train0.csv", "train1.csv.gz"],
        ["train-part-1.csv", "train-part-2.csv"],
        ["train/part-0.parquet", "train/part-1.parquet"],
        ["train/one.parquet", "train/two.parquet"],
        ["data/train-0.parquet", "data/train-1.parquet"],
        ["en/train.csv", "de/train.csv"],
        ["Train_0.csv", "TRAIN_1.csv"],
        ["a.csv", "b.csv"],
        ["part-0.csv", "part-1.parquet"],
    ],
)
def test_shards_are_one_split(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / "in", names)
    found, told = files_of(config_of(tmp_path / "in"), tmp_path / "out")
    assert found["transfer"] == {0, 1} and told == []


@pytest.mark.parametrize("name", ["dev", "val", "valid", "eval", "validation_matched", "sst2-validation"])
def test_another_name_is_taken_where_it_is_clear_and_told(tmp_path: Path, name: str) -> None:
    write(tmp_path / "in", ["train.csv", f"{name}.csv", "test.csv"])
    found, told = files_of(config_of(tmp_path / "in"), tmp_path / "out")
    assert found == {"transfer": {0}, "validation": {1}, "test": {2}}
    assert told == [f"data.path: {name!r} is taken as validation"]


def test_a_prefix_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "in", ["imdb_train.csv", "imdb_test.csv"])
    found, _ = files_of(config_of(tmp_path / "in"), tmp_path / "out")
    assert found == {"transfer": {0}, "validation": {0}, "test": {1}}


def test_the_plain_name_comes_before_another(tmp_path: Path) -> None:
    write(tmp_path / "in", ["train.csv", "validation.csv", "dev.csv"])
    found, (line,) = files_of(config_of(tmp_path / "in"), tmp_path / "out")
    assert found["validation"] == {1} and "'dev.csv' not used, and test rows are held out of train" in line


MNLI = ["train.csv", "validation_matched.csv", "validation_mismatched.csv", "test_matched.csv"]


def test_several_that_could_be_meant(tmp_path: Path) -> None:
    write(tmp_path, MNLI)
    (line,) = problems_of(config_of(tmp_path))
    assert line.startswith(
        "data.path: 'validation_matched', 'validation_mismatched' could each be validation; say which, as in "
        "data.splits={validation: validation_matched}"
    )


@pytest.mark.parametrize(
    "splits, validation, test",
    [
        ({"validation": "validation_matched"}, {1}, {3}),
        ({"validation": ["validation_matched", "validation_mismatched"]}, {1, 2}, {3}),
        ({"validation": "validation_matched.csv", "test": None}, {1}, {0}),
        ({"validation": None, "test": "validation_mismatched"}, {0}, {2}),
    ],
)
def test_splits_are_mapped(tmp_path: Path, splits: Any, validation: set[int], test: set[int]) -> None:
    write(tmp_path / "in", MNLI)
    found, told = files_of(config_of(tmp_path / "in", splits=splits), tmp_path / "out")
    assert found == {"transfer": {0}, "validation": validation, "test": test}
    used = {0} | validation | test
    assert all(name in " ".join(told) for i, name in enumerate(MNLI) if i not in used)


def test_files_named_by_themselves(tmp_path: Path) -> None:
    write(tmp_path / "in", ["train.csv", "train_old.csv", "train.parquet"])
    splits = {"train": ["train.csv", "train_old.csv"]}
    found, (line,) = files_of(config_of(tmp_path / "in", splits=splits), tmp_path / "out")
    assert found["transfer"] == {0, 1} and "'train.parquet' not used" in line


def test_a_file_by_its_path(tmp_path: Path) -> None:
    write(tmp_path / "in", ["train.csv", "backup/train.csv"])
    config = config_of(tmp_path / "in", splits={"train": "train.csv"})
    assert files_of(config, tmp_path / "out")[0] == ALONE
    config = config_of(tmp_path / "in", splits={"train": "backup/train.csv"})
    assert files_of(config, tmp_path / "out")[0]["transfer"] == {1}


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, MNLI)
    (line,) = problems_of(config_of(tmp_path, splits={"validation": "validation_mached"}))
    assert line.startswith("data.splits.validation: no 'validation_mached' in the source; it has 'test_")
    assert line.endswith("did you mean 'validation_matched'?")


def test_no_train(tmp_path: Path) -> None:
    write(tmp_path, ["corpus_a.csv", "test.csv"])
    (line,) = problems_of(config_of(tmp_path))
    assert "no train.*" in line and "data.splits={train: corpus_a}" in line


def test_splits_of_a_single_file_or_a_block(tmp_path: Path) -> None:
    write(tmp_path, ["train.csv"])
    (line,) = problems_of(config_of(tmp_path, path=str(tmp_path / "train.csv"), splits={"train": "train"}))
    assert line.startswith("data.splits: for a folder as data.path")
    with pytest.raises(ConfigError, match="data.splits: set, but data.path names a file for each split"):
        config_of(tmp_path, path={"train": str(tmp_path / "train.csv")}, splits={"train": "train"})


# ---------------------------------------------------------------------------------------------- hub


def saved(folder: Path, names: list[str]) -> Path:
    datasets = pytest.importorskip("datasets")
    made = {
        name: datasets.Dataset.from_dict(
            {"x": (1000.0 * i + np.arange(40)).tolist(), "y": (np.arange(40) % 2).tolist()}
        )
        for i, name in enumerate(names)
    }
    datasets.DatasetDict(made).save_to_disk(str(folder / "set"))
    return folder / "set"


def hub(folder: Path, **data: Any) -> Config:
    return config_of(folder, path=None, source="hub", hub_name=str(folder), **data)


HUB = ["train", "validation_matched", "validation_mismatched", "test_matched", "extra"]


def test_splits_of_a_hub_s_data_set(tmp_path: Path) -> None:
    folder = saved(tmp_path, HUB)
    (line,) = inspect_source(hub(folder))
    assert line.startswith("data.hub_name: 'validation_matched', 'validation_mismatched' could each be")
    found, told = files_of(hub(folder, splits={"validation": "validation_matched"}), tmp_path / "out")
    assert found == {"transfer": {0}, "validation": {1}, "test": {3}}
    assert told[0] == "data.hub_name: 'test_matched' is taken as test"
    assert told[1].startswith(
        "data.hub_name: 'validation_mismatched', 'extra' not used; to use both, set data."
        "splits={validation: [validation_matched, validation_mismatched]}"
    )


def test_unlabelled_rows_of_a_hub_s_data_set(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["train", "test", "unsupervised"])
    found, (line,) = files_of(hub(folder), tmp_path / "out")
    assert found["transfer"] == {0} and "'unsupervised' not used" in line
    assert "data.splits={unlabelled: unsupervised}" in line
    found, told = files_of(hub(folder, splits={"unlabelled": "unsupervised"}), tmp_path / "out")
    assert found["transfer"] == {0, 2} and told == []
    assert (load_split(tmp_path / "out", "transfer").labels == -1).sum() == 40


def test_a_hub_s_data_set_without_train(tmp_path: Path) -> None:
    folder = saved(tmp_path, ["corpus"])
    (line,) = inspect_source(hub(folder))
    assert line.endswith("it has corpus; say which it is: data.splits={train: corpus}")
    assert inspect_source(hub(folder, splits={"train": "corpus"})) == []


def test_withheld_labels_are_told(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"x": datasets.Value("float64"), "y": datasets.ClassLabel(names=["a", "b"])})
    train = {"x": list(range(40)), "y": [0, 1] * 20}
    made = {"train": train, "test": {"x": [1.5, 2.5], "y": [-1, -1]}}
    datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(rows, features=features) for split, rows in made.items()}
    ).save_to_disk(str(tmp_path / "set"))
    told: list[str] = []
    assert inspect_source(hub(tmp_path / "set"), told.append) == []
    assert told == ["data.hub_name: 'test' has no labels (-1); test rows are held out of train"]


# --------------------------------------------------------------------------------------- properties

words = st.sampled_from(
    ["train", "test", "dev", "validation", "old", "Train", "x", "0", "00001-of-00002", ""]
)
paths = st.lists(
    st.lists(st.lists(words, min_size=1, max_size=3).map("_".join).filter(bool), min_size=1, max_size=3).map(
        "/".join
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@dataclass(frozen=True)
class File:
    name: str
    format: str = "csv"


@settings(max_examples=300, deadline=None)
@given(
    paths, st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.none() | words, max_size=2)
)
def test_every_file_is_used_once_or_told(names: list[str], wanted: dict[str, str | None]) -> None:
    files = [File(f"{name}.csv") for name in names]
    problems = Problems()
    found = assign(files, wanted, "folder", "data.path", problems)
    if problems:
        assert all("\n" not in line for line in problems.all())
        return
    used = [file.name for pieces in found.values() for file in pieces]
    assert len(set(used)) == len(used) and found["train"]
    left = {file.name for file in files} - set(used)
    assert all(any(repr(name) in line for line in problems.warnings) for name in left)
