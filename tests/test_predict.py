"""A model folder alone predicts files of every kind, and says which rows it could not read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_cases import NAMES, package

from ensemble_kd.artifacts import Identity
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo
from ensemble_kd.errors import InputError
from ensemble_kd.models.build import Network
from ensemble_kd.predict import predict_file
from ensemble_kd.predict_files import Options, predict_files


def probabilities(network: Network, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(network(torch.from_numpy(inputs)).logits, 1).numpy()


def lines(model: Path, source: Path, batch_size: int = 1024) -> tuple[list[dict[str, Any]], list[str]]:
    """What the screen shows, as rows, and the rows skipped."""
    shown: list[str] = []
    problems = predict_file(model, str(source), None, batch_size, shown.append, truncate=True)
    return [json.loads(line) for line in shown], problems


def numbers(rows: int = 10) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


def write_numbers(folder: Path, suffix: str, values: Any, ids: list[Any] | None = None) -> Path:
    """Columns f0..f3 (and `key`)."""
    path = folder / f"rows{suffix}"
    rows = [{f"f{j}": value for j, value in enumerate(row)} for row in values]
    if ids is not None:
        rows = [{"key": key, **row} for key, row in zip(ids, rows, strict=True)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


COLUMNS: dict[str, Any] = {"input": ["f0", "f1", "f2", "f3"], "id": "key"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("batch_size", [3, 1024])
def test_it_predicts_what_the_network_predicts(tmp_path: Path, suffix: str, batch_size: int) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values, ids = numbers(), [f"row {i}" for i in range(10)]
    found, problems = lines(model, write_numbers(tmp_path, suffix, values.tolist(), ids), batch_size)
    expected = probabilities(network, values)
    assert not problems and [row["id"] for row in found] == ids
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-5)
    for row, p in zip(found, expected, strict=True):
        assert row["label"] == p.argmax() and row["label_name"] == NAMES[p.argmax()]
        assert row["probability"] == pytest.approx(p.max())


def test_rows_are_numbered_where_there_is_no_id(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", input=COLUMNS["input"])
    found, _ = lines(model, write_numbers(tmp_path, ".csv", numbers(7).tolist()), 3)
    assert [row["id"] for row in found] == list(range(7))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_it_writes_every_format(tmp_path: Path, suffix: str) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values = numbers()
    source = write_numbers(tmp_path, ".parquet", values.tolist(), list(range(100, 110)))
    target = tmp_path / f"out{suffix}"
    assert predict_file(model, str(source), target, 4, print) == []
    expected = probabilities(network, values)
    if suffix == ".parquet":
        rows = pq.read_table(target).to_pylist()
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(target.read_text())))
        for row in rows:
            row["probabilities"] = [float(row[f"probability_{i}"]) for i in range(3)]
    assert [int(row["id"]) for row in rows] == list(range(100, 110))
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, rtol=1e-5)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "kind", [pa.decimal128(9, 2), pa.string_view(), pa.date32(), pa.dictionary(pa.int8(), pa.large_string())]
)
def test_ids_of_any_type(tmp_path: Path, kind: pa.DataType, suffix: str) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    ids = pa.array(["2024-01-01", "2024-01-02"] if pa.types.is_date(kind) else ["1.5", "22.0"])
    ids = ids.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else ids.cast(kind)
    table = pa.table({"key": ids, **{f"f{j}": numbers(2)[:, j] for j in range(4)}})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    target = tmp_path / f"out{suffix}"
    assert predict_file(model, str(tmp_path / "rows.arrow"), target, 1, print) == []
    assert "2024-01-02" in str(target.read_bytes()) or "22.0" in str(target.read_bytes())
    found, _ = lines(model, tmp_path / "rows.arrow")
    assert [row["id"] for row in found] == [
        str(value) if not pa.types.is_decimal(kind) else f"{value:.2f}" for value in ids.to_pylist()
    ]


@pytest.mark.parametrize("name", ["f1", "key"])
def test_two_columns_of_one_name(tmp_path: Path, name: str) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    values = numbers(2)
    arrays = [pa.array([1, 2]), *(pa.array(values[:, j]) for j in range(4)), pa.array([1, 2])]
    table = pa.table(arrays, names=["key", "f0", "f1", "f2", "f3", name])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=f"INPUT: rows.parquet has 2 columns of the name '{name}'; rename"):
        lines(model, tmp_path / "rows.parquet")


def test_bad_rows_are_skipped_and_named(tmp_path: Path) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values = numbers(6)
    rows: list[Any] = values.tolist()
    rows[1][2], rows[4][0] = "", "many"
    source = write_numbers(tmp_path, ".csv", rows, list("abcdef"))
    found, problems = lines(model, source, batch_size=3)
    assert [row["id"] for row in found] == list("acdf")
    good = probabilities(network, values[[0, 2, 3, 5]])
    np.testing.assert_allclose([row["probabilities"] for row in found], good, rtol=1e-5)
    assert [p.split(":")[0] for p in problems] == ["row 1", "row 4"]
    assert "column 'f2' is missing or NaN" in problems[0] and "'many', not a number" in problems[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_file_of_bad_rows_alone_gives_an_empty_result(tmp_path: Path, suffix: str) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    source = write_numbers(tmp_path, ".csv", [["", 1, 2, 3]] * 2, ["a", "b"])
    problems = predict_file(model, str(source), tmp_path / f"out{suffix}", 10, print)
    assert len(problems) == 2 and (tmp_path / f"out{suffix}").exists()


def test_images_as_bytes_and_as_png(tmp_path: Path) -> None:
    from PIL import Image

    model, network = package(tmp_path, "image")
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)

    def png(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    for name, cells in {"raw": [i.tobytes() for i in images], "png": [png(i) for i in images]}.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"input": pa.array(cells, pa.binary())}), path)
        found, problems = lines(model, path)
        assert not problems
        expected = probabilities(network, images)
        np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-5)
    bad = [b"\x89PNG\r\n\x1a\nno", png(np.zeros((6, 4, 3), np.uint8)), b"four"]
    pq.write_table(pa.table({"input": pa.array([cells[0], *bad, cells[2]])}), path)
    found, problems = lines(model, path)
    assert [row["id"] for row in found] == [0, 4] and problems[0].startswith("row 1: ")
    assert "image of 6x4 pixels, expected 5x4" in problems[1] and "4 bytes" in problems[2]


def test_texts(tmp_path: Path) -> None:
    model, network = package(tmp_path, "text")
    texts = ["a cat sat", "", "dogs bark at eels " * 20, None, "grün 猫"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"input": t}, ensure_ascii=False) + "\n" for t in texts))
    found, problems = lines(model, path)
    assert [row["id"] for row in found] == [0, 1, 2, 4] and problems == ["row 3: no text (null)"]
    info = DataInfo.from_dict(json.loads((model / "config.json").read_text())["info"])
    inputs, _ = Preprocessor(info, model).transform(pa.table({"input": texts}))
    expected = probabilities(network, inputs[[0, 1, 2, 4]])
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------- bad input


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", input=["f0", "f1", "f2", "height"])
    source = write_numbers(tmp_path, ".csv", numbers().tolist())
    with pytest.raises(InputError, match=r"no column 'height' in rows.csv; it has 'f0', 'f1', 'f2', 'f3'"):
        lines(model, source)


def test_unknown_formats_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--output: .*out.xlsx: unknown format '.xlsx'; use .parquet"):
        predict_file(tmp_path / "no model", "no file", tmp_path / "out.xlsx", 10, print)


@pytest.mark.parametrize("name", ["nothing.csv", "rows.xyz"])
def test_input_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    if name == "rows.xyz":
        (tmp_path / name).write_text("?")
    with pytest.raises(InputError, match=name):
        lines(model, tmp_path / name)


def test_a_file_without_rows(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    source = tmp_path / "rows.csv"
    source.write_text("f0,f1,f2,f3,key\n")
    with pytest.raises(InputError, match="rows.csv: holds no rows"):
        lines(model, source)


def test_a_damaged_model_folder_is_named(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    source = write_numbers(tmp_path, ".csv", numbers().tolist())
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="weights.safetensors"):
        lines(model, source)
    with pytest.raises(InputError, match="no such folder"):
        lines(tmp_path / "other", source)


def test_an_output_folder_that_is_not_there(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    source = write_numbers(tmp_path, ".csv", numbers().tolist())
    with pytest.raises(InputError, match=r"--output: .*no such folder"):
        predict_file(model, str(source), tmp_path / "missing" / "out.csv", 10, print)


# ---------------------------------------------------------------------------------- what becomes of rows


def test_bad_rows_by_choice(tmp_path: Path) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values = numbers(4)
    rows: list[Any] = values.tolist()
    rows[2][1] = ""
    source = write_numbers(tmp_path, ".csv", rows, list("abcd"))
    expected = probabilities(network, values)
    target = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"row 2: column 'f1' is missing.*\n.*--on-bad-row skip or null"):
        predict_file(model, str(source), target, 10, print, on_bad_row="error")
    assert not target.exists() and not list(tmp_path.glob(".*.tmp"))
    for suffix in (".jsonl", ".parquet", ".csv"):
        target = tmp_path / f"out{suffix}"
        problems = predict_file(model, str(source), target, 3, print, on_bad_row="null")
        assert problems == ["row 2: column 'f1' is missing or NaN"]
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == list("abcd")
    assert found[2]["label"] is None and found[2]["probabilities"] is None and found[2]["problem"]
    assert found[3]["label"] == expected[3].argmax() and found[3]["problem"] is None
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == found
    flat = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert flat[2]["label"] == "" and float(flat[3]["probability_1"]) == pytest.approx(expected[3, 1])


@pytest.mark.parametrize("batch_size", [2, 1024])
def test_rows_that_cannot_be_parsed_cost_themselves_alone(tmp_path: Path, batch_size: int) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values = numbers(5)
    cells = [",".join(["abcde"[i], *map(str, row)]) for i, row in enumerate(values)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["key,f0,f1,f2,f3", "x,1", *cells[:2], "y,1,2,3,4,5", *cells[2:], "z,1", ""]))
    found, problems = lines(model, table, batch_size)
    assert [row["id"] for row in found] == list("abcde")
    np.testing.assert_allclose(
        [row["probabilities"] for row in found], probabilities(network, values), rtol=1e-5
    )
    assert problems == [
        "row 0: 2 cells, the header has 5",
        "row 3: 6 cells, the header has 5",
        "row 7: 2 cells, the header has 5",
    ]
    rows = [
        json.dumps({f"f{j}": float(x) for j, x in enumerate(row)} | {"key": i})
        for i, row in enumerate(values)
    ]
    wrong = ['{"f0": 1,', '{"f0": "one", "f1": 1, "f2": 1, "f3": 1, "key": 9}', "[1]", '{"f0": 1, "f1": 2}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([rows[0], wrong[0], rows[1], "", *wrong[1:], *rows[2:]]))
    found, problems = lines(model, file, batch_size)
    np.testing.assert_allclose(
        [row["probabilities"] for row in found], probabilities(network, values), rtol=1e-5
    )
    assert [row["id"] for row in found] == list(range(5))  # whole numbers stay whole
    assert [problem.split(":")[0] for problem in problems] == ["row 1", "row 3", "row 4", "row 5"]
    assert "not JSON: Expecting" in problems[0] and "column 'f0' is 'one'" in problems[1]
    assert "'[1]', not a JSON object" in problems[2] and "column 'f2' is missing" in problems[3]
    file.write_text("no\nlines\nof JSON\n")
    with pytest.raises(InputError, match="rows.jsonl: cannot be read as JSON lines"):
        lines(model, file)


def test_a_broken_line_far_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Arrow has given of the file before it meets the line is not given again."""
    monkeypatch.setattr("ensemble_kd.data.files.BLOCK_BYTES", 100)
    model, _ = package(tmp_path, "text")
    texts = [json.dumps({"input": f"cat {i}"}) for i in range(50)]
    texts[40] = texts[40][:-3]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(texts))
    found, problems = lines(model, path, batch_size=3)
    assert [row["id"] for row in found] == [i for i in range(50) if i != 40]
    assert len(problems) == 1 and problems[0].startswith("row 40: not JSON")


