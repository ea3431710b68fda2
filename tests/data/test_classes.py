"""Which classes the labels of a source stand for: the values that occur, in order; names listed, by index."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, InputError


def write(folder: Path, labels: Any, name: str = "train.parquet", first: int = 0) -> None:
    table = pa.table({"x": np.arange(float(first), first + len(labels)), "y": labels})
    if name.endswith(".csv"):
        pacsv.write_csv(table, folder / name)
    else:
        pq.write_table(table, folder / name)


def config_of(folder: Path, **data: Any) -> Config:
    fields = {"path": str(folder), "kind": "numeric", "columns": {"input": "x", "label": "y"}}
    return make_config(**(fields | data))


def classes_of(config: Config) -> tuple[list[str], dict[float, str], list[str]]:
    """Class names, the name of each row's class by its input, and what was told."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as out:  # not in the folder of the data
        info, _ = prepare(config, Path(out), told.append)
        assert info.num_classes == len(info.class_names)
        named: dict[float, str] = {}
        for split in ("transfer", "validation", "test"):
            part = load_split(Path(out), split)
            rows = zip(part.inputs[:, 0].tolist(), part.labels.tolist(), strict=True)
            named |= {x: info.class_names[label] for x, label in rows if label >= 0}
    also: list[str] = []
    assert inspect_source(config, also.append) == []
    assert also == told
    return info.class_names, named, told


def problems_of(config: Config) -> list[str]:
    with pytest.raises(InputError) as caught, tempfile.TemporaryDirectory() as out:
        prepare(config, Path(out))
    assert inspect_source(config) == caught.value.problems
    return caught.value.problems


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
@pytest.mark.parametrize(
    "values",
    [[1, 2, 3, 4, 5], [2019, 2020, 2021], [-1, 1], [0, 1, 2], [-(2**63), 2**63 - 1], [0, 10]],
)
def test_integers_are_the_classes_that_occur(tmp_path: Path, name: str, values: list[int]) -> None:
    labels = [values[i % len(values)] for i in range(60)]
    write(tmp_path, pa.array(labels, pa.int64()), name)
    names, named, _ = classes_of(config_of(tmp_path))
    assert names == [str(value) for value in values]
    assert named == {float(i): str(label) for i, label in enumerate(labels)}


def test_labels_from_0_keep_their_numbers(tmp_path: Path) -> None:
    labels = np.arange(60) * 7 % 4
    write(tmp_path, labels)
    names, named, told = classes_of(config_of(tmp_path))
    assert names == list("0123") and told == []
    assert named == {float(i): str(label) for i, label in enumerate(labels)}


@pytest.mark.parametrize(
    "spelt, names",
    [
        (["01", "001", "1", "2"], ["1", "2"]),
        (["10", "9", "+9", "8"], ["8", "9", "10"]),
        (["1.0", "2.0", "3", " 3 "], ["1", "2", "3"]),
        (["0.5", "10.0", "2", "2.50", "2.5"], ["0.5", "2", "2.5", "10"]),
        (["99999999999999999999", "-3", "7", "007.00"], ["-3", "7", "99999999999999999999"]),
        (["1", "01", "x"], ["01", "1", "x"]),  # not all of them are numbers
        (["1e5", "2e5"], ["1e5", "2e5"]),
        (["0x10", "0x11"], ["0x10", "0x11"]),
    ],
)
@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_numbers_in_text_are_compared_as_numbers(
    tmp_path: Path, name: str, spelt: list[str], names: list[str]
) -> None:
    write(tmp_path, [spelt[i % len(spelt)] for i in range(60)], name)
    assert classes_of(config_of(tmp_path))[0] == names


@pytest.mark.parametrize(
    "labels, names",
    [
        (pa.array([True, False] * 30), ["false", "true"]),
        (pa.array([1.0, 2.0, None] * 20), ["1", "2"]),
        (pa.array([1.0, 2.0] * 30, pa.float16()), ["1", "2"]),
        (pa.array([Decimal("4.00"), Decimal("2.00")] * 30), ["2", "4"]),
        (pa.array([7, 3] * 30, pa.uint8()), ["3", "7"]),
    ],
)
def test_other_types_of_labels(tmp_path: Path, labels: pa.Array, names: list[str]) -> None:
    write(tmp_path, labels)
    assert classes_of(config_of(tmp_path))[0] == names


