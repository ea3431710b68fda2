import numpy as np
import pytest
from sklearn import metrics as reference

from ensemble_kd.targets.metrics import (
    class_means,
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    log_softmax,
    reliability_bins,
)


def some(count: int = 200, num_classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    logits = rng.normal(size=(count, num_classes)) * 2
    logits[np.arange(count), labels] += 1.5
    return log_softmax(logits.astype(np.float32)), labels


@pytest.mark.parametrize("num_classes", [2, 5, 77])
def test_against_sklearn(num_classes: int) -> None:
    log_probs, labels = some(300, num_classes)
    got = classification_metrics(log_probs, labels)
    predicted = log_probs.argmax(axis=1)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert got["errors"] == (labels != predicted).sum()
    assert got["count"] == 300
    every = list(range(num_classes))
    assert got["nll"] == pytest.approx(reference.log_loss(labels, np.exp(log_probs), labels=every))
    wanted = reference.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(confusion_matrix(predicted, labels, num_classes), wanted)


def test_brier_and_ece_against_a_loop() -> None:
    log_probs, labels = some(150, 4)
    brier, bins = 0.0, [[0, 0.0, 0.0] for _ in range(15)]
    for row, label in zip(np.exp(log_probs), labels, strict=True):
        brier += sum((p - (c == label)) ** 2 for c, p in enumerate(row)) / 150
        chosen = next(b for b in range(15) if row.max() <= (b + 1) / 15)
        bins[chosen][0] += 1
        bins[chosen][1] += row.max()
        bins[chosen][2] += row.argmax() == label
    ece = sum(abs(confidence - right) for n, confidence, right in bins if n) / 150
    got = classification_metrics(log_probs, labels)
    assert got["brier"] == pytest.approx(brier)
    assert got["ece"] == pytest.approx(ece)
    assert reliability_bins(log_probs, labels)["count"] == [n for n, _, _ in bins]


def test_per_class_accuracy_is_none_for_a_class_without_examples() -> None:
    log_probs = log_softmax(np.array([[5.0, 0, 0], [5.0, 0, 0], [0, 0, 5.0]]))
    got = classification_metrics(log_probs, np.array([0, 2, 2]))
    assert got["per_class_accuracy"] == [1.0, None, 0.5]


@pytest.mark.parametrize("right, ece", [(8, 0.0), (10, 0.2), (0, 0.8)])
def test_ece_closed_form(right: int, ece: float) -> None:
    """Ten rows of confidence 0.8, `right` of them correct: |right / 10 - 0.8|."""
    log_probs = np.log(np.tile([0.8, 0.2], (10, 1)))
    labels = np.array([0] * right + [1] * (10 - right))
    assert expected_calibration_error(log_probs, labels) == pytest.approx(ece)


def test_ece_of_certainty_and_of_the_uniform_distribution() -> None:
    certain = np.log(np.array([[1.0, 1e-300], [1e-300, 1.0]]))
    assert expected_calibration_error(certain, np.array([0, 1])) == pytest.approx(0)
    assert expected_calibration_error(certain, np.array([1, 0])) == pytest.approx(1)
    uniform = np.log(np.full((4, 4), 0.25))  # argmax takes class 0: right once in four
    assert expected_calibration_error(uniform, np.arange(4)) == pytest.approx(0)


def test_log_softmax_of_large_logits_is_finite() -> None:
    got = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    np.testing.assert_allclose(got, [[0, -1e4], [-np.log(2), -np.log(2)]])


@pytest.mark.parametrize(
    "log_probs, labels, told",
    [
        (np.zeros((2, 3)), np.array([0, 3]), "labels lie in 0..3, expected 0..2"),
        (np.zeros((2, 3)), np.array([0, -1]), "leave unlabelled rows out"),
        (np.zeros((0, 3)), np.array([], dtype=int), "N >= 1"),
        (np.full((1, 2), np.nan), np.array([0]), "NaN"),
    ],
)
def test_what_cannot_be_measured_is_refused(log_probs: np.ndarray, labels: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        classification_metrics(log_probs, labels)


def test_means_over_classes_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(4, p=[0.8, 0.15, 0.05, 0.0], size=300)
    answers = np.where(generator.random(300) < 0.7, labels, generator.integers(4, size=300))
    found = class_means(answers, labels, 5)
    with np.errstate(all="ignore"):
        assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, answers, average="macro"))
        seen = reference.recall_score(labels, answers, labels=np.unique(labels), average="macro")
    assert found["balanced_accuracy"] == pytest.approx(seen)
