"""Schedules of weights: values at known points, and what is said of settings that make no sense."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ensemble_kd.errors import ConfigError
from ensemble_kd.objectives.schedules import Schedule, parse_weight

POINTS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, [2.0] * 6),
        (0.0, [0.0] * 6),
        ({"start": 3, "end": 3, "shape": "constant"}, [3.0] * 6),
        ({"start": 4.0, "end": 1.0}, [4.0, 3.7, 3.25, 2.5, 1.75, 1.0]),
        ({"start": 0, "end": 8, "begin": 0.25, "finish": 0.75}, [0.0, 0.0, 0.0, 4.0, 8.0, 8.0]),
        (
            {"start": 0.0, "end": 1.0, "shape": "cosine"},
            [0.0, (1 - math.cos(0.1 * math.pi)) / 2, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1.0],
        ),
        ({"start": 1.0, "end": 0.0, "shape": "step", "begin": 0.25}, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_values(value: Any, expected: list[float]) -> None:
    schedule = parse_weight(value, "student.terms.0.weight")
    assert [schedule.at(point) for point in POINTS] == pytest.approx(expected)


@given(
    start=st.floats(0, 1e6),
    end=st.floats(0, 1e6),
    shape=st.sampled_from(["linear", "cosine"]),
    begin=st.floats(0, 0.6),
    width=st.floats(0.01, 0.4),
    points=st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_moves_from_start_to_end(
    start: float, end: float, shape: Any, begin: float, width: float, points: list[float]
) -> None:
    schedule = Schedule(start=start, end=end, shape=shape, begin=begin, finish=begin + width)
    assert schedule.at(begin) == start == schedule.at(0.0)
    assert schedule.at(begin + width) == end == schedule.at(1.0)
    values = [schedule.at(point) for point in sorted(points)]
    slack = 1e-9 * max(start, end)
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert all(step >= -slack for step in steps) if end >= start else all(step <= slack for step in steps)
    assert all(min(start, end) - slack <= value <= max(start, end) + slack for value in values)


def test_outside_of_the_training_nothing_changes() -> None:
    schedule = Schedule(start=1.0, end=2.0)
    assert (schedule.at(-0.5), schedule.at(1.5)) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        (-1, ["w: a weight is finite and at least 0, got -1"]),
        (math.inf, ["w: a weight is finite and at least 0, got inf"]),
        (math.nan, ["w: a weight is finite and at least 0, got nan"]),
        (
            "3",
            ["w: input should be a number, or a block with start, end, shape, begin and finish, got '3'"],
        ),
        (
            True,
            ["w: input should be a number, or a block with start, end, shape, begin and finish, got True"],
        ),
        (
            None,
            ["w: input should be a number, or a block with start, end, shape, begin and finish, got None"],
        ),
        ({"start": 1.0}, ["w.end: missing; a schedule goes from start to end"]),
        (
            {"start": -1.0, "end": math.nan, "finnish": 0.5, "nonsense": 1},
            [
                "w.start: input should be greater than or equal to 0, got -1.0",
                "w.end: input should be a finite number, got nan",
                "w.finnish: unknown setting; did you mean 'finish'?",
                "w.nonsense: unknown setting; known here: start, end, shape, begin, finish",
            ],
        ),
        (
            {"start": 1.0, "end": 2.0, "shape": "line"},
            ["w.shape: input should be 'linear', 'cosine', 'sigmoid', 'step' or 'constant', got 'line'"],
        ),
        (
            {"start": 1.0, "end": 2.0, "finish": 1.5},
            ["w.finish: input should be less than or equal to 1, got 1.5"],
        ),
        (
            {"start": 1.0, "end": 2.0, "begin": 0.5, "finish": 0.5},
            [
                "w: begin comes before finish, got begin 0.5 and finish 0.5; for a sudden change use "
                "shape: step"
            ],
        ),
        (
            {"start": 1.0, "end": 2.0, "shape": "step"},
            [
                "w: a step is at begin, above 0, and has no finish, got begin 0.0 and finish 1.0; set begin "
                "alone"
            ],
        ),
        (
            {"start": 1.0, "end": 2.0, "shape": "step", "begin": 0.5, "finish": 0.7},
            [
                "w: a step is at begin, above 0, and has no finish, got begin 0.5 and finish 0.7; set begin "
                "alone"
            ],
        ),
        (
            {"start": 1.0, "end": 2.0, "shape": "constant"},
            [
                "w: a constant weight has one value, got start 1.0 and end 2.0; use another shape, or give "
                "one number"
            ],
        ),
    ],
)
def test_wrong_settings_are_told(value: Any, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_weight(value, "w")
    assert caught.value.problems == problems


def test_schedules_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        Schedule(start=1.0, end=2.0).start = 3.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Schedule(start="1", end=2.0)  # type: ignore[arg-type]
