"""Does the student that ships tell inputs apart at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble_kd.targets import target_in

NEARLY_ALL = 0.99
"""Share of the rows with one and the same answer from which on it is told."""
FEWEST = 10
"""Test rows below which the same answer everywhere may be chance."""
VARIES = 1e-3
"""Standard deviation of values, in that of the labels, below which they are one value."""


def constant_answer(logits: np.ndarray, labels: np.ndarray, info: dict[str, Any]) -> dict[str, Any] | None:
    """What a student says of (nearly) all test rows whose labels differ, and how to put it; else None.

    `logits` are (N, C), or values (N, K).
    """
    rows = len(labels)
    if rows < FEWEST or len(np.unique(labels)) < 2:
        return None
    if not target_in(info).classified:
        values, truth = logits.astype(np.float64), labels.reshape(rows, -1)
        if not np.isfinite(values).all() or (values.std(0) > VARIES * truth.std(0)).any():
            return None
        means = values.mean(0).tolist()
        shown = ", ".join(f"{mean:.4g}" for mean in means)
        text = f"answers {shown} for all {rows:,} test rows, whatever the input"
        return {
            "answer": means if len(means) > 1 else means[0],
            "share": 1.0,
            "text": _sentence(text),
        }
    counts = np.bincount(logits.argmax(1), minlength=logits.shape[1])
    best = int(counts.argmax())
    share, really = float(counts[best]) / rows, float((labels == best).mean())
    # Where nearly all rows are of that class, only the one answer without exception is suspicious.
    if share < NEARLY_ALL or (share < 1 and really > share - 0.05):
        return None
    how_many = f"all {rows:,}" if share == 1 else f"{100 * share:.1f}% of {rows:,}"
    name = info["class_names"][best]
    text = f"answers {name!r} for {how_many} test rows, of which {100 * really:.1f}% are of that class"
    return {"answer": name, "share": share, "text": _sentence(text)}


def _sentence(text: str) -> str:
    return (
        f"Warning: the student that ships {text}. It tells nothing apart: do not use it before you have "
        "looked at labels, learning rate and epochs."
    )