def test_columns_that_the_model_does_not_know(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text", id="key")
    path = tmp_path / "rows.csv"
    path.write_text("inptu,input,label,key\na,cat,dog,1\n")
    notes: list[str] = []
    assert predict_file(model, str(path), tmp_path / "out.csv", 10, print, note=notes.append) == []
    assert notes == ["rows.csv: columns that the model does not know are not read: 'inptu'"]
    with pytest.raises(
        InputError, match=r"rows.csv has .* does not know: 'inptu'; it knows 'input', 'label', 'key'"
    ):
        predict_file(model, str(path), tmp_path / "out.csv", 10, print, strict=True)


def test_the_input_is_not_written_over(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    path = tmp_path / "rows.csv"
    path.write_text("input\ncat\n")
    with pytest.raises(InputError, match="--output: .*rows.csv is the input itself"):
        predict_file(model, str(path), tmp_path / "." / "rows.csv", 10, print)
    assert path.read_text() == "input\ncat\n"


def test_long_texts_are_cut_only_when_told(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    path = tmp_path / "rows.jsonl"
    texts = ["a", "eleven different words make more numbers than a model takes here"]
    path.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    shown: list[str] = []
    (problem,) = predict_file(model, str(path), None, 10, shown.append)
    assert problem.startswith("row 1: a text of ") and "the model takes 12, the rest would be cut" in problem
    assert len(shown) == 1
    assert predict_file(model, str(path), None, 10, shown.append, truncate=True) == [] and len(shown) == 3


def test_a_threshold_says_which_rows_are_answered(tmp_path: Path) -> None:
    model, network = package(
        tmp_path, "numeric", calibration={"temperature": 2.0, "threshold": 0.5}, **COLUMNS
    )
    values = numbers(8)
    found, _ = lines(model, write_numbers(tmp_path, ".csv", values.tolist(), list(range(8))))
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(values)).logits / 2, 1).numpy()
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-5)
    assert [row["answered"] for row in found] == (expected.max(1) >= 0.5).tolist()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_regressor_gives_values(tmp_path: Path, suffix: str) -> None:
    model, network = package(tmp_path, "numeric", target={"mean": 400.0, "std": 9.0}, **COLUMNS)
    values = numbers(5)
    rows: list[Any] = values.tolist()
    rows[3][0] = "x"
    target = tmp_path / f"out{suffix}"
    source = write_numbers(tmp_path, ".csv", rows, list("abcde"))
    assert len(predict_file(model, str(source), target, 3, print, on_bad_row="null")) == 1
    with torch.no_grad():
        expected = network(torch.from_numpy(values)).logits[:, 0].numpy()
    assert abs(expected - 400).max() < 100  # in the labels' units
    if suffix == ".csv":
        found: list[Any] = list(csv.DictReader(target.open()))
        assert found[3]["value"] == ""
    else:
        found = [json.loads(line) for line in target.read_text().splitlines()]
        assert found[3]["value"] is None and list(found[0]) == ["id", "value", "problem"]
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose([float(found[i]["value"]) for i in kept], expected[kept], rtol=1e-5)