def test_splits_of_different_types_have_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3] * 20)
    write(tmp_path, ["03", "1"] * 3, "test.csv", first=100)
    names, named, _ = classes_of(config_of(tmp_path))
    assert names == ["1", "2", "3"] and named[100.0] == "3" and named[101.0] == "1"
    (tmp_path / "test.csv").unlink()
    write(tmp_path, [True, False] * 30)
    write(tmp_path, ["True", "False"], "test.csv", first=100)  # as pandas writes it
    names, named, _ = classes_of(config_of(tmp_path))
    assert names == ["false", "true"] and named[100.0] == "true"


def test_pieces_of_different_types(tmp_path: Path) -> None:
    write(tmp_path, ["01", "2"] * 20, "a.csv")
    write(tmp_path, ["x", "2"] * 20, "b.csv", first=100)
    names, named, _ = classes_of(config_of(tmp_path))
    assert names == ["01", "2", "x"] and named[0.0] == "01"


def test_a_class_of_other_splits_alone_is_named_with_its_rows(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3] * 20)
    write(tmp_path, [1, 7], "test.parquet", first=100)
    assert problems_of(config_of(tmp_path)) == [
        "row 1 of test.parquet: label 7 is not a class of train, which has 1, 2, 3"
    ]


@pytest.mark.parametrize("labels", [[1, 2, 3], ["a", "b", "c"]])
def test_a_look_at_the_first_rows_alone_blames_no_class(
    tmp_path: Path, labels: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_kd.data.first_pass.INSPECTED_ROWS", 20)
    write(tmp_path, [label for label in labels for _ in range(30)])  # in order: the first rows hold one class
    write(tmp_path, [labels[2]] * 3, "test.parquet", first=100)
    told: list[str] = []
    assert inspect_source(config_of(tmp_path), told.append) == [] and told == []


# ------------------------------------------------------------------------------------- names listed


def test_integers_are_indices_of_the_names_listed(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 2] * 20)
    config = config_of(tmp_path, class_names=["c", "a", "b"])
    names, named, _ = classes_of(config)
    assert names == ["c", "a", "b"] and [named[i] for i in (0.0, 1.0, 2.0)] == names


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_labels_from_1_for_names_from_0(tmp_path: Path, name: str) -> None:
    write(tmp_path, [1, 2, 3, 4, 5] * 12, name)
    config = config_of(tmp_path, class_names=["awful", "bad", "fair", "good", "great"])
    (line,) = problems_of(config)
    assert line.startswith(
        "data.class_names: the labels count from 1, and the 5 names stand for 0 to 4; leave"
    )
    # Each remedy that is named works.
    assert classes_of(config_of(tmp_path))[0] == ["1", "2", "3", "4", "5"]


def test_a_typo_beside_labels_from_1(tmp_path: Path) -> None:
    labels = 1 + np.arange(60) % 5
    labels[17] = 50
    write(tmp_path, labels)
    first, second = problems_of(config_of(tmp_path, class_names=list("abcde")))
    assert first.startswith("data.class_names: the labels count from 1")
    assert second.startswith("row 17 of train.parquet: label 50 is outside 0..4")


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_names_that_are_the_labels_themselves(tmp_path: Path, name: str) -> None:
    write(tmp_path, [1, 2, 3] * 20, name)
    config = config_of(tmp_path, class_names=["3", "02", "1"])
    names, named, _ = classes_of(config)
    assert names == ["3", "02", "1"] and named[0.0] == "1" and named[1.0] == "02"


def test_names_in_yaml_may_be_numbers_but_not_truth_values(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3] * 20)
    assert config_of(tmp_path, class_names=[1, 2, 3]).data.class_names == ["1", "2", "3"]
    with pytest.raises(ConfigError, match=r"data\.class_names: .*put these names in quotes"):
        config_of(tmp_path, class_names=[False, True])


def test_text_that_is_an_index_of_the_names_listed(tmp_path: Path) -> None:
    write(tmp_path, ["0", "b", "1.0", "00"] * 15)
    _, named, _ = classes_of(config_of(tmp_path, class_names=["a", "b"]))
    assert [named[float(i)] for i in range(4)] == ["a", "b", "b", "a"]
    write(tmp_path, ["a", "b", "9" * 5000] * 20)
    lines = problems_of(config_of(tmp_path, class_names=["a", "b"]))
    assert "is not in data.class_names" in lines[0] and len(lines[0]) < 300


