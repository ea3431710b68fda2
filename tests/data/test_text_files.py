"""Delimiters, encodings and forms of JSON: found, settable, the same for predict; what is none, in a line."""

from __future__ import annotations

import bz2
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import Config, CsvConfig
from ensemble_kd.data.csv_format import find_delimiter
from ensemble_kd.data.files import list_files
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.json_stream import _depths, check_depth, json_lines
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.sources import open_source
from ensemble_kd.data.text_stream import CHUNK, MARK, utf8
from ensemble_kd.data.tokenize import learn_subwords
from ensemble_kd.data.tolerant import batches, columns_of
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.stages import data as data_stage

WORDS = ["déjà vu, mon ami", 'she said "€ 5"', "plain; old", "a|b\tc", "straße", "x"]
TEXTS = [f"{WORDS[i % 6]} {i}" for i in range(30)]
LABELS = [("oui", "nön")[i % 2] for i in range(30)]


def csv_text(delimiter: str, quote: bool = True) -> str:
    lines = [f"text{delimiter}label"]
    for text, label in zip(TEXTS, LABELS, strict=True):
        cell = '"' + text.replace('"', '""') + '"' if quote else text
        lines.append(f"{cell}{delimiter}{label}")
    return "\n".join(lines) + "\n"


def texts(path: Path | str, **data: Any) -> Config:
    columns = {"input": "text", "label": "label"}
    return make_config(path=str(path), kind="text", columns=columns, **data)


def read(path: Path, csv: CsvConfig | None = None) -> list[tuple[str, str]]:
    """Texts and labels, which training and `predict` read alike; and what was told."""
    piece = list_files(str(path), "INPUT", csv)[0][0]
    strict = pa.concat_tables(piece.batches(["text", "label"], 7))
    assert columns_of(piece) == piece.columns()
    parts = list(batches(piece, ["text", "label"], 7))
    assert all(not bad for _, bad in parts)
    tolerant = pa.concat_tables([table for table, _ in parts])
    assert tolerant.to_pylist() == strict.to_pylist()
    return [(row["text"], row["label"]) for row in strict.to_pylist()]


EXPECTED = list(zip(TEXTS, LABELS, strict=True))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV"])
def test_delimiters_are_found(tmp_path: Path, delimiter: str, name: str) -> None:
    (tmp_path / name).write_text(csv_text(delimiter), encoding="utf-8")
    assert read(tmp_path / name) == EXPECTED
    assert inspect_source(texts(tmp_path / name)) == []


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.csv.gz", "a.json.bz2"])
def test_encodings_are_found_and_told(tmp_path: Path, encoding: str, name: str) -> None:
    rows = [{"text": text, "label": label} for text, label in EXPECTED]
    content = csv_text(";")
    if "json" in name:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        content = "\n".join(lines) if name == "a.jsonl" else json.dumps(rows, ensure_ascii=False, indent=1)
    data = content.encode(encoding)
    data = gzip.compress(data) if name.endswith(".gz") else data
    data = bz2.compress(data) if name.endswith(".bz2") else data
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == EXPECTED
    problems = Problems()
    source = open_source(texts(tmp_path / name).data, problems)
    for piece in source.splits["train"]:
        list(piece.batches(["text"], 100))
    told = " ".join(problems.warnings)
    assert not problems and (encoding.startswith("utf-8") is (told == ""))
    if encoding == "cp1252":
        assert "not UTF-8 from line 2 on" in told or "from line 1 on" in told or "from line 3 on" in told
        assert "data.csv.encoding" in told