# ------------------------------------------------------------------------------------------ many files


@pytest.mark.slow
def test_many_files_side_by_side(tmp_path: Path, ray_session: None) -> None:
    model, network = package(tmp_path, "numeric", input=COLUMNS["input"])
    values = numbers(30)
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    for i, place in enumerate((folder / "a", folder / "b", folder / "deep")):
        place.mkdir(exist_ok=True)
        write_numbers(place, ".csv", values[i * 10 : i * 10 + 10].tolist())
    (folder / "b" / "rows.csv").write_text("f0,f1,f2,f3\n1,2,3,4\n,,,\n")
    said: list[str] = []
    problems = predict_files(model, str(folder), output, 2, Options(), done=said.append)
    assert problems == ["rows.csv: row 1: column 'f0' is missing or NaN"] and len(said) == 3
    found = pq.read_table(output / "deep" / "rows.parquet")
    expected = probabilities(network, values[20:])
    np.testing.assert_allclose(found["probabilities"].to_pylist(), expected, rtol=1e-5)
    assert found["id"].to_pylist() == list(range(10))
    assert pq.read_table(output / "b" / "rows.parquet").num_rows == 1
    (output / "a" / "rows.parquet").unlink()
    before = (output / "deep" / "rows.parquet").stat().st_mtime_ns
    predict_files(model, str(folder), output, 2, Options(), done=said.append)
    assert "2 of 3 files are there already" in said
    assert (output / "a" / "rows.parquet").exists()
    assert (output / "deep" / "rows.parquet").stat().st_mtime_ns == before


