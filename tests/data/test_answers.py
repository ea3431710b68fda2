"""What a teacher's numbers are: probabilities, percentages, log-probabilities, or logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ensemble_kd.config import PredictionsConfig
from ensemble_kd.data.answers import values_problem, what_they_are
from ensemble_kd.data.predictions import align
from ensemble_kd.data.raw import ask
from ensemble_kd.errors import InputError


def softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(1, keepdims=True))
    rows: np.ndarray = found / found.sum(1, keepdims=True)
    return rows


NUMBERS = softmax(np.random.default_rng(0).normal(size=(200, 4)) * 3)


@given(
    arrays(
        np.float32, st.tuples(st.integers(2, 40), st.integers(2, 12)), elements=st.floats(-20, 20, width=32)
    ),
    st.sampled_from([np.float64, np.float32, np.float16]),
)
@settings(deadline=None)
def test_probabilities_are_known_in_every_precision(logits: np.ndarray, kind: type) -> None:
    found: np.ndarray = softmax(logits.astype(np.float64)).astype(kind)
    assert what_they_are(found.astype(np.float32))[0] == "probabilities"
    assert what_they_are((100 * found).astype(np.float32))[0] == "percentages"


@given(st.integers(2, 12), st.integers(20, 60), st.integers(0, 2**32 - 1), st.floats(0.5, 10))
@settings(deadline=None)
def test_logits_are_left_alone(classes: int, rows: int, seed: int, scale: float) -> None:
    """Of any size, and those that a ReLU or an exponential left without a negative number."""
    numbers = np.random.default_rng(seed).normal(size=(rows, classes)) * scale
    for logits in (numbers, np.abs(numbers), np.maximum(numbers, 0) + 0.1):
        assert values_problem(logits.astype(np.float32), "logits", "f") is None


@pytest.mark.parametrize(
    ("numbers", "values", "message"),
    [
        (NUMBERS, "logits", "probabilities in all 200 rows: .* adds up to 1; set f=probabilities"),
        (np.eye(4)[[0, 1, 2, 3, 1]], "logits", "all are 0 or 1, .* set f=probabilities"),
        (100 * NUMBERS, "logits", "percentages in all .* divide them by 100 and set f=probabilities"),
        (100 * NUMBERS, "probabilities", "percentages in all .* divide them by 100"),
        (np.log(NUMBERS), "probabilities", "log-probabilities, which are logits, .* set f=logits"),
    ],
)
def test_what_is_said_of_each(numbers: np.ndarray, values: str, message: str) -> None:
    problem = values_problem(numbers, values, "f")
    with pytest.raises(InputError, match=message):
        raise InputError(problem or "nothing")


def test_what_is_right_is_not_told() -> None:
    assert values_problem(NUMBERS, "probabilities", "f") is None
    assert values_problem(np.log(NUMBERS), "logits", "f") is None, "log-probabilities are logits"
    assert values_problem(np.ones((50, 1)), "logits", "f") is None, "one output is a value"
    assert values_problem(NUMBERS[:1], "logits", "f") is None, "one row tells nothing"


def test_a_few_odd_rows_do_not_hide_what_the_others_are() -> None:
    odd = NUMBERS.copy()
    odd[7] = [-3.0, 4.0, 0.0, 1.0]
    problem = values_problem(odd, "logits", "f")
    assert problem is not None and problem.startswith("probabilities in 99.5% of 200 rows")
    odd[:20] = [-3.0, 4.0, 0.0, 1.0]
    assert values_problem(odd, "logits", "f") is None


def test_a_file_is_judged_by_all_its_rows(tmp_path: Path) -> None:
    """Not only by those that the split has, and not by the first ones."""
    path = tmp_path / "member.parquet"
    pq.write_table(pa.table({"id": range(200), "logits": NUMBERS.tolist()}), path)
    files = PredictionsConfig(train=[str(path)])
    with pytest.raises(InputError, match=r"teachers\.predictions: .*: column 'logits' holds probabilities"):
        align(str(path), files, np.array([3]), 4)
    with pytest.raises(InputError, match=r"set teachers\.predictions\.values=probabilities$"):
        align(str(path), files, np.arange(200), 4)
    files = PredictionsConfig(train=[str(path)], values="probabilities")
    assert align(str(path), files, np.arange(200), 4) == pytest.approx(np.log(NUMBERS), abs=1e-5)


def test_a_file_in_another_order_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "member.parquet"
    logits = np.log(NUMBERS).astype(np.float32)
    pq.write_table(pa.table({"id": range(200), "logits": logits[:, [2, 0, 3, 1]].tolist()}), path)
    files = PredictionsConfig(train=[str(path)])
    assert np.array_equal(align(str(path), files, np.arange(200), 4, [2, 0, 3, 1]), logits)


def test_a_function_that_is_odd_in_one_row_is_noticed() -> None:
    def teacher(rows: np.ndarray) -> np.ndarray:
        found = NUMBERS[rows].copy()
        found[3] = [-1.0, 2.0, 3.0, 4.0]
        return found

    with pytest.raises(InputError, match="returned probabilities in 99.5% of 200 rows"):
        ask(teacher, np.arange(200), 4, "logits", "teachers.given.0", "rows 0 to 199 of test")
