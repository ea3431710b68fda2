"""The rule that chooses among candidates, on answers that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_kd.targets.values import Values
from ensemble_kd.train.choosing import (
    Scores,
    bar,
    compared,
    decide,
    gain,
    scores_of_classes,
    scores_of_values,
)


def candidate(wrong: int, rows: int = 1000, likelihood: float = -0.5, noise: int = 0) -> Scores:
    """The first `wrong` rows are wrong; likelihoods differ from row to row."""
    right = np.ones(rows)
    right[:wrong] = 0
    spread = np.random.default_rng(noise).normal(scale=0.05, size=rows)
    return Scores(right, likelihood + spread)


def test_accuracy_decides_where_it_can_be_heard() -> None:
    """The likeliest is out where it is less accurate by more than noise; so is the default."""
    found = decide([candidate(100, likelihood=-0.3), candidate(40), candidate(42, likelihood=-0.45)])
    assert found.by == "accuracy" and found.close == [1, 2] and found.chosen == 2


def test_likelihood_decides_where_accuracy_is_silent() -> None:
    found = decide([candidate(40), candidate(40, likelihood=-0.3), candidate(41, likelihood=-0.4)])
    assert (found.chosen, found.by, found.close) == (1, "likelihood", [0, 1, 2])


def test_the_default_stands_where_neither_tells() -> None:
    candidates = [candidate(41), candidate(40, likelihood=-0.499, noise=1)]
    more, error = gain(candidates[1].likelihood, candidates[0].likelihood)
    assert 0 < more < error and candidates[1].loss < candidates[0].loss
    assert decide(candidates).by == "default"
    assert decide([candidates[0]] * 3).chosen == 0  # alike to the last row


def test_few_rows_leave_the_default_where_many_would_not() -> None:
    few = decide([candidate(2, 20), candidate(1, 20)])
    many = decide([candidate(200, 2000), candidate(100, 2000)])
    assert few.by == "default" and many.by == "accuracy"
    one = decide([candidate(1, 1), candidate(0, 1)])  # no error can be known
    assert one.by == "default"


def test_sharpness_alone_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=500)
    logits = 1.5 * np.eye(4)[labels] + rng.normal(size=(500, 4))
    scores = [scores_of_classes([factor * logits], labels) for factor in (1.0, 5.0, 0.2)]
    assert scores[1].loss == pytest.approx(scores[0].loss, rel=1e-5)
    assert decide(scores).by == "default"
    worse = scores_of_classes([logits + 2 * rng.normal(size=logits.shape)], labels)
    assert decide([worse, *scores]).by == "accuracy"


def test_seeds_are_averaged_row_by_row() -> None:
    labels = np.array([0, 1])
    right, wrong = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 2.0], [0.0, 2.0]])
    found = scores_of_classes([right, wrong], labels)
    assert found.right is not None and found.right.tolist() == [0.5, 1.0] and found.seeds == 2


def test_values_are_judged_by_their_loss() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(10, 5, size=300)
    near, far = (labels[:, None] + s * rng.normal(size=(300, 1)) for s in (1.0, 3.0))
    scores = [scores_of_values([-Values((10.0,), (5.0,)).losses(one, labels)]) for one in (far, near)]
    assert scores[1].loss == pytest.approx(1 / 25, rel=0.2)
    found = decide(scores)
    assert (found.chosen, found.by) == (1, "loss")
    assert "accuracy_gain" not in compared(scores[1], scores[0])


def test_of_many_that_are_alike_the_default_stands_as_often_as_of_two() -> None:
    """Their answers differ by chance alone, by which the best leads by more than a standard error."""
    rng, kept = np.random.default_rng(0), {2: 0, 10: 0}
    for count in kept:
        for _ in range(200):
            right = (rng.random((count, 400)) < 0.9).astype(float)
            likelihood = rng.normal(-0.5, 0.3, size=(count, 400))
            kept[count] += decide([Scores(r, x) for r, x in zip(right, likelihood, strict=True)]).chosen == 0
    assert bar(2) == pytest.approx(1) and bar(10) == pytest.approx(2.1054, abs=1e-3)
    assert kept[10] / 200 > 0.75 and abs(kept[10] - kept[2]) / 200 < 0.15


def test_a_real_lead_is_seen_among_many() -> None:
    found = decide([candidate(100, likelihood=-0.4), *(candidate(40) for _ in range(9))])
    assert found.by == "accuracy" and found.chosen > 0
