"""What a member is judged by on validation rows, of classes and of values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.train.metrics import class_means, regression_metrics

LOWEST, HIGHEST = 1e-3, 1e2
"""Of the inverse temperatures that are looked at."""
PRECISION = 1e-3
"""Relative, of the inverse temperature: the loss is flat around its minimum."""


def validation_metrics(
    outputs: Tensor, labels: Tensor, target: dict[str, float] | None, by: str = "loss"
) -> dict[str, float]:
    """`validation_loss` and, of classes, `validation_accuracy`; `target` as in DataInfo.

    `by`: what early stopping goes by; with `calibrated_loss` that stands beside them.

    Of values the loss is MSE / variance of the train labels, which the training loss is too, so that the
    label's unit does not show; and `validation_pearson` stands in the accuracy's place.
    """
    if target is not None:
        found = regression_metrics(outputs[:, 0].numpy(), labels.numpy())
        loss = found["mse"] / target["std"] ** 2
        return {"validation_loss": loss, "validation_pearson": found["pearson"]}
    answers = outputs.argmax(1)
    means = class_means(answers.numpy(), labels.numpy(), outputs.shape[1])
    found = {
        "validation_loss": float(cross_entropy(outputs, labels).mean()),
        "validation_accuracy": float((answers == labels).float().mean()),
        **{f"validation_{name}": value for name, value in means.items()},
    }
    if by == "calibrated_loss":
        found["calibrated_loss"] = calibrated_loss(outputs, labels)
    return found


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


def preference(entry: dict[str, Any]) -> tuple[float, float]:
    """The best of several members has the least: by accuracy where there are classes, then by loss."""
    return -entry.get("validation_accuracy", 0.0), entry["validation_loss"]
