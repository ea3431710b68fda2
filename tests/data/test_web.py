"""Data behind addresses: presigned ones with a query, servers that refuse, and stores that never answer."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from data_cases import make_config

from ensemble_kd.data import fetch
from ensemble_kd.data.corpus import corpus_problems
from ensemble_kd.data.files import list_files
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_split
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.errors import InputError
from ensemble_kd.remote import SECONDS, within

SECRET = "0pen%2FSesame%2B"
SIGNED = f"X-Amz-Credential=AKIA%2F20260101&X-Amz-Signature={SECRET}"


class Signed(BaseHTTPRequestHandler):
    """Answers GET with the query that belongs to it, as a store does a presigned address: nothing else."""

    files: dict[str, bytes] = {}
    seen: list[str] = []

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        type(self).seen.append(self.path)
        if parts.query != SIGNED or "Range" in self.headers:
            self.send_error(403, "SignatureDoesNotMatch")
        elif unquote(parts.path) not in self.files:
            self.send_error(404)
        else:
            body = self.files[unquote(parts.path)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Signed]]]:
    class Here(Signed):
        files: dict[str, bytes] = {}
        seen: list[str] = []

    monkeypatch.setattr(fetch, "_fetched", {})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}", Here
    httpd.shutdown()
    httpd.server_close()


def table(count: int = 20) -> pa.Table:
    return pa.table({"x": [float(i) for i in range(count)], "y": [i % 2 for i in range(count)]})


def written(name: str) -> bytes:
    sink = pa.BufferOutputStream()
    if "parquet" in name:
        pq.write_table(table(), sink)
    elif "arrow" in name:
        with pa.ipc.new_file(sink, table().schema) as writer:
            writer.write_table(table())
    elif "json" in name:
        sink.write(json.dumps(table().to_pylist()).encode())
    else:
        pacsv.write_csv(table(), sink)
    data = bytes(sink.getvalue().to_pybytes())
    return gzip.compress(data) if name.endswith(".gz") else data


def numeric(path: Any, **data: Any) -> Any:
    return make_config(path=path, kind="numeric", columns={"input": "x", "label": "y"}, **data)


@pytest.mark.parametrize(
    "name", ["rows.parquet", "rows.csv", "rows.csv.gz", "rows.json", "rows.arrow", "a%20b[1].csv", "r*.csv"]
)
def test_a_presigned_address_is_read_by_get_with_its_query(
    server: tuple[str, type[Signed]], tmp_path: Path, name: str
) -> None:
    base, files = server
    files.files[f"/data/{unquote(name)}"] = written(name)
    url = f"{base}/data/{name}?{SIGNED}"
    prepare(numeric(url), tmp_path / "out")
    rows = [load_split(tmp_path / "out", split).inputs for split in ("transfer", "validation", "test")]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)[:, 0]), np.arange(20))
    assert len(files.seen) == 1  # read twice, fetched once
    assert parse_qs(urlsplit(files.seen[0]).query)["X-Amz-Signature"] == ["0pen/Sesame+"]
    piece = list_files(url, "INPUT")[0][0]
    assert piece.origin == url and "?" not in piece.name and "?" not in piece.path


def test_the_query_is_neither_in_messages_nor_in_fingerprints(
    server: tuple[str, type[Signed]], tmp_path: Path
) -> None:
    base, files = server
    files.files["/rows.csv"] = b"x,y\n1,2,3\n4,5\n"
    with pytest.raises(InputError) as error:
        prepare(numeric(f"{base}/rows.csv?{SIGNED}"), tmp_path / "out")
    assert SECRET not in str(error.value) and "rows.csv: cannot be read as CSV" in str(error.value)
    with pytest.raises(InputError) as error:
        prepare(numeric(f"{base}/rows.csv?token={SECRET}"), tmp_path / "out")
    assert SECRET not in str(error.value)
    assert f"{base}/rows.csv: the server answers 403" in str(error.value) and "expired" in str(error.value)
    files.files["/rows.csv"] = written("rows.csv")
    fetch._fetched.clear()
    (tmp_path / "rows.csv").write_bytes(files.files["/rows.csv"])
    here = source_fingerprint(numeric(str(tmp_path / "rows.csv")).data)
    assert source_fingerprint(numeric(f"{base}/rows.csv?{SIGNED}").data) == here


def test_wherever_a_path_is_taken(server: tuple[str, type[Signed]], tmp_path: Path) -> None:
    from ensemble_kd.config import CorpusConfig

    base, files = server
    files.files = {"/rows.csv": written("rows.csv"), "/names.txt": "ja\nnö\n".encode("latin-1")}
    files.files["/texts.csv"] = b"text\na b\n"
    signed = f"{base}/rows.csv?{SIGNED}"
    (tmp_path / "rows.csv").write_bytes(written("rows.csv"))
    config = numeric({"train": signed, "test": signed}, class_names=f"{base}/names.txt?{SIGNED}")
    assert prepare(config, tmp_path / "out")[0].class_names == ["ja", "nö"]
    assert prepare(numeric(str(tmp_path / "rows.csv"), unlabelled=signed), tmp_path / "out")[0].counts
    assert corpus_problems(CorpusConfig(path=f"{base}/texts.csv?{SIGNED}", column="text")) == []


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("/none.csv?" + SIGNED, "no such file or folder"),
        ("/rows?" + SIGNED, "of no known kind"),
        ("/rows.csv?expired=1", "answers 403"),
    ],
)
def test_what_a_server_refuses(
    server: tuple[str, type[Signed]], tmp_path: Path, address: str, text: str
) -> None:
    base, files = server
    files.files = {"/rows": b"x", "/rows.csv": b"x,y\n"}
    with pytest.raises(InputError) as error:
        list_files(base + address, "data.path")
    (line,) = error.value.problems
    assert line.startswith("data.path: ") and text in line and SECRET not in line


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError) as error:
        list_files(f"http://127.0.0.1:{port}/rows.csv?{SIGNED}", "data.path")
    assert "Connection refused" in str(error.value) and SECRET not in str(error.value)


# ------------------------------------------------------------------------------- stores that never answer


@contextmanager
def silent() -> Iterator[int]:
    """A port at which connections are taken, and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    with silent() as port, pytest.raises(InputError, match="no answer within 0.3 s"):
        list_files(f"http://127.0.0.1:{port}/rows.csv", "INPUT")


