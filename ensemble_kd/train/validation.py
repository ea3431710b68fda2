"""What a member is judged by on validation rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ensemble_kd.objectives.targets import HALVES
from ensemble_kd.objectives.targets import calibrated_loss as calibrated_loss
from ensemble_kd.targets import target_of
from ensemble_kd.targets.base import preference as preference


def validation_metrics(
    outputs: Tensor, labels: Tensor, described: dict[str, Any] | None, by: str = "loss"
) -> dict[str, float]:
    """`validation_loss` and what else the target tells of (N, C) outputs; `described` is `DataInfo.target`.

    `by`: what early stopping goes by; where that is another of the target's losses it stands beside them.
    """
    target = target_of(described)
    half = HALVES[target.name]
    found = target.validation(
        outputs.numpy(), labels.numpy(), lambda: float(half.hard(outputs, labels).mean())
    )
    if (further := half.losses.get(by)) is not None:
        found[by] = further(outputs, labels)
    return found
