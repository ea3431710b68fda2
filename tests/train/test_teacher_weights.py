"""Weights of teachers: held against another algorithm, and what the prior is for."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_kd.train.teacher_weights import DIGITS, PRIOR, fit_weights


def members(
    count: int, *skill: float, classes: int = 4, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits that know the label as well as `skill` says."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    outputs = [s * np.eye(classes)[labels] + rng.normal(size=(count, classes)) for s in skill]
    return outputs, labels


def by_expectation(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The same maximum by expectation and maximisation."""
    p = np.stack([np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in outputs], 2)
    known = p[np.arange(len(labels)), labels]  # (N, M)
    w = np.full(len(outputs), 1 / len(outputs))
    for _ in range(3000):
        share = known * w / (known @ w)[:, None]
        w = share.sum(0) + PRIOR
        w /= w.sum()
    return w


@pytest.mark.parametrize("count", [60, 400])
def test_another_algorithm_finds_the_same(count: int) -> None:
    outputs, labels = members(count, 2.0, 1.0, 0.0)
    found = fit_weights(outputs, labels, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(found, by_expectation(outputs, labels), atol=2 * 10**-DIGITS)
    assert found[0] > found[1] > found[2] > 0


def test_each_speaks_at_its_own_temperature() -> None:
    outputs, labels = members(300, 2.0, 1.0)
    louder = [outputs[0] * 5, outputs[1] * 0.1]
    assert fit_weights(louder, labels, [5.0, 0.1]) == fit_weights(outputs, labels, [1.0, 1.0])


def test_alike_members_count_the_same() -> None:
    outputs, labels = members(500, 1.0)
    assert fit_weights(outputs * 4, labels, [1.0] * 4) == [0.25] * 4


def test_few_rows_change_little_and_many_nearly_all() -> None:
    outputs, labels = members(20_000, 4.0, 0.0)
    few = fit_weights([v[:10] for v in outputs], labels[:10], [1.0, 1.0])
    many = fit_weights(outputs, labels, [1.0, 1.0])
    assert 0.5 < few[0] < 0.75 and many[0] > 0.95
    assert sum(few) == pytest.approx(1)


def test_values_are_weighed_by_their_errors() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=400) * 7 + 100
    outputs = [(y + noise * rng.normal(size=400))[:, None] for noise in (1.0, 2.0)]
    found = fit_weights(outputs, y, [1.0, 1.0])
    grid = np.linspace(0.001, 0.999, 999)
    errors = np.stack([v[:, 0] - y for v in outputs], 1)
    losses = [
        200 * np.log(((errors @ [w, 1 - w]) ** 2).mean()) - PRIOR * (np.log(w) + np.log(1 - w)) for w in grid
    ]
    assert found[0] == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)
    assert 0.7 < found[0] < 0.85  # independent errors of variance 1 and 4: 0.8