def test_within_gives_back_raises_and_gives_up() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: dict[int, int]()[0])
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.1 s"):
        within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_an_s3_store_that_says_nothing_costs_seconds(tmp_path: Path) -> None:
    """Until the process has ended: Arrow waits for requests that are still running. All wait at once."""
    arguments = ("INPUT", "MODEL", "data.path")
    with ThreadPoolExecutor(len(arguments)) as pool:
        list(pool.map(_asks_a_silent_store, arguments, [tmp_path] * len(arguments)))


def _asks_a_silent_store(argument: str, folder: Path) -> None:
    with silent() as port:
        url = f"s3://key:{SECRET}@bucket/rows.csv?scheme=http&endpoint_override=127.0.0.1:{port}&region=x"
        if argument == "data.path":
            (folder / "c.yaml").write_text(
                f'name: a\ndata: {{path: "{url}", kind: text}}\n'
                "teachers: {model: {name: bag}}\nstudent: {model: {name: bag}}\n"
            )
            command = ["check", "c.yaml"]
        elif argument == "INPUT":
            code = (
                "import sys; from ensemble_kd.data.files import list_files; list_files(sys.argv[1], 'INPUT')"
            )
            command = []
        else:
            command = ["predict", url, "rows.csv"]
        began = time.monotonic()
        program = ["-m", "ensemble_kd", *command] if command else ["-c", code, url]
        done = subprocess.run(
            [sys.executable, *program], capture_output=True, text=True, timeout=100, cwd=folder
        )
        took = time.monotonic() - began
    assert took < SECONDS + 15, (argument, took)  # with the imports, on a busy machine
    assert SECRET not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert argument in last or "s3://bucket/rows.csv: " in last, done.stderr
    if command:
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
