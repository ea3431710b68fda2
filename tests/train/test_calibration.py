"""Temperature and threshold against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.calibration import before_and_after, calibrate, fit_temperature, threshold_for


def drawn(rows: int = 40_000, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, times `scale`, of distributions that the labels are drawn from."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(rows, 4)) * 2
    probabilities = np.exp(log_softmax(logits))
    labels = (draw.random((rows, 1)) > probabilities.cumsum(1)).sum(1).clip(max=3)
    return (logits * scale).astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    logits, labels = drawn(scale=scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.03)
    found = before_and_after(logits, labels, scale)
    assert found["after"]["ece"] < 0.01
    assert found["after"]["nll"] <= found["before"]["nll"] + 1e-12


def test_the_fitted_temperature_is_the_best_one() -> None:
    logits, labels = drawn(500, 2.0)
    best = fit_temperature(logits, labels)

    def nll(temperature: float) -> float:
        return before_and_after(logits, labels, temperature)["after"]["nll"]

    assert nll(best) <= min(nll(best * 1.05), nll(best / 1.05), nll(1.0))


def test_the_threshold_keeps_its_promise_and_is_the_lowest() -> None:
    logits, labels = drawn(2000)
    log_probs = log_softmax(logits)
    found = threshold_for(log_probs, labels, 0.9)
    confidence, right = np.exp(log_probs.max(1)), log_probs.argmax(1) == labels
    answered = confidence >= found["threshold"]
    assert right[answered].mean() >= 0.9
    assert answered.mean() == pytest.approx(found["coverage"])
    for lower in np.unique(confidence[~answered])[:: max(1, (~answered).sum() // 50)]:
        assert right[confidence >= lower].mean() < 0.9


def test_rows_of_one_confidence_are_answered_together() -> None:
    log_probs = np.log(np.array([[0.8, 0.2]] * 4))
    assert threshold_for(log_probs, np.array([0, 0, 0, 1]), 0.9)["threshold"] is None
    assert threshold_for(log_probs, np.array([0, 0, 0, 1]), 0.75)["coverage"] == 1


def test_nothing_is_fitted_unasked() -> None:
    logits, labels = drawn(50)
    assert calibrate(logits, labels, False, None) == {"temperature": 1.0}
    assert set(calibrate(logits, labels, True, 0.5)) == {"temperature", "precision", "threshold", "coverage"}
