"""Arbitrary bytes as data files, and real files with some of their bytes changed: success or one line.

Each read has 10 s and 1 GB, in a process of its own, so that what would end it is found.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from limits import Limited

SECONDS = float(os.environ.get("ENSEMBLE_KD_FUZZ_SECONDS", "20"))
"""Of a long test, each."""
NAMES = [
    "a.csv",
    "a.tsv",
    "a.csv.gz",
    "a.json",
    "a.jsonl",
    "a.parquet",
    "zstd.parquet",
    "a.arrow",
    "a.feather",
    "a.ipc",
]


def table(rows: int = 40) -> pa.Table:
    number = np.random.default_rng(0)
    return pa.table(
        {
            "text": [f'row {i}, "quoted" — ünïcode' for i in range(rows)],
            "x": number.normal(size=rows),
            "z": number.integers(0, 100, rows),
            "label": [("no", "yes", "perhaps")[i % 3] for i in range(rows)],
            "id": list(range(rows)),
        }
    )


def _varied(made: pa.Table) -> pa.Table:
    """The columns of text once more in further forms."""
    text, label = made["text"].combine_chunks(), made["label"].combine_chunks()
    more = {
        "dictionary": label.dictionary_encode(),
        "view": text.cast(pa.string_view()),
        "large": label.cast(pa.large_string()),
        "nested": pa.StructArray.from_arrays([text, made["list"].combine_chunks()], ["a", "b"]),
    }
    for key, column in more.items():
        made = made.append_column(key, column)
    return made


def whole(name: str) -> bytes:
    """A sound file of that name."""
    made = table()
    lists = pa.array(np.random.default_rng(1).normal(size=(made.num_rows, 4)).tolist())
    sink = pa.BufferOutputStream()
    if ".csv" in name or ".tsv" in name:
        pacsv.write_csv(made, sink, pacsv.WriteOptions(delimiter="\t" if ".tsv" in name else ","))
        data = sink.getvalue().to_pybytes()
        return gzip.compress(data, mtime=0) if name.endswith(".gz") else data
    made = made.append_column("list", lists)
    if name in ("a.arrow", "a.ipc"):
        made = _varied(made)
    if ".json" in name:
        rows = made.to_pylist()
        return (
            json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
        ).encode()
    if name.endswith("parquet"):
        pq.write_table(made, sink, compression="zstd" if "zstd" in name else "snappy", row_group_size=16)
    elif name == "a.feather":
        feather.write_feather(made, sink, compression="lz4")
    elif name == "a.arrow":
        feather.write_feather(made, sink, compression="uncompressed")
    else:
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made, max_chunksize=11)
    return bytes(sink.getvalue().to_pybytes())


def changed(data: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(out) + 1)
        how = draw.randrange(7)
        if how <= 1 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif how == 2 and at < len(out):
            out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, *b'"[]{},;\n'))
        elif how == 3:
            del out[at:]
        elif how == 4:
            del out[at : at + draw.randrange(1, 20)]
        elif how == 5:
            out[at:at] = out[at : at + draw.randrange(1, 200)] * draw.choice((1, 1, 50))
        else:
            size = draw.choice((1, 4, 8))
            out[at : at + size] = draw.choice((b"\xff", b"\x7f", b"\x00")) * size
    return bytes(out)


@pytest.fixture(scope="module")
def reader() -> Iterator[Limited]:
    with Limited("reading:read") as limited:
        yield limited


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_file_is_read(name: str, reader: Limited, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(whole(name))
    lines = reader(str(tmp_path / name))
    assert all("no column" in line or "leaves no" in line for line in lines), lines


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode), seed=st.integers(0, 2**32))
def test_any_bytes_end_well(name: str, reader: Limited, tmp_path: Path, content: bytes, seed: int) -> None:
    for data in (content, changed(whole(name), random.Random(seed))):
        (tmp_path / name).write_bytes(data)
        reader(str(tmp_path / name))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files_end_well(name: str, reader: Limited, tmp_path: Path) -> None:
    sound, began, seed = whole(name), time.monotonic(), int.from_bytes(os.urandom(4), "big")
    while time.monotonic() < began + SECONDS:
        seed += 1
        data = changed(sound, random.Random(seed))
        (tmp_path / name).write_bytes(data)
        try:
            reader(str(tmp_path / name))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\nbegins {data[:2000]!r}") from error
