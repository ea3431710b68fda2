"""A given teacher's order of classes: found where it moved, left alone where rows are few or it is weak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.train.judge import judge


def names(classes: int) -> list[str]:
    return [f"class {i:04d}" for i in range(classes)]


def rows(
    count: int, classes: int, accuracy: float, seed: int = 0, order: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a teacher that is right so often; `order` is the data's class of each output."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    others = (labels + generator.integers(1, classes, count)) % classes
    answers = np.where(generator.random(count) < accuracy, labels, others)
    logits = generator.normal(size=(count, classes))
    logits[np.arange(count), answers] += 4 + generator.random(count)
    return (logits if order is None else logits[:, list(order)]), labels


@pytest.mark.parametrize(
    "order",
    [
        [2, 1, 0],
        [1, 2, 0],
        [0, 2, 1],
        list(range(9, -1, -1)),
        [3, 1, 4, 0, 5, 9, 2, 6, 8, 7],
        [*range(1, 77), 0],
    ],
)
def test_an_order_that_moved_is_found(order: list[int]) -> None:
    found = judge(*rows(1000, len(order), 0.9, order=order), names(len(order)))
    assert found.outcome == "moved" and list(found.order) == order
    assert found.accuracy < 0.5 and found.permuted == pytest.approx(0.9, abs=0.05)


def test_two_classes_that_are_swapped_take_few_rows() -> None:
    assert judge(*rows(30, 2, 0.95, order=[1, 0]), names(2)).outcome == "moved"
    assert judge(*rows(6, 2, 0.95, order=[1, 0]), names(2)).outcome != "moved"


def test_columns_sorted_as_text_are_known_with_hardly_a_row_per_class() -> None:
    """What a library does to '0', '1', '10', '11', ..., '2'."""
    numbers = [str(i) for i in range(200)]
    order = sorted(range(200), key=lambda i: numbers[i])
    found = judge(*rows(220, 200, 0.8, order=order), numbers)
    assert found.outcome == "moved" and list(found.order) == order


@given(st.integers(0, 2**32 - 1), st.integers(20, 400), st.integers(2, 40), st.floats(0.3, 1.0))
@settings(deadline=None, max_examples=150)
def test_honest_teachers_are_never_stopped(seed: int, count: int, classes: int, better: float) -> None:
    """However weak: `better` is the share of what lies between chance and perfection."""
    accuracy = 1 / classes + better * (1 - 1 / classes)
    assert judge(*rows(count, classes, accuracy, seed), names(classes)).outcome in ("good", "unsure")


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
@settings(deadline=None, max_examples=80)
def test_few_rows_stop_nobody(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(9, classes)), generator.integers(0, classes, 9)
    assert judge(logits, labels, names(classes)).outcome in ("good", "unsure")


@pytest.mark.parametrize("classes", [2, 3, 10, 77])
def test_guessing_is_told(classes: int) -> None:
    """Always the same, at random, and good answers of other rows: but for the luck of one in twenty."""
    told = np.zeros((40, 2))
    for seed in range(40):
        generator = np.random.default_rng(seed)
        good, right = rows(600, classes, 0.95, seed)
        for i, logits in enumerate((generator.normal(size=good.shape), good[generator.permutation(600)])):
            told[seed, i] = judge(logits, right, names(classes)).outcome == "guessing"
    assert (told.mean(0) > 0.85).all()
    constant = np.tile(np.arange(classes), (600, 1))
    assert judge(constant, right, names(classes)).outcome == "guessing"


def test_a_rare_class_that_is_never_answered_but_followed_is_knowledge() -> None:
    """5% positives, and a teacher that ranks them well below one half."""
    generator = np.random.default_rng(2)
    labels = (generator.random(2000) < 0.05).astype(np.int64)
    score = -3 + labels + generator.normal(size=2000) / 2
    assert judge(np.stack([-score, score], 1), labels, names(2)).outcome == "good"


def test_rows_without_a_label_do_not_count() -> None:
    logits, labels = rows(300, 5, 0.9)
    labels[100:] = -1
    found = judge(logits, labels, names(5))
    assert found.rows == 100 and found.outcome == "good"
    assert judge(logits, np.full(300, -1), names(5)).outcome == "good"
