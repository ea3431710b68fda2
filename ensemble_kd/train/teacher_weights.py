"""How much each teacher counts in the mean, from validation rows. numpy only.

Of members that are about as good the plain mean is as good as any. Members of different kinds may be far
apart: there the mean follows the better ones, and still keeps a little of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble_kd.targets.metrics import log_softmax

PRIOR = 5.0
"""Rows that each member has on its side before any row is seen; see `fit_weights`."""
DIGITS = 3
"""Significant digits that are kept: what rounding differs in between machines is not in a fingerprint."""


def fit_weights(
    outputs: Sequence[np.ndarray], labels: np.ndarray, temperatures: Sequence[float]
) -> list[float]:
    """w of least  -sum_n log sum_m w_m p_m(y_n) - PRIOR * sum_m log w_m,  with sum 1 and none below 0.

    `outputs` are the members' (N, C) logits on N rows, divided by their `temperatures`; `labels` (N,). Of
    values, (N, 1), the first term is N / 2 * log mean_n (sum_m w_m v_m - y)^2; of several, (N, K), each
    column is divided by its deviation on these rows and counts as N rows. The second is a Dirichlet
    prior whose mode are equal weights: few rows change them little, and alike members hardly ever.
    Stacking with such weights: Breiman, Machine Learning 24, 1996.
    """
    from scipy.optimize import minimize

    several = labels.ndim > 1
    values = several or outputs[0].shape[1] == 1
    rows = np.arange(labels.size)
    if several:
        unit = np.where(labels.std(0) > 0, labels.std(0), 1.0).astype(np.float64)
        known = np.stack([((v.astype(np.float64) - labels) / unit).ravel() for v in outputs], 1)  # (N K, M)
    elif values:
        known = np.stack([v[:, 0].astype(np.float64) - labels for v in outputs], 1)  # (N, M) errors
    else:
        pairs = zip(outputs, temperatures, strict=True)
        known = np.stack([np.exp(log_softmax(v.astype(np.float64) / t)[rows, labels]) for v, t in pairs], 1)

    def loss(scores: np.ndarray) -> tuple[float, np.ndarray]:
        w = np.exp(scores - scores.max())
        w /= w.sum()
        mean = known @ w  # (N,)
        if values:
            square = float(mean @ mean) + 1e-12
            total, slope = len(rows) / 2 * np.log(square / len(rows)), len(rows) * (mean @ known) / square
        else:
            mean = np.maximum(mean, 1e-300)
            total, slope = -np.log(mean).sum(), -(1 / mean) @ known
        total -= PRIOR * np.log(w).sum()
        slope = slope - PRIOR / w
        return float(total), w * (slope - w @ slope)

    found = minimize(loss, np.zeros(len(outputs)), jac=True, method="L-BFGS-B", options={"gtol": 1e-6}).x
    w = np.exp(found - found.max())
    return [float(f"{x:.{DIGITS}g}") for x in w / w.sum()]
