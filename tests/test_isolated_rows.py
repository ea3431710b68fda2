"""A row costs itself alone: whatever preparing or answering it raises, or has no finite answer."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import package
from typer.testing import CliRunner

from ensemble_kd.cli import app as commands
from ensemble_kd.errors import InputError
from ensemble_kd.inference.isolate import isolated, words
from ensemble_kd.inference.predictor import NOT_FINITE, Predictor
from ensemble_kd.predict import predict_file

HUGE = [3e38, -3e38, 3e38, 3e38]
"""Numbers that are float32, and overflow inside a network."""


def test_rows_that_raise_are_found_by_halves() -> None:
    calls: list[int] = []

    def step(rows: np.ndarray) -> None:
        calls.append(len(rows))
        if 700 in rows:
            raise OverflowError("cannot convert\nthe rest is not shown")

    failed = isolated(np.arange(1024), step)
    assert list(failed) == [700] and len(calls) == 21  # 2 log2(1024) and the first
    assert words(failed[700]) == "OverflowError: cannot convert"
    assert len(words(ValueError("x" * 5000))) == 200


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_exactly_the_rows_that_raise_fail_and_every_other_is_done_once(bad: set[int], count: int) -> None:
    done: list[int] = []

    def step(rows: np.ndarray) -> None:
        if bad & set(rows.tolist()):
            raise RuntimeError
        done.extend(rows.tolist())

    assert set(isolated(np.arange(count), step)) == {i for i in bad if i < count}
    assert sorted(done) == [i for i in range(count) if i not in bad]


def stumbling(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, error: Exception) -> None:
    """A decoder that trips over a table with the text "trap" in it."""
    whole = predictor._preprocessor.transform

    def transform(table: pa.Table, truncate: bool = True) -> Any:
        if "trap" in table["input"].to_pylist():
            raise error
        return whole(table, truncate)

    monkeypatch.setattr(predictor._preprocessor, "transform", transform)


@pytest.mark.parametrize("error", [OverflowError("odd"), RecursionError(), struct.error("x"), MemoryError()])
def test_a_row_that_cannot_be_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    predictor = Predictor(package(tmp_path, "text")[0])
    expected = predictor.answer(pa.table({"input": ["cat", "dog"]}))
    stumbling(monkeypatch, predictor, error)
    found = predictor.answer(pa.table({"input": ["cat", "trap", "dog"]}))
    assert found.problems == [None, f"cannot be read ({words(error)})", None]
    np.testing.assert_array_equal(found.probabilities[[0, 2]], expected.probabilities)
    assert np.isnan(found.probabilities[1]).all()
    assert predictor.answer(pa.table({"input": ["trap"]})).problems == [f"cannot be read ({words(error)})"]


@pytest.mark.parametrize("kind", ["text", "numeric"])
def test_a_row_that_makes_the_model_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    predictor = Predictor(package(tmp_path, kind)[0])
    rows = ["cat", "trap", "dog"] if kind == "text" else np.eye(3, 4).tolist()
    table = pa.table({"input": rows})
    expected = predictor.answer(table).probabilities
    trap = predictor._preprocessor.transform(table)[0][1]
    whole = predictor.logits

    def logits(inputs: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        if (inputs == trap).all(axis=1).any():
            raise IndexError("index out of range in self")
        return whole(inputs, batch_size)

    monkeypatch.setattr(predictor, "logits", logits)
    found = predictor.answer(table)
    assert found.problems == [None, "the model fails at it (IndexError: index out of range in self)", None]
    np.testing.assert_allclose(found.probabilities[[0, 2]], expected[[0, 2]], rtol=1e-6)


def test_a_model_that_always_fails_is_no_rows_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(package(tmp_path, "numeric")[0])

    def logits(inputs: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(predictor, "logits", logits)
    with pytest.raises(RuntimeError, match="no such kernel"):
        predictor.answer(pa.table({"input": [[1.0, 2.0, 3.0, 4.0]]}))


# ------------------------------------------------------------------------------ answers that are none


def huge_rows(folder: Path) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"input": [[1.0, 2.0, 3.0, 4.0], HUGE]}), path)
    return path


@pytest.mark.parametrize("target", [None, {"mean": 400.0, "std": 9.0}])
def test_predict_has_no_label_without_a_finite_answer(tmp_path: Path, target: Any) -> None:
    model, _ = package(tmp_path, "numeric", target=target)
    source = huge_rows(tmp_path)
    shown: list[str] = []
    problems = predict_file(model, str(source), None, 10, shown.append, on_bad_row="null")
    assert problems == [f"row 1: {NOT_FINITE}"]

    def strict(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    good, bad = [json.loads(line, parse_constant=strict) for line in shown]
    assert good["problem"] is None and bad["problem"] == NOT_FINITE
    assert all(bad[key] is None for key in bad if key not in ("id", "problem"))
    for suffix in (".csv", ".jsonl", ".parquet"):
        output = tmp_path / f"out{suffix}"
        assert len(predict_file(model, str(source), output, 10, print)) == 1
        assert b"nan" not in output.read_bytes().lower()


def test_on_bad_row_error_ends_with_it(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric")
    source, output = huge_rows(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="row 1: the model's answer is not a number"):
        predict_file(model, str(source), output, 10, print, on_bad_row="error")
    assert not output.exists()
    done = CliRunner().invoke(commands, ["predict", str(model), str(source), "--on-bad-row", "error"])
    assert done.exit_code == 2 and "row 1: the model's answer is not a number" in " ".join(
        done.output.split()
    )


def test_ids_of_any_type_are_json(tmp_path: Path) -> None:
    import datetime

    model, _ = package(tmp_path, "numeric", id="key")
    for ids in ([float("nan"), 1.5], [datetime.date(2020, 1, 2), None], [b"\xff\x00", b"x"]):
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"input": np.eye(2, 4).tolist(), "key": ids}), path)
        shown: list[str] = []
        predict_file(model, str(path), None, 10, shown.append)
        found = [json.loads(line)["id"] for line in shown]
        assert found[0] in (None, "2020-01-02", "ff00"), shown
        assert "NaN" not in "".join(shown)


@pytest.mark.slow
def test_a_huge_row_does_not_flatten_the_others_of_an_int8_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from ensemble_kd.config import ExportConfig
    from ensemble_kd.export.form_checks import Rows
    from ensemble_kd.export.forms import export_forms
    from ensemble_kd.models.package import load_package

    model, _ = package(tmp_path, "numeric")
    rows = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    settings = ExportConfig(forms=["int8"], int8="dynamic", max_accuracy_loss=100)
    export_forms(load_package(model), model / "export", settings, Rows(rows, None))
    predictor = Predictor(model, "int8")
    alone = predictor.answer(pa.table({"input": rows[:5].tolist()})).probabilities
    beside = predictor.answer(pa.table({"input": [*rows[:5].tolist(), [1e30] * 4]})).probabilities
    np.testing.assert_array_equal(alone, beside[:5])


# ------------------------------------------------------------------------------------------- serving


def dds() -> bytes:
    """A picture's head of 128 bytes, at whose pixel format Pillow's decoder raises NotImplementedError."""
    head = struct.pack("<4s7I44x", b"DDS ", 124, 0x100F, 5, 4, 12, 0, 0)
    return (head + struct.pack("<8I", 32, 0, 0, 24, 0xFF, 0xFF00, 0xFF0000, 0)).ljust(128, b"\0")


def test_a_picture_that_trips_the_decoder_is_its_own_problem(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from test_serve import client, images

    model, _ = package(tmp_path, "image")
    assert len(dds()) == 128
    rows: list[Any] = [{"input": base64.b64encode(dds()).decode()}, {"input": images(1)[0].tolist()}]
    answer = client(model).post("/predict", json={"rows": rows})
    assert answer.status_code == 422 and answer.json()["problems"][0].startswith("rows.0.input: ")
    answer = client(model).post("/predict", json={"rows": rows, "on_bad_row": "null"})
    bad, good = answer.json()["rows"]
    assert answer.status_code == 200 and bad["label"] is None and good["label"] is not None


def test_a_question_that_no_row_explains_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_kd.serving.answers import Question, Responder

    predictor = Predictor(package(tmp_path, "text")[0])
    whole = predictor.answer

    def answer(table: pa.Table, *rest: Any) -> Any:
        if "trap" in table["input"].to_pylist():
            raise AssertionError("a bug")
        return whole(table, *rest)

    monkeypatch.setattr(predictor, "answer", answer)
    questions = [Question(pa.table({"input": [text]})) for text in ("cat", "trap", "dog")]
    replies = Responder(predictor, False, 64)(questions)
    assert [reply.failed for reply in replies] == [None, "AssertionError: a bug", None]
    assert replies[0].body and replies[2].body and replies[1].body is None


@pytest.mark.parametrize("replicas", [1, 2])
def test_questions_of_a_message_that_failed_are_asked_once_more_each_alone(replicas: int) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from ensemble_kd.serving.answers import Question, Reply
    from ensemble_kd.serving.app import UnavailableError
    from ensemble_kd.serving.gather import Gatherer

    under_way: list[list[str]] = []
    died: list[int] = []

    async def send(questions: list[Question]) -> list[Reply]:
        names = [question.table["input"][0].as_py() for question in questions]
        under_way.append(names)
        await asyncio.sleep(0.01)
        beside = len(under_way)
        under_way.remove(names)
        if "kills" in names:
            died.append(beside)
            raise UnavailableError("the replica died")
        return [Reply(name.encode(), {}) for name in names]

    async def main() -> list[Any]:
        gather = Gatherer(send, messages=2 * replicas, max_rows=4)
        names = [*"abc", "kills", *"defgh"]
        asked = [gather(Question(pa.table({"input": [name]}))) for name in names]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    found = asyncio.run(main())
    assert [reply.body for i, reply in enumerate(found) if i != 3] == [c.encode() for c in "abcdefgh"]
    assert isinstance(found[3], UnavailableError)
    assert len(died) == 2 and died[1] == 1, "the second time it was under way by itself"