def test_an_encoding_is_found_late(tmp_path: Path) -> None:
    """Megabytes of ASCII before the first letter that tells."""
    filler = "plain text,yes\n" * (3 * CHUNK // 15)
    (tmp_path / "a.csv").write_bytes(f"text,label\n{filler}naïve,no\n".encode("latin-1"))
    piece = list_files(str(tmp_path / "a.csv"), "INPUT")[0][0]
    *_, last = piece.batches(["text", "label"], 1000)
    assert last.to_pylist()[-1] == {"text": "naïve", "label": "no"}


def test_one_wrong_byte_in_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    good = csv_text(",").encode()
    lines = good.splitlines(keepends=True)
    lines[9] = b'"broken \xff\xfe here",oui\n'
    (tmp_path / "a.csv").write_bytes(b"".join(lines))
    with pytest.raises(InputError, match="a.csv: line 10: byte 0xff is not UTF-8"):
        read(tmp_path / "a.csv")
    piece = list_files(str(tmp_path / "a.csv"), "INPUT")[0][0]
    ((table, bad),) = batches(piece, ["text", "label"], 100)
    assert bad == {8: "column 'text' holds bytes that are not UTF-8"}
    assert table["text"].to_pylist() == [*TEXTS[:8], None, *TEXTS[9:]]
    rows = [json.dumps({"text": text, "label": "x"}, ensure_ascii=False).encode() for text in TEXTS]
    rows[4] = b'{"text": "\xff", "label": "x"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    piece = list_files(str(tmp_path / "a.jsonl"), "INPUT")[0][0]
    ((table, bad),) = batches(piece, ["text"], 100)
    assert list(bad) == [4] and table["text"].to_pylist() == [*TEXTS[:4], None, *TEXTS[5:]]


@settings(max_examples=200, deadline=None)
@given(st.text(), st.lists(st.integers(1, 40), max_size=4), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_text_comes_back_however_it_is_cut(text: str, cuts: list[int], encoding: str) -> None:
    data = text.encode(encoding)
    parts, begin = [], 0
    for cut in cuts:
        parts.append(data[begin : begin + cut])
        begin += cut
    chunks = [*(part for part in parts if part), data[begin:]] if len(data) > 4 else [data]
    if len(chunks[0]) < 4:  # a real chunk holds the whole mark
        chunks = [b"".join(chunks)]
    expected = text.removeprefix("\ufeff") if encoding == "utf-8" else text
    if data[:4] in (b"PAR1", b"ARRO", b"PK\x03\x04") or "\0" in text:
        return
    assert b"".join(utf8(iter(chunks), "a")).decode() == expected


@given(st.binary(max_size=200))
def test_what_is_marked_is_utf8(data: bytes) -> None:
    try:
        text = b"".join(utf8(iter([data]), "a", "utf-8", wrong="mark")).decode()
    except InputError as error:
        assert "it is" in str(error)
        return
    plain = data.removeprefix(b"\xef\xbb\xbf") if data.startswith(b"\xef\xbb\xbf") else data
    if not any(mark in str(data[:4]) for mark in ("xff", "xfe")):
        assert text.replace(MARK, "\ufffd") == plain.decode("utf-8", "replace") or MARK in text


# ---------------------------------------------------------------------------------------------- settings


def test_settings_are_taken_and_travel_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_text("^").encode("mac_roman"))
    plain = inspect_source(texts(tmp_path / "a.csv"))
    assert "no column 'text' in a.csv; it has 'text^label'" in plain[0]
    config = texts(tmp_path / "a.csv", csv={"delimiter": "^", "encoding": "mac_roman"})
    assert inspect_source(config) == []
    info, _ = prepare(config, tmp_path / "out")
    assert info.preprocess["csv"] == {"delimiter": "^", "encoding": "mac_roman"}
    assert Preprocessor(info, tmp_path / "out").columns == ["text"]


def test_defaults_leave_fingerprints_and_models_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(csv_text(","), encoding="utf-8")
    plan = data_stage.plan(texts(tmp_path / "a.csv"), tmp_path)
    assert "csv" not in plan.config["data"]
    assert "csv" not in prepare(texts(tmp_path / "a.csv"), tmp_path / "out")[0].preprocess
    other = data_stage.plan(texts(tmp_path / "a.csv", csv={"delimiter": ","}), tmp_path)
    assert other.config["data"]["csv"]["delimiter"] == "," and other.fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    "csv",
    [{"delimiter": ""}, {"delimiter": ",,"}, {"delimiter": '"'}, {"encoding": "utf-88"}, {"encoding": "hex"}],
)
def test_settings_that_cannot_be(tmp_path: Path, csv: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.csv\.(delimiter|encoding): "):
        texts(tmp_path, csv=csv)


@given(
    st.sampled_from(",;\t|"),
    st.lists(st.lists(st.text("ab ,;|.é", max_size=8), min_size=3, max_size=3), min_size=1, max_size=20),
)
def test_a_quoted_files_delimiter_is_found(delimiter: str, rows: list[list[str]]) -> None:
    lines = [["one", "two", "three"], *rows]
    sample = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in lines)
    assert find_delimiter(sample, False, ",") == delimiter


