"""One temperature for each teacher, from validation rows (arXiv 1706.04599). numpy only.

A member's own sharpness says nothing about what it knows: a mean of members of different kinds would follow
the loudest. Divided by its own temperature, each speaks as surely as it is right. Rows that no teacher was
trained on decide, so what is fitted holds for unlabelled rows; on their own training rows teachers stay surer
than that.
"""

from __future__ import annotations

import math

import numpy as np

from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.calibration import RANGE

FEWEST = 50
"""Rows below which no temperature is fitted."""
MOST = 10_000
"""Rows that are read: of more, as many, evenly spread."""
SPREAD = math.log(2.0)
"""Standard deviation of log T before any row is seen: two teachers of three lie between 1/2 and 2."""
DIGITS = 4
"""Significant digits that are kept: what rounding differs in between machines is not in a fingerprint."""


def fit_shrunk(logits: np.ndarray, labels: np.ndarray) -> float:
    """T of least  N * nll(v / T) + (ln T / SPREAD)^2 / 2  over N rows: (N, C) `logits`, (N,) `labels`.

    The penalty is a normal prior on ln T around 0. It weighs as much as a few rows, keeps T finite where
    every answer is right, and is lost among many rows. 1 for fewer than `FEWEST`.
    """
    from scipy.optimize import minimize_scalar

    if len(labels) < FEWEST:
        return 1.0
    step = math.ceil(len(labels) / MOST)
    logits, labels = logits[::step].astype(np.float64), labels[::step]
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        nll = -log_softmax(logits * math.exp(-log_t))[rows, labels].sum()
        return float(nll) + (log_t / SPREAD) ** 2 / 2

    # In ln T the sum need not be convex: look on a grid, then closer around the best.
    grid = np.linspace(math.log(RANGE[0]), math.log(RANGE[1]), 25)
    best = int(np.argmin([loss(float(x)) for x in grid]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(f"{math.exp(float(found.x)):.{DIGITS}g}")
