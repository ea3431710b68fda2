"""Paths as users have them: names with wildcards, names that are none, and what is not a plain file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import given
from hypothesis import strategies as st

from ensemble_kd.config import PredictionsConfig, load_config
from ensemble_kd.data.corpus import corpus_problems
from ensemble_kd.data.files import list_files
from ensemble_kd.data.predictions import align, predictions_fingerprint
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_info
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.paths import missing, missing_data

ODD = ["a[1]", "run [2024-01-02] (b)", "what?", "all*", "[!x]", "**", "a=1", "%41", "~x", "#1"]
LONG = "x" * 5000


def rows(first: int, last: int) -> pa.Table:
    return pa.table({"x": [float(i) for i in range(first, last)], "y": [i % 2 for i in range(first, last)]})


def numeric(path: Any, **data: Any) -> Any:
    return make_config(path=path, kind="numeric", columns={"input": "x", "label": "y"}, **data)


@pytest.mark.parametrize("odd", ODD)
def test_a_name_with_wildcards_is_a_name(tmp_path: Path, odd: str) -> None:
    folder = tmp_path / odd
    folder.mkdir()
    for split, table in (("train", rows(0, 20)), ("test", rows(20, 26))):
        pacsv.write_csv(table, folder / f"{split}.csv")
    pacsv.write_csv(rows(90, 94), folder / f"more {odd}.csv")
    (folder / f"names {odd}.txt").write_text("even\nodd\n")
    (tmp_path / "a1").mkdir()
    pacsv.write_csv(rows(50, 60), tmp_path / "a1" / "train.csv")  # what a[1] would match
    extra = {"unlabelled": str(folder / f"more {odd}.csv"), "class_names": f"names {odd}.txt"}
    for path in (
        str(folder),
        {split: str(folder / f"{split}.csv") for split in ("train", "test")},
        f"{folder}/t*.csv" if odd != "**" else str(folder),
    ):
        counts = prepare(numeric(path, **extra), tmp_path / "out")[0].counts
        assert counts["transfer"] - counts["train"] == 4
        assert load_info(tmp_path / "out").class_names == ["even", "odd"]
        rows_read = counts["train"] + counts["validation"] + counts["test"]
        assert rows_read == 26
    assert source_fingerprint(numeric(str(folder), **extra).data)


def test_wildcards_below_a_folder_that_has_them_in_its_name(tmp_path: Path) -> None:
    for name in ("a[1]", "a1", "a[1]x"):
        (tmp_path / name).mkdir()
        pacsv.write_csv(rows(0, 9), tmp_path / name / "part-0.csv")
    pieces, folder = list_files(f"{tmp_path}/a[1]/part-*.csv", "data.path")
    assert [piece.path for piece in pieces] == [f"{tmp_path}/a[1]/part-0.csv"] and not folder
    pieces, _ = list_files(f"{tmp_path}/a[1]*/part-*.csv", "data.path")
    assert [piece.path for piece in pieces] == [f"{tmp_path}/a1/part-0.csv"]


@pytest.mark.parametrize("odd", ODD)
def test_predictions_and_corpora_of_odd_names(tmp_path: Path, odd: str) -> None:
    from ensemble_kd.config import CorpusConfig

    path = tmp_path / f"{odd}.parquet"
    pq.write_table(pa.table({"id": [1, 0], "logits": [[1.0, 2.0], [3.0, 4.0]]}), path)
    files = PredictionsConfig(train=[str(path)])
    assert predictions_fingerprint(files)
    np.testing.assert_array_equal(align(str(path), files, np.array([0, 1]), 2), [[3, 4], [1, 2]])
    pq.write_table(pa.table({"text": ["a b"]}), path)
    assert corpus_problems(CorpusConfig(path=str(path), column="text")) == []


# ---------------------------------------------------------------------------- what names nothing to read


BAD = {
    "": "an empty path",
    "  ": "an empty path",
    "~nosuchuser/train.csv": "there is no user 'nosuchuser' here",
    LONG: "longer than a path can be",
    f"/{'/'.join(['y' * 200] * 30)}": "longer than a path can be",
    f"[{LONG}": "longer than a path can be",
    "/no/such/file.csv": "no such file or folder",
}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path[:12] or "empty")
def test_a_path_that_names_nothing(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pacsv.write_csv(rows(0, 20), tmp_path / "train.csv")  # an empty path must not find it
    text = BAD[path]

    def says(line: str) -> bool:
        """Of the configuration: its own check of empty and very long texts comes first."""
        return any(
            x in line for x in (text, "empty; give a value, or leave it out", "at most 4,096; shorten it")
        )

    for given_path in (path, {"train": path}):
        with pytest.raises(ConfigError) as error:
            numeric(given_path)
        (line,) = error.value.problems
        assert line.startswith("data.path") and says(line) and len(line) < 600
    with pytest.raises(InputError) as caught:
        list_files(path, "INPUT")
    assert caught.value.problems[0].startswith("INPUT: ") and text in str(caught.value)
    with pytest.raises((ConfigError, InputError), match="data.unlabelled: ") as wrong:
        prepare(numeric("train.csv", unlabelled=path), tmp_path / "out")
    assert says(str(wrong.value))
    with pytest.raises((ConfigError, InputError)) as wrong:
        prepare(numeric("train.csv", class_names=path), tmp_path / "out")
    assert "data.class_names: " in str(wrong.value) and len(str(wrong.value)) < 600
    with pytest.raises(InputError) as caught:
        predictions_fingerprint(PredictionsConfig(train=[path]))
    assert text.replace(" or folder", "") in str(caught.value)
    with pytest.raises((ConfigError, InputError)) as named:
        prepare(make_config(source="hub", hub_name=path), tmp_path / "out")
    assert "data.hub_name" in str(named.value) and len(str(named.value)) < 800


@given(st.text(max_size=80))
def test_any_text_as_a_path_is_a_line_or_a_file(text: str) -> None:
    for problem in (missing(text), missing_data(text)):
        assert problem is None or (problem and "\n" not in problem.replace(text, ""))


def special(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_may_never_end_is_not_opened(kind: str, tmp_path: Path) -> None:
    odd = tmp_path / "train.csv"
    special(kind, odd)
    said = f"is a {kind}, which may never end"
    with pytest.raises(ConfigError, match=said):
        numeric(str(odd))
    with pytest.raises(InputError, match=said):
        list_files(str(odd), "INPUT")
    good = tmp_path / "good.csv"
    pacsv.write_csv(rows(0, 20), good)
    for field in ("class_names", "unlabelled"):
        with pytest.raises(InputError, match=said):
            prepare(numeric(str(good), **{field: str(odd)}), tmp_path / "out")
    with pytest.raises(InputError, match=said):
        predictions_fingerprint(PredictionsConfig(train=[str(odd)]))
    (tmp_path / "set").mkdir()  # in a folder it is no data
    special(kind, tmp_path / "set" / "train-0.csv")
    with pytest.raises(InputError, match="no data file in"):
        list_files(str(tmp_path / "set"), "INPUT")


def test_check_of_a_pipe_ends_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "c.yaml").write_text(
        f"name: a\ndata: {{path: {tmp_path}/train.csv, kind: numeric, columns: {{input: x, label: y}}}}\n"
        "teachers: {model: {name: mlp}}\nstudent: {model: {name: mlp}}\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_kd", "check", str(tmp_path / "c.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "is a pipe" in done.stderr and time.monotonic() - began < 30
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "c.yaml"))
