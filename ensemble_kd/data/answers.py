"""Are a teacher's numbers what the setting says: logits, or probabilities? One check for every source.

All rows are looked at, so that neither a sorted file nor a single odd row decides.
"""

from __future__ import annotations

import numpy as np

ROUNDED = 1e-2
"""How far from its sum a row of distributions may be: float16, or two decimals of few classes."""
NEARLY_ALL = 0.99
"""Share of the rows that have to look alike: rows that were damaged do not hide what the others are."""


def sums_to(numbers: np.ndarray, total: float) -> np.ndarray:
    """(N,) bool: which rows of (N, C) hold no negative number and add up to `total`."""
    right = np.abs(numbers.sum(1, dtype=np.float64) - total) <= ROUNDED * total
    found: np.ndarray = right & (numbers >= 0).all(1)
    return found


def what_they_are(numbers: np.ndarray) -> tuple[str, float]:
    """`probabilities`, `percentages`, `log-probabilities` or `logits`, and the share of rows that say so.

    A single row, or a single class, tells nothing.
    """
    if len(numbers) > 1 and numbers.shape[1] > 1:
        for kind, total in (("probabilities", 1.0), ("percentages", 100.0)):
            if (share := float(sums_to(numbers, total).mean())) >= NEARLY_ALL:
                return kind, share
        if (numbers <= 0).all() and (share := float(sums_to(np.exp(numbers), 1).mean())) >= NEARLY_ALL:
            return "log-probabilities", share
    return "logits", 1.0


def values_problem(numbers: np.ndarray, values: str, setting: str) -> str | None:
    """What (N, C) numbers are, if not the `values` (logits, probabilities) that they are said to be.

    `setting` is the field that says so. What is no distribution is left to the caller, who can name the row.
    """
    kind, share = what_they_are(numbers)
    rows = f"all {len(numbers):,} rows" if share == 1 else f"{100 * share:.1f}% of {len(numbers):,} rows"
    if kind == "percentages":
        return (
            f"percentages in {rows}: no number is negative, and each row adds up to 100; divide them by "
            f"100 and set {setting}=probabilities"
        )
    if values == "logits" and kind == "probabilities":
        hard = ((numbers == 0) | (numbers == 1)).all()
        return (
            f"probabilities in {rows}: no number is negative{', all are 0 or 1' if hard else ''}, "
            f"and each row adds up to 1; set {setting}=probabilities"
        )
    if values == "probabilities" and kind == "log-probabilities":
        return (
            f"log-probabilities, which are logits, in {rows}: no number is positive, and their "
            f"exponentials add up to 1; set {setting}=logits"
        )
    return None


def distributions(numbers: np.ndarray) -> np.ndarray:
    """(N,) bool: which rows of (N, C) are probabilities."""
    return sums_to(numbers, 1.0)