def test_ids_of_any_type_are_written(tmp_path: Path) -> None:
    """Dates among them, impossible ones too."""
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    far = pa.array([2**62] * 10, pa.int64())
    for i, ids in enumerate(
        (far.cast(pa.timestamp("us")), far.cast(pa.timestamp("ms")), pa.array([b"\xff"] * 10))
    ):
        table = pa.table({f"f{j}": values for j, values in enumerate(numbers().T)} | {"key": ids})
        with (
            pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
        found, problems = lines(model, tmp_path / "a.arrow")
        assert not problems and all(isinstance(row["id"], str) for row in found), i


def _with_csv(model: Path, csv: dict[str, Any]) -> None:
    """The folder of a model whose training data were read by such settings."""
    from ensemble_kd.artifacts import finish, read_json, read_manifest, write_json

    config = read_json(model / "config.json")
    config["info"]["preprocess"]["csv"] = csv
    write_json(model / "config.json", config)
    kept = read_manifest(model)
    assert kept is not None
    finish(
        model,
        Identity(kept.stage, kept.fingerprint, kept.config, kept.inputs),
        list(kept.files),
        kept.summary,
    )


def test_files_are_read_as_the_training_data_were(tmp_path: Path) -> None:
    model, network = package(tmp_path, "numeric", **COLUMNS)
    values, told = numbers(), list[str]()
    rows = [["key", *COLUMNS["input"]], *([f"k{i}é", *map(str, row)] for i, row in enumerate(values))]

    def write(delimiter: str, encoding: str) -> list[str]:
        text = "\n".join(delimiter.join(row) for row in rows)
        (tmp_path / "rows.csv").write_text(text, encoding=encoding)
        shown: list[str] = []
        assert not predict_file(model, str(tmp_path / "rows.csv"), None, 4, shown.append, note=told.append)
        found = [json.loads(line) for line in shown]
        expected = probabilities(network, values)
        np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-4)
        return [row["id"] for row in found]

    ids = [f"k{i}é" for i in range(10)]
    assert write(";", "utf-8") == ids and not told
    assert write("\t", "cp1252") == ids
    assert len(told) == 1 and "rows.csv: not UTF-8 from line 2 on, so read as Windows-1252" in told[0]
    with pytest.raises(InputError, match="no column 'f0' in rows.csv"):
        write("^", "utf-8")
    _with_csv(model, {"delimiter": "^", "encoding": "cp1251"})
    assert write("^", "cp1251".replace("1251", "1252")) != ids  # as the setting says
    assert write("^", "utf-8") == ids
    _with_csv(model, {"delimiter": "^", "encoding": None})
    assert write("^", "utf-8") == ids
    assert write(",", "utf-8") == ids  # a file with a delimiter of its own


