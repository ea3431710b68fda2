"""What a difference between two systems is worth: intervals, and the recovered gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.special import ndtri, stdtrit

Outcome = Literal["helped", "no difference shown", "hurt"]


@dataclass(frozen=True)
class Interval:
    """An accuracy difference in percentage points with its 95% interval."""

    points: float
    low: float
    high: float
    over: str
    """What it was taken over: `3 seeds`, `one seed, 360 test examples`."""

    margin: ClassVar[float] = 0.2
    """Points below which a difference is not worth having."""

    @property
    def outcome(self) -> Outcome:
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "no difference shown"

    @property
    def negligible(self) -> bool:
        """Whether the interval holds 0 and nothing beyond the margin on both sides."""
        return -self.margin <= self.low <= 0 <= self.high <= self.margin


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (with n - 1); the error is None for a single value."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return float(array.mean()), error


def paired_interval(a: np.ndarray, b: np.ndarray, comparisons: int = 1, counts: bool = True) -> Interval:
    """95% interval of accuracy(a) - accuracy(b), from correctness per example on the same N rows; or of
    another mean over rows from its parts, without the correction for `counts`.

    `comparisons`: of how many candidates `a` was found the best on these rows; all their intervals then
    hold at once with 95% (Bonferroni).

    Normal, with the continuity correction 1/N (Fleiss, Levin & Paik 2003, section 13.1): without it four
    changed examples, all in favour, would count as shown (exact McNemar p = 0.125). `a` and `b` (N,) may
    be bool or a mean over seeds.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    count = len(difference)
    half = float(ndtri(1 - 0.025 / comparisons)) * float(difference.std()) / math.sqrt(count)
    half += 1 / count if counts else 0.0
    mean = float(difference.mean())
    return Interval(100 * mean, 100 * (mean - half), 100 * (mean + half), f"{count:,} test examples")


def seed_interval(differences: Sequence[float]) -> Interval:
    """95% Student-t interval of the mean of n >= 2 differences in accuracy (fractions), one per seed."""
    if len(differences) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 of them, got {len(differences)}")
    mean, error = mean_and_error(differences)
    assert error is not None
    half = float(stdtrit(len(differences) - 1, 0.975)) * error
    return Interval(100 * mean, 100 * (mean - half), 100 * (mean + half), f"{len(differences)} seeds")


def combined_interval(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], comparisons: int = 1, counts: bool = True
) -> Interval:
    """Interval of the mean difference of n seeds, pair i being correctness per example of a[i] and b[i].

    One seed: over test examples. More: the wider of the intervals over seeds and over test examples, since
    seeds that happen to agree on a small test set show nothing about other examples. `comparisons`, `counts`
    as in `paired_interval`, for the interval over examples alone: with a few seeds the other is wide enough.
    """
    count = len(a[0])
    over_examples = paired_interval(np.mean(a, axis=0), np.mean(b, axis=0), comparisons, counts)
    if len(a) == 1:
        over, widest = "one seed", over_examples
    else:
        over = f"{len(a)} seeds"
        over_seeds = seed_interval([float(np.mean(x) - np.mean(y)) for x, y in zip(a, b, strict=True)])
        widest = max(over_examples, over_seeds, key=lambda interval: interval.high - interval.low)
    return Interval(widest.points, widest.low, widest.high, f"{over}, {count:,} test examples")


def gap_recovered(distilled: float, hard: float, ensemble: float) -> float | None:
    """(distilled - hard) / (ensemble - hard) of accuracies; None where there is no gap, see `gap_reason`."""
    return None if ensemble <= hard else (distilled - hard) / (ensemble - hard)


def gap_reason(hard: float | None, ensemble: float | None) -> str | None:
    """Why there is no gap to recover, or None where there is one. Accuracies as fractions."""
    if ensemble is None:
        return "the ensemble's outputs on the test rows are not known"
    if hard is None:
        return "no student was trained on hard labels"
    if ensemble <= hard:
        return (
            f"the ensemble ({100 * ensemble:.2f}%) is no better than "
            f"the hard-label student ({100 * hard:.2f}%): there is no gap to recover"
        )
    return None


def gap_error(distilled: Sequence[float], hard: Sequence[float], ensemble: float) -> float | None:
    """Standard error over paired seeds of the ratio of means, to first order (delta method)."""
    value = gap_recovered(float(np.mean(distilled)), float(np.mean(hard)), ensemble)
    if value is None or len(distilled) < 2:
        return None
    gap = ensemble - np.asarray(hard, dtype=np.float64)
    residual = np.asarray(distilled) - np.asarray(hard) - value * gap
    return float(residual.std(ddof=1) / math.sqrt(len(residual)) / gap.mean())


def shown(interval: Interval) -> str:
    """`(95% interval -0.10 to +1.20; 3 seeds, 360 test examples)`"""
    return f"(95% interval {interval.low:+.2f} to {interval.high:+.2f}; {interval.over})"