def test_no_label_at_all(tmp_path: Path) -> None:
    write(tmp_path, pa.nulls(40))
    write(tmp_path, [1, 2], "test.parquet")
    (line,) = problems_of(config_of(tmp_path))
    assert line == ("data.columns.label: train holds no label; a classifier needs at least two classes")


# ------------------------------------------------------------------------------- errors of one line


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
@pytest.mark.parametrize("column", ["label", "id"])
def test_unsigned_integers_beyond_64_bits(tmp_path: Path, value: int, column: str) -> None:
    numbers = pa.array([*range(39), value], pa.uint64())
    plain = pa.array(np.arange(40) % 2)
    both = {"label": plain, "id": pa.array(range(40))} | {column: numbers}
    pq.write_table(pa.table({"x": np.arange(40.0), **both}), tmp_path / "train.parquet")
    columns = {"input": "x", "label": "label", "id": "id"}
    (line,) = problems_of(config_of(tmp_path, columns=columns))
    assert line.startswith(
        f"data.columns: {column!r} of train.parquet holds {value}, and 9223372036854775807"
    )


def test_a_label_that_is_the_rows_number(tmp_path: Path) -> None:
    write(tmp_path, np.arange(5000))
    (line,) = problems_of(config_of(tmp_path))
    assert line.startswith(
        "data.columns.label: 5,000 different labels in 5,000 rows are too many for classes"
    )


def test_labels_of_broken_text(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        40, pa.py_buffer(np.arange(41, dtype=np.int32)), pa.py_buffer(b"a\xff" * 20)
    )
    write(tmp_path, broken)
    (line,) = problems_of(config_of(tmp_path))
    assert "column 'y' holds a text that is not UTF-8" in line


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"id": "y"}, "data.columns.id: 'y' is the label too"),
        ({"id": "x"}, "data.columns.id: 'x' is an input too"),
        ({"input": ["x", "x"]}, "data.columns.input: 'x' is listed 2 times"),
        ({"input": "y"}, "data.columns.input: 'y' is the label"),
    ],
)
def test_a_column_asked_for_twice(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    write(tmp_path, np.arange(40) % 2)
    config = config_of(tmp_path, columns={"input": "x", "label": "y"} | columns)
    (line,) = problems_of(config)
    assert line.startswith(expected)


@pytest.mark.parametrize("name", ["train.parquet", "train.csv", "train.arrow"])
def test_two_columns_of_one_name(tmp_path: Path, name: str) -> None:
    values = pa.array(np.arange(40) % 2)
    table = pa.table([values, values, values], names=["x", "y", "y"])
    if name.endswith("csv"):
        pacsv.write_csv(table, tmp_path / name)
    elif name.endswith("arrow"):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, tmp_path / name)
    (line,) = problems_of(config_of(tmp_path))
    assert line.startswith(f"data.columns.label: {name} has 2 columns of the name 'y'")


# -------------------------------------------------------------------------------------- what is odd


def told_of(tmp_path: Path, labels: Any, **data: Any) -> list[str]:
    write(tmp_path, labels)
    return classes_of(config_of(tmp_path, **data))[2]


def test_a_typo_is_named_with_its_row(tmp_path: Path) -> None:
    labels = np.arange(200) % 5
    labels[17] = 100000
    (line,) = told_of(tmp_path, labels)
    assert line.startswith(
        "data.columns.label: label 100000 occurs once (row 17 of train.parquet), far from all others: a typo?"
    )


def test_holes_are_told(tmp_path: Path) -> None:
    labels = np.array([1, 2, 3, 5, 9])[np.arange(100) % 5]
    (line,) = told_of(tmp_path, labels)
    assert line == (
        "data.columns.label: labels run from 1 to 9, and none is 4, 6 to 8; the 5 values that occur are the "
        "classes"
    )
    assert told_of(tmp_path, 2019 + np.arange(100) % 5) == []


def test_a_class_of_one_row_and_a_class_of_none(tmp_path: Path) -> None:
    names = ["cat", "dog"] * 30
    names[7] = "dgo"
    (line,) = told_of(tmp_path, names)
    assert "a class with a single train row: 'dgo' (row 7 of train.parquet); it stays in train" in line
    (line,) = told_of(tmp_path, ["cat", "dog"] * 30, class_names=["cat", "cow", "dog"])
    assert line.startswith("data.class_names: no train row for 1 of 3 classes ('cow')")