def test_files_that_lack_a_column_are_told_before_ray_starts(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", input=COLUMNS["input"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.csv").write_text("f0,f1\n1,2\n")
    with pytest.raises(InputError, match=r"INPUT: no column 'f2' in x.csv"):
        predict_files(model, str(tmp_path / "in"), tmp_path / "out", 2, Options())
    (tmp_path / "in" / "x.csv").write_text("f0,f1,f2,f3\n1,2,3,4\n")
    (tmp_path / "in" / "x.jsonl").write_text('{"f0": 1, "f1": 1, "f2": 1, "f3": 1}\n')
    with pytest.raises(InputError, match="differ in their ending only"):
        predict_files(model, str(tmp_path / "in"), tmp_path / "out", 2, Options())


def test_the_command_says_how_to_have_long_texts_answered(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ensemble_kd.cli import app

    model, _ = package(tmp_path, "text")
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"input": ["pay", "my card is lost " * 400]}), source)
    result = CliRunner().invoke(app, ["predict", str(model), str(source)])
    assert "skipped: row 1" in result.stderr and "--truncate" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    result = CliRunner().invoke(app, ["predict", str(model), str(source), "--truncate"])
    assert result.stderr == "" and len(result.stdout.splitlines()) == 2


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    from ensemble_kd.cli_models import _here

    (tmp_path / "my run" / "model").mkdir(parents=True)
    assert _here(str(tmp_path / "my run")) == tmp_path / "my run"  # no model there: told as before
    (tmp_path / "my run" / "model" / "config.json").write_text("{}")
    assert _here(str(tmp_path / "my run")) == tmp_path / "my run" / "model"
    assert _here(str(tmp_path / "my run" / "model")) == tmp_path / "my run" / "model"
