"""Who is in which split: seeded, stratified by class, the same on every machine.

Rows are drawn by a hash of (seed, purpose, row number), not by a running generator, so that a draw
does not change with the library's version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble_kd.data.splitmix import GOLDEN, scramble

TRAIN, VALIDATION, TEST, DROPPED = 0, 1, 2, 3


@dataclass(frozen=True)
class Plan:
    """What becomes of the rows of the source's train split."""

    part: np.ndarray
    """(N,) int8: TRAIN, VALIDATION, TEST or DROPPED."""
    labels: np.ndarray
    """(N,) int64, -1 where there is none, or where `label_fraction` takes it away; of values float32, NaN."""


def random_keys(seed: int, purpose: int, num_rows: int) -> np.ndarray:
    """(N,) uint64: splitmix64 of seed, purpose and row number."""
    state = np.arange(num_rows, dtype=np.uint64)
    for number in (seed, purpose):
        state = scramble(state + np.uint64(number) + np.uint64(GOLDEN))
    return state


def allocate(counts: np.ndarray, fraction: float, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Rows to draw per class (C,): within one of `fraction * counts`, and right in total.

    The largest remainders are rounded up (Hamilton's method), then `least` and `most` hold.
    """
    exact = counts * fraction
    quota = np.floor(exact + 1e-9).astype(np.int64)
    missing = int(np.floor(counts.sum() * fraction + 0.5)) - int(quota.sum())
    remainder = exact - quota
    order = np.argsort(-remainder, kind="stable")
    order = order[(remainder[order] > 1e-9) & (quota[order] < most[order])]
    quota[order[: max(0, missing)]] += 1
    return np.clip(quota, np.minimum(least, most), most)


def draw(labels: np.ndarray, quota: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Mask (N,) of `quota[c]` rows of each class c: those with the smallest keys. Label -1 is never drawn."""
    order = np.lexsort((keys, labels))
    ordered = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)  # place within its class
    picked = np.zeros(len(labels), dtype=bool)
    known = ordered >= 0
    picked[order[known]] = rank[known] < quota[ordered[known]]
    return picked


def _count(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels[labels >= 0], minlength=num_classes)


def plan_splits(
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    validation_fraction: float | None,
    test_fraction: float | None,
    label_fraction: float = 1.0,
) -> Plan:
    """Hold rows out of train (N,) where a fraction is given; keep `label_fraction` of the labels that stay.

    Both fractions are of the whole. Each class keeps at least one labelled row in train.
    """
    part = np.full(len(labels), TRAIN, dtype=np.int8)
    total = _count(labels, num_classes)
    for name, fraction in ((TEST, test_fraction), (VALIDATION, validation_fraction)):
        if fraction is not None:
            left = np.where(part == TRAIN, labels, -1)
            most = np.maximum(_count(left, num_classes) - 1, 0)
            quota = allocate(total, fraction, np.zeros_like(most), most)
            part[draw(left, quota, random_keys(seed, name, len(labels)))] = name
    kept = labels.astype(np.int64, copy=True)
    if label_fraction < 1:
        left = np.where(part == TRAIN, labels, -1)
        counts = _count(left, num_classes)
        quota = allocate(counts, label_fraction, np.ones_like(counts), counts)
        keep = draw(left, quota, random_keys(seed, 3, len(labels)))
        kept[(part == TRAIN) & ~keep] = -1
    return Plan(part, kept)
