"""The torch half of each kind of target (`ensemble_kd.targets`): the loss on labels, and other losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ensemble_kd.objectives.hard import cross_entropy, squared_error

LOWEST, HIGHEST = 1e-3, 1e2
"""Inverse temperatures that are looked at."""
PRECISION = 1e-3
"""Relative precision of the inverse temperature: the loss is flat around its minimum."""


@dataclass(frozen=True)
class TorchHalf:
    """What a kind of target needs of torch."""

    hard: Callable[..., Tensor]
    """(outputs (..., B, C), labels, label smoothing) -> (..., B) losses; 0 for rows without a label."""
    losses: Mapping[str, Callable[[Tensor, Tensor], float]] = field(default_factory=dict)
    """By name what `training.early_stopping_by` may ask for beside `loss`: (outputs, labels) -> the mean."""


def calibrated_loss(logits: Tensor, labels: Tensor) -> float:
    """The least mean cross-entropy of (N, C) `logits` / T over temperatures T (arXiv 1706.04599).

    It is convex in b = 1 / T with derivative E[sum_c p_c z_c - z_y], whose zero Newton's method finds; a step
    changes b by at most a factor of 4. Classes that were made impossible (-inf) stay so at every T.
    """
    if not torch.isfinite(logits).all():
        return float(cross_entropy(logits, labels).mean())
    logits = logits.double()
    logits = logits - logits.gather(1, labels[:, None])  # the right class at 0: its term falls away
    b = 1.0
    for _ in range(30):
        p = torch.softmax(b * logits, 1)  # (N, C)
        mean = (p * logits).sum(1)
        slope = float(mean.mean())
        curve = float(((p * logits.square()).sum(1) - mean.square()).mean())
        step = -slope / curve if curve > 0 else -slope
        new = min(max(b + step, b / 4, LOWEST), 4 * b, HIGHEST)
        moved, b = abs(new - b), new
        if moved <= PRECISION * b:
            break
    return float(torch.logsumexp(b * logits, 1).mean())


HALVES: dict[str, TorchHalf] = {
    "class": TorchHalf(cross_entropy, {"calibrated_loss": calibrated_loss}),
    "value": TorchHalf(squared_error),
}
"""By the name of the target."""


def register_half(name: str, half: TorchHalf) -> None:
    """Enter the torch half of the target `name`."""
    assert HALVES.get(name, half) is half, f"two halves of the target {name!r}"
    HALVES[name] = half
