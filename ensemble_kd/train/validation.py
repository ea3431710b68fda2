"""What a member is judged by on validation rows, of classes and of values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.train.metrics import class_means, regression_metrics


def validation_metrics(outputs: Tensor, labels: Tensor, target: dict[str, float] | None) -> dict[str, float]:
    """`validation_loss` and, of classes, `validation_accuracy`; `target` as in DataInfo.

    Of values the loss is MSE / variance of the train labels, which the training loss is too, so that the
    label's unit does not show; and `validation_pearson` stands in the accuracy's place.
    """
    if target is not None:
        found = regression_metrics(outputs[:, 0].numpy(), labels.numpy())
        loss = found["mse"] / target["std"] ** 2
        return {"validation_loss": loss, "validation_pearson": found["pearson"]}
    answers = outputs.argmax(1)
    means = class_means(answers.numpy(), labels.numpy(), outputs.shape[1])
    return {
        "validation_loss": float(cross_entropy(outputs, labels).mean()),
        "validation_accuracy": float((answers == labels).float().mean()),
        **{f"validation_{name}": value for name, value in means.items()},
    }


def preference(entry: dict[str, Any]) -> tuple[float, float]:
    """The best of several members has the least: by accuracy where there are classes, then by loss."""
    return -entry.get("validation_accuracy", 0.0), entry["validation_loss"]