@pytest.mark.parametrize(
    "labels, expected",
    [
        (["cat", "Cat ", "dog"] * 20, "'Cat ' and 'cat' are two classes, and differ in case or spaces alone"),
        (["cat", "dog", "NaN"] * 20, "'NaN' is a class of 20 rows; where it marks rows without a label"),
        ([-1, 0, 1] * 20, "label -1 is a class like the others"),
    ],
)
def test_labels_that_are_meant_otherwise(tmp_path: Path, labels: list[Any], expected: str) -> None:
    (line,) = told_of(tmp_path, labels)
    assert expected in line


def test_a_hub_s_minus_one_is_no_class(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def told(labels: list[int], out: str) -> tuple[list[str], list[str]]:
        rows = datasets.Dataset.from_dict({"x": list(range(len(labels))), "y": labels})
        datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / out))
        columns = {"input": "x", "label": "y"}
        hub = make_config(source="hub", hub_name=str(tmp_path / out), kind="numeric", columns=columns)
        names, _, lines = classes_of(hub)
        return names, lines

    names, (line,) = told([0, 1, 2, -1] * 15, "marked")
    assert names == ["0", "1", "2"] and "15 rows with label -1 count as rows without one" in line
    assert told([-1, 1] * 30, "signs") == (["-1", "1"], [])


# --------------------------------------------------------------------------------------- properties

spellings = st.integers(-20, 20).flatmap(
    lambda n: st.sampled_from([str(n), f"{n:04d}", f"{n}.0", f" {n}", f"{n:+d}"])
)
columns = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=12, max_size=60).map(
        lambda v: pa.array(v, pa.int64())
    ),
    st.lists(st.none() | st.integers(0, 2**64 - 1), min_size=12, max_size=60).map(
        lambda v: pa.array(v, pa.uint64())
    ),
    st.lists(st.none() | st.integers(-3, 3), min_size=12, max_size=60).map(lambda v: pa.array(v, pa.int8())),
    st.lists(st.none() | st.text(max_size=3), min_size=12, max_size=60).map(
        lambda v: pa.array(v, pa.string())
    ),
    st.lists(st.none() | spellings, min_size=12, max_size=60).map(lambda v: pa.array(v, pa.large_string())),
    st.lists(st.none() | spellings, min_size=12, max_size=60).map(
        lambda v: pa.array(v, pa.string()).dictionary_encode()
    ),
    st.lists(st.none() | st.booleans(), min_size=12, max_size=60).map(lambda v: pa.array(v, pa.bool_())),
)


def meant(value: Any) -> Any:
    """A label as a number where it is one."""
    return Decimal(value.strip()) if isinstance(value, str) else value


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=columns)
def test_any_column_is_refused_or_read_back(tmp_path: Path, labels: pa.Array) -> None:
    write(tmp_path, labels)
    config, out = config_of(tmp_path), tmp_path.parent / f"{tmp_path.name}-out"
    try:
        info, _ = prepare(config, out)
    except InputError as error:
        assert error.problems and all("\n" not in line for line in error.problems)
        return
    values = labels.to_pylist()
    known = [value for value in values if value is not None]
    names = info.class_names
    numeric = isinstance(known[0], str) and all(
        value.strip().lstrip("+-").replace(".", "", 1).isdecimal() and value.strip().isascii()
        for value in known
    )
    if isinstance(known[0], str) and not numeric:
        expected = sorted(set(known))
        assert names == expected
    elif isinstance(known[0], bool):
        assert names == ["false", "true"]
    else:
        assert [Decimal(name) for name in names] == sorted({Decimal(meant(value)) for value in known})
    for split in ("transfer", "validation", "test"):
        part = load_split(out, split)
        for row, label in zip(part.ids.tolist(), part.labels.tolist(), strict=True):
            value = values[row]
            if value is None:
                assert label == -1
            elif isinstance(value, bool):
                assert names[label] == str(value).lower()
            elif isinstance(value, str) and not numeric:
                assert names[label] == value
            else:
                assert Decimal(names[label]) == meant(value)
