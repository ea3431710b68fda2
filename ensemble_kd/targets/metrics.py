"""How good a classifier's distributions, or a regressor's values, are on labelled rows. numpy and scipy only.

N examples, C classes; `log_probs` are log-softmax rows, shape (N, C).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits -> (N, C) float64 log-probabilities."""
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def classification_metrics(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, balanced_accuracy, macro_f1, errors, nll, brier, ece, per_class_accuracy, count of (N, C)
    `log_probs`.

    balanced_accuracy and macro_f1 as in `class_means`; nll is the mean over examples in nats; brier the sum
    over classes, mean over examples (0 to 2); ece as in `expected_calibration_error`; per_class_accuracy is
    None for a class without examples.
    """
    _check(log_probs, labels)
    log_probs = log_probs.astype(np.float64)
    count, num_classes = log_probs.shape
    rows = np.arange(count)
    answers = log_probs.argmax(axis=1)
    correct = answers == labels
    probs = np.exp(log_probs)
    # sum_c (p_c - y_c)^2 = sum_c p_c^2 - 2 p_label + 1, without a one-hot matrix
    brier = (probs**2).sum(axis=1) - 2 * probs[rows, labels] + 1
    seen = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[correct], minlength=num_classes)
    return {
        "accuracy": float(correct.mean()),
        **class_means(answers, labels, num_classes),
        "errors": int(count - correct.sum()),
        "nll": float(-log_probs[rows, labels].mean()),
        "brier": float(brier.mean()),
        "ece": expected_calibration_error(log_probs, labels),
        "per_class_accuracy": [float(r / n) if n else None for r, n in zip(right, seen, strict=True)],
        "count": count,
    }


def class_means(answers: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Means over classes, in which a rare class counts as much as a frequent one.

    balanced_accuracy: the mean recall of the classes that occur among `labels`. macro_f1: the mean F1 of
    those that occur among labels or answers, F1 = 2 * hits / (labels + answers) of the class.
    """
    asked = np.bincount(labels, minlength=num_classes)
    given = np.bincount(answers, minlength=num_classes)
    hits = np.bincount(labels[answers == labels], minlength=num_classes)
    either = asked + given
    return {
        "balanced_accuracy": float((hits[asked > 0] / asked[asked > 0]).mean()),
        "macro_f1": float((2 * hits[either > 0] / either[either > 0]).mean()),
    }


def regression_metrics(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """r2, mse, mae, pearson, spearman and count of (N,) `values` against (N,) `labels`, both in one unit.

    r2 = 1 - mse / var(labels), below 0 for what is worse than the mean of these labels. The correlations are
    0 where one side is constant, r2 is NaN where the labels are.
    """
    from scipy.stats import rankdata  # here: a second and a half, which classifiers' processes need not wait

    if values.shape != labels.shape or values.ndim != 1 or len(labels) == 0:
        raise ValueError(f"values (N,) and labels (N,), N >= 1; got {values.shape}, {labels.shape}")
    values, labels = values.astype(np.float64), labels.astype(np.float64)
    if np.isnan(labels).any():
        raise ValueError("labels hold NaN; leave unlabelled rows out")
    error = values - labels
    mse, variance = float((error**2).mean()), float(labels.var())
    return {
        "r2": 1 - mse / variance if variance else float("nan"),
        "mse": mse,
        "mae": float(np.abs(error).mean()),
        "pearson": _correlation(values, labels),
        "spearman": _correlation(rankdata(values), rankdata(labels)),
        "count": len(labels),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r, 0 where one side is constant or not finite."""
    from scipy.stats import pearsonr

    if not np.isfinite(a).all() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(pearsonr(a, b).statistic)


def reliability_bins(log_probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> dict[str, list[Any]]:
    """Count, mean confidence and accuracy per bin of the confidence, the largest probability of a row.

    Equal-width bins over (0, 1], closed on the right (arXiv 1706.04599); None in an empty bin.
    """
    _check(log_probs, labels)
    confidence = np.exp(log_probs.astype(np.float64).max(axis=1))
    correct = log_probs.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=w, minlength=num_bins) for w in (confidence, correct)]
    means = [[float(s / n) if n else None for s, n in zip(total, count, strict=True)] for total in sums]
    return {"count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def expected_calibration_error(log_probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Mean over examples of |accuracy - confidence| of the example's bin."""
    bins = reliability_bins(log_probs, labels, num_bins)
    rows = zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
    return float(sum(n * abs(acc - conf) for n, conf, acc in rows if n) / len(labels))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) counts: row = true class, column = predicted class."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def _check(log_probs: np.ndarray, labels: np.ndarray) -> None:
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or len(labels) == 0:
        raise ValueError(f"log_probs (N, C) and labels (N,), N >= 1; got {log_probs.shape}, {labels.shape}")
    if labels.min() < 0 or labels.max() >= log_probs.shape[1]:
        raise ValueError(
            f"labels lie in {labels.min()}..{labels.max()}, expected 0..{log_probs.shape[1] - 1}; "
            "leave unlabelled rows out"
        )
    if np.isnan(log_probs).any():
        raise ValueError("log_probs hold NaN; leave the model out")
