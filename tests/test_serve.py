"""A model folder behind HTTP: the predictor's answers, readable refusals, and never a 5xx for any input."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from model_cases import NAMES, package
from test_predict import COLUMNS, probabilities
from typer.testing import CliRunner

from ensemble_kd.cli import app as commands
from ensemble_kd.data.records import DataInfo
from ensemble_kd.inference.predictor import Predictor

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from benchmarks.serve import served
from ensemble_kd.serving import page
from ensemble_kd.serving.answers import Question, Reply, Responder
from ensemble_kd.serving.app import Description, Limits, UnavailableError, create_app, read_body
from ensemble_kd.serving.gather import Gatherer
from ensemble_kd.serving.schema import RefusedError, RequestSchema

JSON = {"Content-Type": "application/json"}
DEFAULT = Limits()
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
"""Schemathesis': what is answered is what /openapi.json says."""


def client(model: Path, limits: Limits = DEFAULT, token: str | None = None) -> Any:
    """The application without Ray."""
    from starlette.testclient import TestClient

    predictor = Predictor(model)
    responder = Responder(predictor, limits.truncate, limits.max_batch)

    async def answer(question: Question) -> Reply:
        return responder([question])[0]

    return TestClient(create_app(Description.of(predictor), answer, limits, token))


def images(rows: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 5, 4, 3)).astype(np.uint8)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ----------------------------------------------------------------------------------- the same answers


def assert_same(found: list[dict[str, Any]], expected: np.ndarray) -> None:
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-5)
    for row, p in zip(found, expected, strict=True):
        assert row["label"] == p.argmax() and row["label_name"] == NAMES[p.argmax()]
        assert row["probability"] == max(row["probabilities"])


