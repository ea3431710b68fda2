"""Each cause is told where its number says so, and not otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble_kd.config.epochs import FROM_TRAINED
from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.causes import (
    TUNED,
    Trained,
    confidence,
    few_labels,
    label_noise,
    same_kind,
    still_falling,
    undertrained,
)


def history(losses: list[float], key: str = "validation_loss") -> list[dict[str, float]]:
    return [{"epoch": i + 1, key: loss} for i, loss in enumerate(losses)]


FLAT = [2.0, 1.5, 1.2, 1.1, 1.05, 1.03, 1.02, 1.02]
STEEP = [2.3, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0]
TEACHER = Trained(history(FLAT), 2000, 100_000, {"name": "mlp", "hidden": [256]}, False)
STUDENT = Trained(history(FLAT), 2000, 5_000, {"name": "mlp", "hidden": [8]}, False)


def test_undertrained_by_the_loss_or_by_the_steps() -> None:
    assert still_falling(history(STEEP)) == pytest.approx((1.5 - 1.1) / 1.5)
    assert still_falling(history(STEEP[:3])) is None and still_falling([]) is None
    both = [{**a, "calibrated_loss": b} for a, b in zip(history(STEEP), FLAT, strict=True)]
    assert still_falling(both) == pytest.approx((1.04 - 1.02) / 1.04)
    assert undertrained([TEACHER] * 3, STUDENT) is None and undertrained([], STUDENT) is None
    short = replace(TEACHER, history=history(STEEP))
    found = undertrained([short, short, TEACHER], STUDENT)
    assert found is not None and "still falling at the end, by 27%" in found.found
    assert undertrained([short, TEACHER, TEACHER], STUDENT) is None
    found = undertrained([TEACHER], replace(STUDENT, steps=7000))
    assert found is not None and "took 2,000 optimiser steps, the student 7,000" in found.found
    tuned = replace(TEACHER, starts_trained=True, steps=260)
    assert undertrained([tuned], replace(STUDENT, steps=7000)) is None
    found = undertrained([replace(tuned, steps=180)], replace(STUDENT, steps=7000))
    assert found is not None and "took 180 optimiser steps, `auto` gives at least 500" in found.found
    assert TUNED == FROM_TRAINED[0]


def test_the_same_kind_by_model_size_or_mistakes() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 400)

    def answers(wrong: np.ndarray) -> np.ndarray:
        return np.where(wrong, (labels + 1) % 10, labels)

    apart = [answers(generator.random(400) < 0.2) for _ in range(3)]
    assert same_kind([TEACHER] * 3, STUDENT, apart, labels) is None
    assert same_kind([TEACHER] * 3, STUDENT, [], None) is None  # values
    found = same_kind([replace(TEACHER, model=STUDENT.model)] * 3, STUDENT, apart, labels)
    assert found is not None and "the student's own network" in found.found and "agree" in found.found
    found = same_kind([replace(TEACHER, parameters=5_100)], STUDENT, apart[:1], labels)
    assert found is not None and "no larger than the student (5,100" in found.found
    common = generator.random(400) < 0.2
    alike = [answers(common ^ (generator.random(400) < 0.02)) for _ in range(3)]
    found = same_kind([TEACHER] * 3, STUDENT, alike, labels)
    assert found is not None and "make the same mistakes" in found.found
    assert same_kind([], STUDENT, apart, labels) is None  # given teachers, of which only answers are known


def logits_of(labels: np.ndarray, right: float, sure: float) -> np.ndarray:
    """(N, 4) with `sure` on one class, which is the label on a share `right` of the rows."""
    hit = np.arange(len(labels)) < right * len(labels)
    answers = np.where(hit, labels, (labels + 1) % 4)
    probabilities = np.full((len(labels), 4), (1 - sure) / 3)
    probabilities[np.arange(len(labels)), answers] = sure
    return np.log(probabilities)


def test_confidence_against_accuracy() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    for sure, word in ((0.97, "overconfident"), (0.5, "underconfident")):
        found = confidence(logits_of(labels, 0.8, sure), labels)
        assert found is not None and word in found.found and "ECE" in found.found
    assert confidence(logits_of(labels, 0.8, 0.8), labels) is None
    assert confidence(logits_of(labels[:20], 0.8, 0.97), labels[:20]) is None  # too few to tell


def test_few_labels_and_noise() -> None:
    assert few_labels(1.0, 0.75, 100) is not None and "100 labelled rows" in few_labels(1.0, 0.75, 100).found  # type: ignore[union-attr]
    assert few_labels(1.0, 0.95, 100) is None and few_labels(0.9, 0.7, 100) is None
    labels = np.random.default_rng(0).integers(0, 4, 200)
    found = label_noise(logits_of(labels, 0.9, 0.95), labels)
    assert found is not None and "on 10.0% of 200 training rows" in found.found
    assert label_noise(logits_of(labels, 0.9, 0.6), labels) is None  # wrong, and not sure
    assert label_noise(logits_of(labels, 0.99, 0.95), labels) is None
    assert log_softmax(logits_of(labels, 1, 0.9)).max() == pytest.approx(np.log(0.9))
