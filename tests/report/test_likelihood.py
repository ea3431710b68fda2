"""Probabilities of the distilled student against those of hard labels, apart from the answers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ensemble_kd.report import ReportInputs, build_report
from ensemble_kd.report.likelihood import likelihood_difference, likelihood_text
from ensemble_kd.train.statistics import Interval

Make = Callable[..., ReportInputs]


def with_logits(inputs: ReportInputs, change: Callable[[np.ndarray], np.ndarray]) -> ReportInputs:
    """Distilled students that are `change` of those on hard labels, seed by seed."""
    hard = {s.seed: s.logits for s in inputs.students if s.role == "hard"}
    students = [
        replace(s, logits=change(hard[s.seed])) if s.role == "distilled" else s for s in inputs.students
    ]
    return replace(inputs, students=students)


def test_it_is_the_mean_difference_in_nats(make_inputs: Make) -> None:
    inputs = make_inputs(seeds=3)
    rows = np.arange(len(inputs.labels))

    def nll(role: str) -> float:
        logits = np.stack([s.logits.astype(np.float64) for s in inputs.students if s.role == role])
        chances = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
        return float(-np.log(chances[:, rows, inputs.labels]).mean())

    found = likelihood_difference(inputs)
    assert found is not None
    assert found.points / 100 == pytest.approx(nll("hard") - nll("distilled"), abs=1e-5)
    report = build_report(inputs)
    assert report["likelihood"]["gain"] == pytest.approx(found.points / 100)
    assert report["likelihood"]["low"] < report["likelihood"]["gain"] < report["likelihood"]["high"]


def test_the_same_answers_with_better_probabilities_are_told(make_inputs: Make) -> None:
    # Row by row another sharpness: no one temperature mends it, and no answer changes.
    def sharper(logits: np.ndarray) -> np.ndarray:
        right = logits.argmax(1) == inputs.labels
        return logits * np.where(right, 2.0, 0.5)[:, None]

    inputs = make_inputs(seeds=3)
    report = build_report(with_logits(inputs, sharper))
    assert report["verdict"]["outcome"] == "no difference shown"
    assert "Its probabilities are better: the negative log-likelihood is less by" in report["verdict"]["text"]
    worse = build_report(
        with_logits(inputs, lambda logits: logits / (1 + 8 * (logits.argmax(1) % 2))[:, None])
    )
    assert "Its probabilities are worse" in worse["verdict"]["text"]


def test_what_one_temperature_mends_is_no_merit(make_inputs: Make) -> None:
    inputs = make_inputs(seeds=3)
    sure = with_logits(inputs, lambda logits: 3 * logits)
    students = [replace(s, calibration=3.0 if s.role == "distilled" else 1.0) for s in sure.students]
    found = likelihood_difference(replace(sure, students=students))
    assert found is not None and abs(found.points) < 1e-3
    assert likelihood_text(found) == ""


def test_nothing_is_said_twice_or_of_values(make_inputs: Make) -> None:
    report = build_report(make_inputs(seeds=3))
    assert report["verdict"]["outcome"] == "helped" and "probabilities" not in report["verdict"]["text"]
    inputs = make_inputs()
    assert (
        likelihood_difference(replace(inputs, info={**inputs.info, "target": {"mean": 0, "std": 1}})) is None
    )
    assert likelihood_difference(replace(inputs, students=inputs.students[:1])) is None
    assert likelihood_text(Interval(4.0, -1.0, 9.0, "3 seeds")) == ""