def test_texts(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text", input="question")
    texts = ["cat", "", "eels?", "grün 猫", "\u0000"]
    answer = client(model).post("/predict", json={"rows": [{"question": text} for text in texts]})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    expected = Predictor(model).answer(pa.table({"question": texts}), 1024, False)
    assert_same(answer.json()["rows"], expected.probabilities)
    assert set(answer.json()["rows"][0]) == {"label", "label_name", "probability", "probabilities"}


def test_numbers_in_columns_and_in_a_list(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    model, network = package(tmp_path / "columns", "numeric", **COLUMNS)
    rows: list[Any] = [dict(zip(COLUMNS["input"], map(float, row), strict=True)) for row in values]
    assert_same(
        client(model).post("/predict", json={"rows": rows}).json()["rows"], probabilities(network, values)
    )
    model, network = package(tmp_path / "list", "numeric")
    rows = [{"input": row.tolist()} for row in values]
    assert_same(
        client(model).post("/predict", json={"rows": rows}).json()["rows"], probabilities(network, values)
    )


def test_images_as_bytes_png_and_lists(tmp_path: Path) -> None:
    model, network = package(tmp_path, "image")
    pixels = images()
    cells = [
        base64_of(pixels[0].tobytes()),
        base64_of(png(pixels[1])),
        "data:image/png;base64," + base64_of(png(pixels[2])),
        pixels[3].tolist(),
        pixels[4].reshape(-1).tolist(),
    ]
    answer = client(model).post("/predict", json={"rows": [{"input": cell} for cell in cells]})
    assert answer.status_code == 200, answer.text
    assert_same(answer.json()["rows"], probabilities(network, pixels))


def test_requests_are_answered_together_each_with_its_own_rows(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    predictor = Predictor(model)
    responder = Responder(predictor, False, 64)
    texts = ["cat", "dog", "eel", "a cat"]
    alone = predictor.answer(pa.table({"input": texts}), 1024).probabilities
    first, second, third = responder(
        [
            Question(pa.table({"input": texts[:2]})),
            Question(pa.table({"input": ["a text beyond the length"]})),
            Question(pa.table({"input": texts[2:]}), keep_bad=True),
        ]
    )
    assert first.batch == (5, 3) and second.batch is None and third.batch is None
    assert first.body and third.body and second.body is None and list(second.bad) == [0]
    assert_same(json.loads(first.body)["rows"], alone[:2])
    assert_same(json.loads(third.body)["rows"], alone[2:])
    found = np.array([row["probabilities"] for row in json.loads(first.body)["rows"]], np.float32)
    assert (found == predictor.answer(pa.table({"input": texts[:2]})).probabilities).all()  # to the bit


def test_questions_travel_together_while_replicas_are_busy() -> None:
    sent: list[list[int]] = []

    async def send(questions: list[Question]) -> list[Reply]:
        sent.append([question.table.num_rows for question in questions])
        await asyncio.sleep(0.01)
        if sent[-1] == [7]:
            raise UnavailableError("gone")
        return [Reply(str(question.table.num_rows).encode(), {}) for question in questions]

    async def main() -> list[Any]:
        gather = Gatherer(send, messages=1, max_rows=4)
        sizes = [1, 2, 2, 1, 7, 3]
        asked = [gather(Question(pa.table({"input": ["x"] * size}))) for size in sizes]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(main())
    assert sent == [[1], [2, 2], [1], [7], [3]]  # a question of seven rows goes alone, and fails alone
    assert [reply.body for i, reply in enumerate(found) if i != 4] == [b"1", b"2", b"2", b"1", b"3"]
    assert isinstance(found[4], UnavailableError)


def test_the_threshold_says_what_is_better_not_answered(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    predictor = Predictor(model)
    table = pa.table({"input": ["cat", "dog", "eels"]})
    highest = predictor.answer(table).probabilities.max(axis=1)
    predictor.calibration = {"threshold": float(np.median(highest))}
    body = Responder(predictor, False, 64)([Question(table)])[0].body
    assert body is not None
    found = [row["answered"] for row in json.loads(body)["rows"]]
    assert found == (highest >= np.median(highest)).tolist() and False in found


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ("{", 400, 'the body is not JSON: .*; send {"rows": \\[{"input": ...}\\]}'),
        ("", 400, "the body is not JSON"),
        ('{"rows": [{"input": "\\ud800"}]}', 400, "the body is not JSON: .*hex escape"),
        ('{"rows": ' + "[" * 5000, 400, "the body is not JSON: recursion limit exceeded"),
        ("[]", 422, "body: should be an object, got \\[\\]"),
        ("{}", 422, "rows: missing; send"),
        ('{"rows": []}', 422, "rows: no row; send at least one"),
        ('{"rows": [' + ", ".join(['{"input": ""}'] * 5) + "]}", 422, "rows: 5 rows; at most 4 a request"),
        ('{"rows": [{}]}', 422, "rows.0.input: missing; a row has 'input'"),
        ('{"rows": [{"input": "", "inptu": 1}]}', 422, "rows.0.inptu: unknown field; did you mean 'input'?"),
        ('{"rows": [{"input": ""}], "x": 1}', 422, "x: unknown field; leave it out"),
        ('{"rows": [{"input": ""}, {"input": 7}]}', 422, "rows.1.input: should be a valid string, got 7"),
        ('{"rows": [{"input": null}]}', 422, "rows.0.input: should be a valid string, got None"),
        ('{"rows": [{"input": ""}], "on_bad_row": "skip"}', 422, "on_bad_row: should be 'error' or 'null'"),
        (
            '{"rows": [{"input": "a text beyond it"}]}',
            422,
            "rows.0.input: a text of .* tokens; the model takes",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, body: str, status: int, problem: str) -> None:
    model, _ = package(tmp_path, "text")
    answer = client(model, Limits(max_rows=4)).post("/predict", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["problems"] and re.match(problem, answer.json()["problems"][0]), (
        answer.text
    )


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ([1, 2, 3], "3 values; the model takes 4"),
        ([1, 2, 3, "4"], "rows.0.input.3: should be a valid number, got '4'"),
        ([1, 2, 3, True], "should be a valid number, got True"),
        ([1, 2, 3, float("nan")], "should be a finite number, got nan"),
        ([1, 2, 3, 1e300], "rows.0.input: value 3 is 1e.300, too large"),
        ([3e38, -3e38, 3e38, 3e38], "rows.0.input: the model's answer is not a number"),
        ([1, 2, 3, 10**400], "should be a"),
        (7, "should be a valid array|should be a valid list"),
    ],
)
def test_numbers_that_are_none(tmp_path: Path, cell: Any, problem: str) -> None:
    model, _ = package(tmp_path, "numeric")
    body = json.dumps({"rows": [{"input": cell}]})
    answer = client(model).post("/predict", content=body, headers=JSON)
    assert answer.status_code == 422 and re.search(problem, answer.json()["problems"][0]), answer.text


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("no base64!", "not base64"),
        ("grün", "not base64"),
        ("AAAA", "3 bytes that are neither an image (PNG, JPEG, WebP, GIF, BMP, TIFF) nor 60 raw pixels"),
        (base64_of(b"\x89PNG\r\n\x1a\nno"), "image cannot be decoded"),
        (base64_of(png(np.zeros((3, 3, 3), np.uint8))), "image of 3x3 pixels, expected 5x4"),
        ([[1, 2], [3]], "lists of different lengths in one image"),
        ([1, 2], "2 pixels, expected 5x4x3"),
        ([256] * 60, "pixel value 256 is not a whole number in 0..255"),
        ([0.5] * 60, "pixel value 0.5 is not a whole number"),
        ([None] * 60, "something else than pixels"),
        ([10**30] * 60, "something else than pixels"),
        ([{}], "something else than pixels"),
        ([], "0 pixels"),
    ],
)
def test_images_that_are_none(tmp_path: Path, cell: Any, problem: str) -> None:
    model, _ = package(tmp_path, "image")
    rows = [{"input": cell}, {"input": images(1)[0].tolist()}]
    answer = client(model).post("/predict", json={"rows": rows})
    assert answer.status_code == 422, answer.text
    assert answer.json()["problems"][0].startswith("rows.0.input: ") and problem in answer.text
    assert "on_bad_row" in answer.json()["problems"][-1]
    answer = client(model).post("/predict", json={"rows": rows, "on_bad_row": "null"})
    assert answer.status_code == 200
    bad, good = answer.json()["rows"]
    assert problem in bad["problem"] and bad["label"] is None and bad["probabilities"] is None
    assert good["problem"] is None and good["label_name"] in NAMES


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    answer = client(model).post("/predict", json={"rows": [{"input": i} for i in range(100)]})
    assert len(answer.json()["problems"]) == 21 and answer.json()["problems"][-1] == "and 80 more problems"


def test_truncated_texts_are_answered(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    rows = [{"input": "a text beyond the length of this model"}]
    assert client(model, Limits(truncate=True)).post("/predict", json={"rows": rows}).status_code == 200


def test_bodies_beyond_the_limit(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    ask = client(model, Limits(max_bytes=100))
    body = json.dumps({"rows": [{"input": "x" * 100}]}).encode()
    chunked = (body[i : i + 10] for i in range(0, len(body), 10))
    for content in (body, chunked):
        answer = ask.post("/predict", content=content, headers=JSON)
        assert answer.status_code == 413 and "more than 100 bytes; send fewer rows" in answer.text
    assert ask.post("/predict", json={"rows": [{"input": "cat"}]}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Type": "text/plain"}, {**JSON, "Content-Encoding": "gzip"}],
)
def test_other_types_are_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    model, _ = package(tmp_path, "text")
    answer = client(model).post("/predict", content=b"{}", headers=headers)
    assert answer.status_code == 415 and "send" in answer.text


def test_a_body_that_does_not_come_and_one_that_breaks_off() -> None:
    from starlette.requests import Request

    async def never() -> Any:
        await asyncio.sleep(60)

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    for receive, status in ((never, 408), (gone, 400)):
        with pytest.raises(RefusedError) as caught:
            asyncio.run(read_body(Request(scope, receive), Limits(body_seconds=0.01)))
        assert caught.value.status == status


def test_unknown_paths_and_methods(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    ask = client(model)
    assert ask.get("/nothing").status_code == 404 and "/predict" in ask.get("/nothing").json()["problems"][0]
    assert ask.get("/predict").status_code == 405 and "problems" in ask.get("/predict").json()
    assert 'path="other",status="404"' in ask.get("/metrics").text


def test_no_replica_and_a_bug(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    model, _ = package(tmp_path, "text")
    description = Description.of(Predictor(model))
    for failure, status in ((UnavailableError("none; try again"), 503), (ZeroDivisionError(), 500)):

        async def answer(question: Question, failure: Exception = failure) -> Reply:
            raise failure

        ask = TestClient(create_app(description, answer))
        found = ask.post("/predict", json={"rows": [{"input": "cat"}]})
        assert found.status_code == status and list(found.json()) == ["problems"]
        assert f'path="/predict",status="{status}"}} 1.0' in ask.get("/metrics").text
    full = TestClient(create_app(description, answer, Limits(max_in_flight=0)))
    found = full.post("/predict", json={"rows": [{"input": "cat"}]})
    assert found.status_code == 503 and found.headers["retry-after"] == "1"


def test_the_token(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    ask = client(model, token="s3cret")
    body = {"rows": [{"input": "cat"}]}
    for given in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret"},
        {"Authorization": "s3cret"},
    ):
        for answer in (ask.post("/predict", json=body, headers=given), ask.get("/metadata", headers=given)):
            assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
            assert "s3cret" not in answer.text
    for scheme in ("Bearer", "bearer"):
        given = {"Authorization": f"{scheme} s3cret"}
        assert ask.post("/predict", json=body, headers=given).status_code == 200
        assert ask.get("/metadata", headers=given).json()["class_names"] == NAMES
    assert ask.get("/healthz").json() == {"status": "ok"}
    for path in ("/", "/metrics", "/openapi.json"):
        assert not any(f'"{name}"' in ask.get(path).text for name in NAMES)


# ---------------------------------------------------------------------------------------- descriptions


def test_the_schema_is_made_of_the_columns(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    ask = client(model)
    operation = ask.get("/openapi.json").json()["paths"]["/predict"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    row = content["schema"]["properties"]["rows"]["items"]
    assert row["required"] == COLUMNS["input"] and row["additionalProperties"] is False
    assert ask.post("/predict", json=content["example"]).status_code == 200
    assert "$ref" not in json.dumps(content)
    assert {"200", "400", "413", "415", "422"} <= set(operation["responses"])


def test_pairs_have_a_text_each() -> None:
    info = DataInfo("text", [8], 2, ["a", "b"], [], [], 9, {}, {})
    schema = RequestSchema(info, ["question", "the answer"], 4)
    table, _, bad = schema.parse(b'{"rows": [{"the answer": "b", "question": "a"}]}')
    assert table.to_pylist() == [{"question": "a", "the answer": "b"}] and not bad
    with pytest.raises(RefusedError, match=r"rows.0.the answer: missing; a row has 'question', 'the answer'"):
        schema.parse(b'{"rows": [{"question": "a"}]}')
    assert schema.row_problems({1: "bad"}, 2)[0] == "rows.1: bad"


def test_a_regressor_gives_its_value(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", target={"mean": 400.0, "std": 9.0})
    rows = [{"input": [1.0, 2.0, 3.0, 4.0]}, {"input": [1.0, 2.0, 3.0, 1e300]}]
    http = client(model)
    answer = http.post("/predict", json={"rows": rows, "on_bad_row": "null"})
    expected = Predictor(model).answer(pa.table({"input": [rows[0]["input"]]})).probabilities
    good, bad = answer.json()["rows"]
    assert good == {"value": pytest.approx(float(expected[0, 0]), rel=1e-6), "problem": None}
    assert bad["value"] is None and "too large" in bad["problem"]
    schema = http.get("/openapi.json").json()["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert set(schema["application/json"]["schema"]["properties"]["rows"]["items"]["required"]) == {"value"}
    assert http.get("/metadata").json()["target"] == {"mean": 400.0, "std": 9.0}
    assert "gives a number" in http.get("/").text


def test_metadata(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", **COLUMNS)
    found = client(model, Limits(max_rows=9)).get("/metadata").json()
    assert found["columns"] == COLUMNS["input"] and found["class_names"] == NAMES
    assert (
        found["form"] == "pytorch"
        and found["limits"]["max_rows"] == 9
        and found["lineage"] == {"student": "s"}
    )


def test_the_page_is_self_contained_and_escapes(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text", input="</script><script>alert(1)</script>")
    found = client(model).get("/")
    assert "<script>alert" not in found.text
    assert not re.search(r"(src|href)=\"(https?:)?//", found.text)
    policy = found.headers["content-security-policy"]
    for text in (page.STYLE, page.SCRIPT):
        assert page._hash(text) in policy and text in found.text
    assert 'id="token"' not in found.text and 'id="token"' in client(model, token="x").get("/").text


# ------------------------------------------------------------------------------------- before Ray starts


def run(*arguments: str) -> str:
    done = CliRunner().invoke(commands, ["serve", *arguments])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "text")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port: {port} on 127.0.0.1: it is taken; choose another" in run(str(model), "--port", port)


def test_what_is_missing_is_said_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = package(tmp_path, "text")
    monkeypatch.setenv("SPACED", "a b")
    folder = str(model)
    assert "--token: no environment variable 'NO_TOKEN'" in run(folder, "--token", "NO_TOKEN")
    assert "--token: the value of SPACED" in run(folder, "--token", "SPACED")
    assert "no such folder" in run(str(tmp_path / "none"), "--port", "0")
    assert "--form: no onnx in" in run(folder, "--port", "0", "--form", "onnx")
    assert "--form: 'tflite'; use auto" in run(folder, "--form", "tflite")
    assert "--host: no.invalid:" in run(folder, "--host", "no.invalid")
    monkeypatch.setattr("ensemble_kd.serving.server.find_spec", lambda name: None)
    assert "pip install 'ensemble-kd[serve]'" in run(folder)


# --------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path]]:
    """A served model of texts: host, port, folder. It has to end with exit code 0."""
    model, _ = package(tmp_path_factory.mktemp("served"), "text", input="text")
    with served(model, "--max-wait-ms", "50", "--max-rows", "100") as (host, port):
        yield host, port, model


def ask(server: Any, method: str, path: str, body: Any = None, headers: Any = JSON) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server[0], server[1], timeout=60)
    try:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def metric(server: Any, name: str) -> float:
    text = ask(server, "GET", "/metrics")[1].decode()
    found = re.search(rf"^ensemble_kd_{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
@pytest.mark.ray
def test_it_serves_what_the_predictor_says(server: Any) -> None:
    texts = ["cat", "dogs", "eel"] * 30
    status, body = ask(server, "POST", "/predict", {"rows": [{"text": text} for text in texts]})
    assert status == 200
    expected = Predictor(server[2]).answer(pa.table({"text": texts})).probabilities
    assert_same(json.loads(body)["rows"], expected)
    assert ask(server, "GET", "/healthz") == (200, b'{"status":"ok"}')
    assert json.loads(ask(server, "GET", "/metadata")[1])["class_names"] == NAMES


@pytest.mark.slow
@pytest.mark.ray
def test_concurrent_requests_share_forward_passes(server: Any) -> None:
    before = [metric(server, name) for name in ("batch_rows_count", "batch_requests_sum", "batch_rows_sum")]
    texts = [f"cat {i}" for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda t: ask(server, "POST", "/predict", {"rows": [{"text": t}]}), texts))
    rows = [json.loads(body)["rows"][0] for _, body in found]
    assert_same(rows, Predictor(server[2]).answer(pa.table({"text": texts})).probabilities)
    after = [metric(server, name) for name in ("batch_rows_count", "batch_requests_sum", "batch_rows_sum")]
    batches, requests, sum_rows = (b - a for a, b in zip(before, after, strict=True))
    assert requests == sum_rows == 64 and batches <= 32, f"{batches} batches for 64 requests"


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_server_refuses_readably(server: Any) -> None:
    big = json.dumps({"rows": [{"text": "x" * 5_000_000}]}).encode()
    pieces = (big[i : i + 65_536] for i in range(0, len(big), 65_536))
    for body in (big, pieces):
        connection = http.client.HTTPConnection(server[0], server[1], timeout=60)
        connection.request("POST", "/predict", body, JSON)
        answer = connection.getresponse()
        assert answer.status == 413 and b"problems" in answer.read()
    status, found = ask(server, "POST", "/predict", {"rows": [{"text": "cat"}] * 101})
    assert status == 422 and b"at most 100 a request" in found
    status, found = ask(server, "POST", "/predict", b"\xff\xfe")
    assert status == 400 and b"not JSON" in found


@pytest.mark.slow
@pytest.mark.ray
def test_generated_requests_never_end_in_a_server_error(server: Any, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://{server[0]}:{server[1]}/openapi.json"]
        + ["--checks", CHECKS, "--max-examples", "60", "--seed", "0", "--no-color"],
        cwd=tmp_path,  # where it keeps what it found
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert ask(server, "GET", "/healthz")[0] == 200


@pytest.mark.slow
@pytest.mark.ray
def test_the_page_in_a_browser(server: Any, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    text = "a cat"
    query = urllib.parse.urlencode({"text": text, "run": 1})
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        + ["--virtual-time-budget=5000", "--dump-dom", f"http://{server[0]}:{server[1]}/?{query}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    p = Predictor(server[2]).answer(pa.table({"text": [text]})).probabilities[0]
    assert f'<p id="label">{NAMES[p.argmax()]}</p>' in done.stdout, done.stdout[-3000:]
    assert f"{100 * p.max():.1f} % sure" in done.stdout
    assert done.stdout.count('class="bar"') == len(NAMES)


@pytest.mark.slow
@pytest.mark.ray
def test_two_replicas_a_token_and_an_interrupt(tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two replicas need two cores")
    model, network = package(tmp_path, "image")
    pixels = images(1)
    body = {"rows": [{"input": base64_of(png(pixels[0]))}]}
    env = os.environ | {"SERVE_TOKEN": "s3cret"}
    with served(model, "--replicas", "2", "--token", "SERVE_TOKEN", env=env, stop=signal.SIGINT) as address:
        assert ask(address, "POST", "/predict", body)[0] == 401
        given = JSON | {"Authorization": "Bearer s3cret"}
        for _ in range(8):
            status, found = ask(address, "POST", "/predict", body, given)
            assert status == 200
            assert_same(json.loads(found)["rows"], probabilities(network, pixels))
        assert json.loads(ask(address, "GET", "/metadata", None, given)[1])["replicas"] == 2
