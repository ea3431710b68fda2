"""Members with their own specialists, and whether these help: decided on validation rows.

Each teacher is combined with the specialists that started from it, and then the teachers are averaged. On
banking77 that gained two to three times as much as averaging the specialists first and combining them with
the averaged teachers: specialists of one teacher correct that teacher, and the average keeps its variety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.specialists import active_specialists, combine

WEIGHTS = (0.5, 1.0, 2.0)
"""Weights of the specialists against the generalist that are tried."""
FEW = 5
"""Rows below which a standard error says nothing."""
TEMPERATURES = tuple(float(t) for t in np.geomspace(0.2, 5.0, 33))

Cluster = tuple[Sequence[int], dict[int, Tensor]]
"""The classes S of one cluster, and by member the logits (B, |S| + 1) of its specialist."""


@dataclass(frozen=True)
class Choice:
    """How much each cluster's specialists count."""

    weights: list[float]
    """One per cluster; 0 is off."""
    text: str
    """In words, for people."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Validation figures behind it."""

    @property
    def on(self) -> bool:
        return any(weight > 0 for weight in self.weights)


def own_distribution(member_logits: Tensor, i: int) -> Tensor:
    """(B, C) log p of member i, from (B, M, C) logits; what decides which of its specialists are asked."""
    return member_logits[:, i].float().log_softmax(1)


def with_specialists(
    member_logits: Tensor,
    clusters: Sequence[Cluster],
    weights: Sequence[float],
    top_n: int = 1,
) -> Tensor:
    """(B, M, C) log q of each member combined with its own specialists, from its logits (B, M, C).

    `weights` has one number per cluster. A member without specialists that are on keeps its distribution.
    """
    members = []
    for i in range(member_logits.shape[1]):
        own = [
            (classes, logits[i].log_softmax(1), weight)
            for (classes, logits), weight in zip(clusters, weights, strict=True)
            if i in logits and weight > 0
        ]
        log_g = own_distribution(member_logits, i)
        pairs = [(classes, log_p) for classes, log_p, _ in own]
        members.append(combine(log_g, pairs, top_n=top_n, weight=[w for _, _, w in own]) if own else log_g)
    return torch.stack(members, 1)


def nll(log_p: Tensor, labels: Tensor) -> Tensor:
    """(N,) -log p of the labels."""
    return -log_p.gather(1, labels[:, None])[:, 0]


class Calibrated(NamedTuple):
    """What a system says at the temperature of least negative log-likelihood."""

    temperature: float
    log_p: Tensor
    """(N, C) log-probabilities at it."""


@dataclass(frozen=True)
class Averaging:
    """How members are averaged, and how many of their classes ask a specialist."""

    mean: str
    weights: Sequence[float] | None
    """Of the members; None for one each."""
    top_n: int


def calibrated(
    member_logits: Tensor, labels: Tensor, mean: str = "arithmetic", weights: Sequence[float] | None = None
) -> Calibrated:
    """The temperature of least negative log-likelihood, and the log-probabilities (N, C) at it.

    `member_logits` (N, M, C) are softened member by member and then averaged; the temperature is one of a
    grid from 0.2 to 5 (one number, as in arXiv 1706.04599).
    """

    def at(temperature: float) -> Tensor:
        return mean_logits(member_logits, temperature, mean, weights) / temperature

    best = min(TEMPERATURES, key=lambda temperature: float(nll(at(temperature), labels).mean()))
    return Calibrated(best, at(best))


