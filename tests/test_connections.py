"""Connections that strangers hold open, on real sockets: deadlines, limits, what is logged. Without Ray."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_cases import package

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from http_server import listening, serving

from benchmarks.fuzz import Fuzzer, answers, fuzzed, send
from ensemble_kd.serving.app import Limits
from ensemble_kd.serving.throttle import Throttle

QUICK = Limits(
    max_connections=20,
    max_head=2000,
    max_bytes=10_000,
    head_seconds=0.4,
    idle_seconds=0.6,
    body_seconds=0.5,
    write_seconds=0.5,
)
LATE = 10.0
"""Seconds that a busy machine may take for what takes half a one; nothing here would end by itself."""
JSON = {"Content-Type": "application/json"}
Address = tuple[str, int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("model"), "text", input="text")[0]


@pytest.fixture(scope="module")
def quick(model: Path) -> Iterator[Address]:
    with serving(model, QUICK) as address:
        yield address


def post(body: bytes) -> bytes:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


VALID = post(b'{"rows": [{"text": "cat"}]}')


def ended(address: Address, *pieces: bytes, pause: float = 0.0) -> tuple[float, bytes]:
    """Seconds after which the server ended a connection that sent this and waits, and what it said."""
    with socket.create_connection(address, timeout=30) as connection:
        begin, said = time.monotonic(), b""
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        try:
            while block := connection.recv(65_536):
                said += block
        except ConnectionResetError:
            pass
        return time.monotonic() - begin, said


# ----------------------------------------------------------------------------------------- deadlines


def test_an_idle_connection_ends(quick: Address) -> None:
    seconds, said = ended(quick)
    assert 0.2 < seconds < LATE and not said
    seconds, said = ended(quick, VALID)
    assert 0.4 < seconds < LATE and answers(said) == ([200], True)


@pytest.mark.parametrize("begin", [b"POST /pre", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_no_single_byte_moves_the_deadline_of_a_head(quick: Address, begin: bytes) -> None:
    said = ended(quick, begin)[1]
    assert answers(said) == ([408], True) and b"the head did not arrive within 0.4 s" in said
    for before in (b"", VALID):  # the second request of a connection, too
        seconds, said = ended(quick, before + begin, *[b"a"] * 400, pause=0.05)
        assert seconds < LATE and len(said) < 1000


def test_half_a_body_ends(quick: Address) -> None:
    said = ended(quick, VALID[:-5], *[b" "] * 4, pause=0.05)[1]
    assert answers(said) == ([408], True)
    # Nor may it go on for ever where nobody reads it.
    long = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    seconds, said = ended(quick, long, *[b"x"] * 400, pause=0.05)
    assert answers(said) == ([405], True) and seconds < LATE


def test_a_client_that_does_not_read_its_answers_ends(quick: Address) -> None:
    with socket.create_connection(quick, timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            end = time.monotonic() + 30
            while time.monotonic() < end:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
                time.sleep(0.01)


def test_an_answer_that_does_not_come(model: Path) -> None:
    import asyncio

    from ensemble_kd.inference.predictor import Predictor
    from ensemble_kd.serving.app import Description, create_app

    async def never(question: Any) -> Any:
        await asyncio.sleep(60)

    limits = Limits(answer_seconds=0.5)
    app = create_app(Description.of(Predictor(model)), never, limits)
    with listening(app, limits) as address:
        said = send(address, [VALID], 20.0)
    assert answers(said) == ([503], True) and b"no answer within 0.5 s" in said and b"retry-after: 1" in said


# --------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: a\r\n" % i for i in range(400)) + b"\r\n", 431),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400),
        (b"GET /nothing HTTP/1.1\r\nHost: [::1\r\n\r\n", 404),
        (b"GET /predict/ HTTP/1.1\r\nHost: [::1\r\n\r\n", 404),
    ],
)
def test_heads_that_are_refused(quick: Address, head: bytes, status: int) -> None:
    said = send(quick, [head], 20.0)
    assert answers(said) == ([status], True)
    assert list(json.loads(said.partition(b"\r\n\r\n")[2])) == ["problems"]


def test_a_header_and_a_trailer_without_an_end_are_not_collected(quick: Address) -> None:
    chunked = (
        VALID[: VALID.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
    )
    for begin in (b"GET / HTTP/1.1\r\nX: ", chunked):
        with socket.create_connection(quick, timeout=30) as connection, pytest.raises(ConnectionError):
            connection.sendall(begin)
            for _ in range(400):  # 26 MB, in less than the deadlines
                connection.sendall(b"a" * 65_536)


def test_what_comes_early_waits_and_garbage_behind_it_does_not_cost_the_answer(quick: Address) -> None:
    assert answers(send(quick, [VALID * 5], 20.0)) == ([200] * 5, True)
    assert answers(send(quick, [VALID + b"\x00\x00 no request\r\n\r\n"], 20.0))[0][0] == 200


# ------------------------------------------------------------------------------------------ how many


def test_beyond_the_limit_the_one_waited_for_longest_goes(model: Path) -> None:
    limits = Limits(max_connections=20, head_seconds=60, idle_seconds=60)
    with serving(model, limits) as address:
        honest = [http.client.HTTPConnection(*address, timeout=30) for _ in range(3)]
        idle: list[socket.socket] = []
        for turn in range(10):
            idle += [socket.create_connection(address, timeout=30) for _ in range(10)]
            for client in honest:
                client.request("POST", "/predict", b'{"rows": [{"text": "cat"}]}', JSON)
                answer = client.getresponse()
                assert answer.status == 200 and answer.read(), f"turn {turn}"
        gone = 0
        for connection in idle:
            connection.settimeout(0.01)
            try:
                gone += connection.recv(1) == b""
            except ConnectionResetError:
                gone += 1
            except TimeoutError:
                pass
            connection.close()
        assert 100 - 20 <= gone < 100
        for client in honest:
            client.close()


def test_half_sent_bodies_do_not_fill_the_places(model: Path) -> None:
    with serving(model, Limits(max_connections=20)) as address:
        slow = [socket.create_connection(address, timeout=30) for _ in range(60)]
        for connection in slow:
            try:
                connection.sendall(VALID[:-3])
            except OSError:
                continue
        for _ in range(5):
            assert answers(send(address, [VALID], 20.0)) == ([200], True)
        for connection in slow:
            connection.close()


# ---------------------------------------------------------------------------------------- what is in it


def test_logs_are_bounded() -> None:
    now, shown = [0.0], list[str]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(self.format(record))

    logger = logging.Logger("bounded")
    logger.addHandler(Handler())
    logger.addFilter(Throttle(records=5, characters=1000, clock=lambda: now[0]))
    for _ in range(1000):
        try:
            raise ValueError("x" * 100_000)
        except ValueError:
            logger.exception("failed at %s", "y" * 100_000)
    assert len(shown) == 5 and max(map(len, shown)) < 1100
    now[0] = 61.0
    logger.error("again")
    assert shown[-1] == "again\n(995 further records were not shown; at most 5 a minute are)"


def test_lists_of_texts_for_an_image_take_no_memory(tmp_path: Path) -> None:
    """numpy would make a table as wide as the longest of them: 2 TB here."""
    from test_serve import client

    model, _ = package(tmp_path, "image")
    cell = ["x" * 1_000_000, *[""] * 500_000]
    answer = client(model).post("/predict", json={"rows": [{"input": cell}]})
    assert answer.status_code == 422 and "something else than pixels" in answer.text


def test_many_problems_with_large_names_give_a_small_answer(model: Path) -> None:
    from test_serve import client

    rows = [{"text": "cat", **{f"{'k' * 1000}{i}": i for i in range(2000)}}]
    begin = time.monotonic()
    answer = client(model).post("/predict", json={"rows": rows})
    assert answer.status_code == 422 and len(answer.content) < 10_000
    assert answer.json()["problems"][-1] == "and 1980 more problems" and time.monotonic() - begin < LATE


def test_far_too_long_texts_are_not_tokenized(model: Path) -> None:
    from test_serve import client

    rows = [{"text": "cat"}, {"text": "ab" * 1_500_000}]
    begin = time.monotonic()
    answer = client(model).post("/predict", json={"rows": rows, "on_bad_row": "null"})
    good, bad = answer.json()["rows"]
    assert good["problem"] is None and bad["problem"].startswith(
        "a text of 3,000,000 characters; the model takes"
    )
    answer = client(model, Limits(truncate=True)).post("/predict", json={"rows": rows})
    assert answer.status_code == 200 and len(answer.json()["rows"]) == 2
    many = [{"text": "ab " * 1000} for _ in range(256)]
    answer = client(model).post("/predict", json={"rows": many})
    assert answer.status_code == 413 and "at most 65,536 a request, send fewer rows" in answer.text
    assert time.monotonic() - begin < LATE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_no_bytes_end_in_a_server_error(quick: Address, pieces: list[bytes]) -> None:
    statuses, _ = answers(send(quick, pieces, 0.02))
    assert not [status for status in statuses if status >= 500]


def test_the_fuzzer_makes_the_same_requests_again() -> None:
    valid = {"rows": [{"input": [0.0, 1.0]}, {"input": [0.0, 1.0]}]}
    one, two = Fuzzer(3, valid), Fuzzer(3, valid)
    made = [one() for _ in range(300)]
    assert made == [two() for _ in range(300)]
    assert valid == {"rows": [{"input": [0.0, 1.0]}, {"input": [0.0, 1.0]}]}
    assert sum(whole for _, whole in made) > 50 and len({b"".join(pieces) for pieces, _ in made}) > 150


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "numeric", "image"])
def test_fuzzed_requests_end_in_no_server_error(tmp_path: Path, kind: str) -> None:
    folder, _ = package(tmp_path, kind)
    with serving(folder) as address:
        found, honest = fuzzed(address, seed=1, requests=800, seconds=20)
    assert found.errors == 0, found.shown
    assert found.requests > 100 and found.statuses[200] and not found.unreachable
    assert honest["requests"] and not honest["failed"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numeric", "image"])
def test_generated_requests_get_what_the_schema_says(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("schemathesis")
    from test_serve import CHECKS

    folder, _ = package(tmp_path, kind)
    with serving(folder) as (host, port):
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"http://{host}:{port}/openapi.json"]
            + ["--checks", CHECKS, "--max-examples", "20", "--seed", "0", "--no-color"],
            cwd=tmp_path,  # where it keeps what it found
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