# -------------------------------------------------------------------------------------------------- JSON


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text(max_size=6) | st.integers(-9, 9) | st.none()),
        max_size=9,
    ),
    st.integers(1, 50),
    st.sampled_from([None, 0, 2]),
)
def test_arrays_are_taken_apart(rows: list[dict[str, Any]], size: int, indent: int | None) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    chunks = iter([data[i : i + size] for i in range(0, len(data), size)])
    lines = b"".join(json_lines(chunks, "a", 10**6)).splitlines()
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'[{"text": "a"}, 3]', "element 1 of the array (from 0) is '3]', not an object"),
        (b'[{"text": "a"}, {"text": ]', "element 1 of the array (from 0) is not JSON"),
        (b'[{"text": "a"}', "is not JSON: the array does not end"),
        (b'[{"text": "a"}] {}', "goes on behind the end of the array"),
        (b"[" * 100_000, "not an object"),
        (b'[{"text": ' + b"[" * 100_000, "nested too deep"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested more than 256 levels deep"),
        (b'{"text": ' * 100_000, "nested more than 256 levels deep"),
        (b'{"text": [\n' + b"[\n" * 100_000, "nested more than 256 levels deep"),
        (b"null\n", "a row is null"),
        (b"PAR1 and so on", "it is a Parquet file"),
        (b"PK\x03\x04xl/workbook.xml", "an Excel workbook"),
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b'"text"\n', "not "),
    ],
    ids=lambda value: str(value[:24]),
)
def test_json_that_is_none(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    began = time.monotonic()
    lines = inspect_source(texts(tmp_path / "a.json"))
    assert lines and text in lines[0] and len(lines[0]) < 600, lines
    assert time.monotonic() - began < 10


def test_brackets_in_texts_are_no_depth(tmp_path: Path) -> None:
    rows = [{"text": "[{" * 300 + f' "quoted" \\ {i}', "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect_source(texts(tmp_path / "a.jsonl")) == []
    assert check_depth(b'{"a": "[[[["}\n', "a") == 0 and check_depth(b'{"a": [', "a") == 2
    hidden = b'{"a": "' + b"]" * 1000 + b'", "b": ' + b"[" * 500
    with pytest.raises(InputError, match="nested more than 256"):
        check_depth(hidden, "a")


@given(
    st.lists(
        st.recursive(
            st.text('[]{}"\\n a') | st.none(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\'), inner, max_size=3),
            max_leaves=8,
        ).map(lambda value: {"a": value}),
        max_size=5,
    ),
    st.sampled_from([None, 1]),
)
def test_depth_is_exact(rows: list[Any], indent: int | None) -> None:
    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    data = "".join(json.dumps(row, indent=indent) + "\n" for row in rows).encode()
    _, depths = _depths(data, 0)
    assert depths.max(initial=0) == max(map(depth, rows), default=0)
    assert check_depth(data, "a") == 0


def test_predict_skips_a_nested_line_alone(tmp_path: Path) -> None:
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + deep + b'\nnull\n{"text": "b"}\n')
    piece = list_files(str(tmp_path / "a.jsonl"), "INPUT")[0][0]
    assert columns_of(piece) == ["text"]
    ((table, bad),) = batches(piece, ["text"], 10)
    assert sorted(bad) == [1, 2] and table["text"].to_pylist() == ["a", None, None, "b"]


def test_texts_that_look_like_times_stay_texts(tmp_path: Path) -> None:
    rows = [{"text": f"2024-01-{1 + i:02d}", "label": f"2023-0{1 + i % 2}-01"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl") == [(row["text"], row["label"]) for row in rows]


# --------------------------------------------------------------------------------------------- hostile cells


def test_numbers_of_5000_digits(tmp_path: Path) -> None:
    huge = "9" * 5000
    rows = [f"{i},{i % 2}" for i in range(30)]
    for place, text in ((f"{huge},1", "column 'x' is inf"), (f"3,{huge}", "label ")):
        rows[7] = place
        (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]))
        lines = inspect_source(numeric(tmp_path / "a.csv"))
        assert all(text in line and len(line) < 600 for line in lines)
        assert lines or text == "label "  # a class of its own
    made = "".join(json.dumps({"x": i, "y": i % 2}) + "\n" for i in range(30))
    (tmp_path / "a.jsonl").write_text(made + f'{{"x": {huge}, "y": 1}}\n')
    assert "column 'x' is inf" in inspect_source(numeric(tmp_path / "a.jsonl"))[0]
    (tmp_path / "a.json").write_text(f'[{{"x": {huge}, "y": 1}}, {{"x": 1, "y": 0}}]')
    assert "column 'x' is inf" in " ".join(inspect_source(numeric(tmp_path / "a.json")))


def numeric(path: Path) -> Config:
    return make_config(path=str(path), kind="numeric", columns={"input": "x", "label": "y"})


def not_utf8(column: list[bytes]) -> pa.Array:
    raw = pa.array(column, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_texts_of_parquet_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    column = not_utf8([b"good", b"caf\xe9", *[b"more"] * 28])
    table = pa.table({"text": column, "label": LABELS})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    (line,) = inspect_source(texts(tmp_path / name))
    assert line.startswith(f"row 1 of {name}: column 'text' holds a text that is not UTF-8 (byte 0xe9)")
    piece = list_files(str(tmp_path / name), "INPUT")[0][0]
    parts = list(batches(piece, ["text"], 10))
    assert [bad for _, bad in parts if bad] == [
        {1: "column 'text' holds a text that is not UTF-8 (byte 0xe9); write it again in UTF-8"}
    ]
    assert parts[0][0]["text"].to_pylist()[:3] == ["good", None, "more"]


def test_impossible_dates(tmp_path: Path) -> None:
    when = pa.array([2**62] * 30, pa.int64()).cast(pa.timestamp("s"))
    table = pa.table({"text": TEXTS, "label": LABELS, "x": np.arange(30.0), "y": when, "when": when})
    micro = pa.array([2**62] * 30, pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(table.drop_columns(["when", "y"]).append_column("y", micro), tmp_path / "a.parquet")
    feather = pa.table({"text": TEXTS, "label": LABELS, "x": when})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, feather.schema) as writer:
        writer.write_table(feather)
    for path, column in ((tmp_path / "a.parquet", "y"), (tmp_path / "a.arrow", "x")):
        for columns in ({"input": "text", "label": column}, {"input": column, "label": "label"}):
            for kind in ("text", "numeric"):
                lines = inspect_source(make_config(path=str(path), kind=kind, columns=columns))
                assert lines and all("\n" not in line and len(line) < 600 for line in lines)


def test_a_word_of_a_megabyte_is_learned_around(tmp_path: Path) -> None:
    config = make_config(
        kind="text", source="files", path=str(tmp_path), text={"tokenizer": "subword", "vocabulary_size": 100}
    ).data.text
    ordinary = ["the quick brown fox", "jumps over the lazy dog, https://example.org/a/b/c"] * 20
    huge = "ab" * 500_000
    (tmp_path / "plain").mkdir()
    (tmp_path / "huge").mkdir()
    plain = learn_subwords(lambda: [ordinary], config, tmp_path / "plain")
    began = time.monotonic()
    letters = ["a b " * 3]  # the word's letters count, as before
    mixed = learn_subwords(lambda: [ordinary, [f"so {huge}, it is"]], config, tmp_path / "huge")
    ids, ends = mixed.encode([huge, f"the {huge} fox", "the fox"])
    assert time.monotonic() - began < 10
    assert ids[: ends[1]].tolist() == [mixed.unknown + 1] and letters
    assert np.diff(ends)[1] == np.diff(ends)[2] + 1
    again = learn_subwords(lambda: [ordinary], config, tmp_path / "huge")
    assert (tmp_path / "huge" / "tokenizer.json").read_bytes() == (
        tmp_path / "plain" / "tokenizer.json"
    ).read_bytes()
    assert again.size == plain.size