def choose(
    member_logits: Tensor,
    clusters: Sequence[Cluster],
    labels: Tensor,
    *,
    mean: str = "arithmetic",
    weights: Sequence[float] | None = None,
    top_n: int = 1,
    weight: float | str = "auto",
) -> Choice:
    """Which clusters' specialists to use, and at which weight, from N validation rows.

    Systems are compared by their negative log-likelihood, each calibrated by one temperature: otherwise a
    difference in sharpness would pass for one in knowledge. Of the `WEIGHTS`, one for all clusters, the best
    is taken. A cluster is off where, alone, it raises the mean loss of the rows on which it is asked by more
    than a standard error, or at all where these are few; the weight is then chosen once more. All are off
    unless together they make fewer mistakes, at a mean loss that is not higher by more than a standard error,
    or as many mistakes at a lower one. A given `weight` is used for all clusters.
    """

    def system(cluster_weights: Sequence[float]) -> Tensor:
        return calibrated(
            with_specialists(member_logits, clusters, cluster_weights, top_n), labels, mean, weights
        )[1]

    number = len(clusters)
    alone = calibrated(member_logits, labels, mean, weights)
    temperature, before = alone
    averaging = Averaging(mean, weights, top_n)
    if weight != "auto":
        chosen = [float(weight)] * number
        text = f"all {number} specialists at weight {float(weight):g}, as configured"
        return Choice(chosen, text, _measured(before, system(chosen), labels, temperature))
    tried = {w: system([w] * number) for w in WEIGHTS}
    best = min(tried, key=lambda w: float(nll(tried[w], labels).mean()))
    chosen = [best * _keeps(member_logits, cluster, labels, alone, best, averaging) for cluster in clusters]
    after = tried[best]
    if any(chosen) and not all(chosen):  # the clusters that are off may have kept the others down
        kept = {w: system([w if c else 0.0 for c in chosen]) for w in WEIGHTS}
        best = min(kept, key=lambda w: float(nll(kept[w], labels).mean()))
        chosen, after = [best if c else 0.0 for c in chosen], kept[best]
    measured = _measured(before, after, labels, temperature)
    lost, gain = measured["rows_lost"], measured["nll_gain"]
    error = measured["nll_gain_error"] or 0.0
    on = sum(w > 0 for w in chosen)
    if on and (gain > -error if lost < 0 else lost == 0 and gain > 0):
        text = f"specialists of {on} of {number} clusters on, weight {best:g}"
        return Choice(chosen, text, measured)
    change = f"{lost:+d} mistakes, loss {-gain:+.4f} ± {error:.4f}"
    text = "specialists of every cluster off"
    if on:
        text += f"; with them, on {len(labels)} validation rows: {change}"
    return Choice([0.0] * number, text, measured)


def _keeps(
    member_logits: Tensor,
    cluster: Cluster,
    labels: Tensor,
    before: Calibrated,
    weight: float,
    averaging: Averaging,
) -> bool:
    """Whether a cluster alone does no harm on the rows on which some member asks it.

    `before` is the ensemble without specialists.
    """
    temperature, top_n = before.temperature, averaging.top_n
    classes, logits = cluster
    rows = torch.zeros(len(labels), dtype=torch.bool)
    for i in logits:
        rows |= active_specialists(own_distribution(member_logits, i), [classes], top_n)[:, 0]
    if not bool(rows.any()):
        return False  # nothing speaks for it
    part = (classes, {i: own[rows] for i, own in logits.items()})
    q = with_specialists(member_logits[rows], [part], [weight], top_n)
    log_q = mean_logits(q, temperature, averaging.mean, averaging.weights) / temperature
    rise, error = _mean_and_error(nll(log_q, labels[rows]) - nll(before.log_p[rows], labels[rows]))
    return rise <= 0 if len(log_q) < FEW else not rise > error


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return float(values.mean()), error


def _measured(before: Tensor, after: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    gain, error = _mean_and_error(nll(before, labels) - nll(after, labels))
    right, now_right = (log_p.argmax(1) == labels for log_p in (before, after))
    return {
        "rows": len(labels),
        "temperature": temperature,
        "nll_without": float(nll(before, labels).mean()),
        "nll_with": float(nll(after, labels).mean()),
        "nll_gain": gain,
        "nll_gain_error": error if error != float("inf") else None,
        "accuracy_without": float(right.float().mean()),
        "accuracy_with": float(now_right.float().mean()),
        "rows_lost": int(right.sum()) - int(now_right.sum()),
    }
