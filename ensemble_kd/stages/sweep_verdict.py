"""The verdict of a sweep: whether its best student is better than the best on hard labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.config import balanced_weights
from ensemble_kd.data.records import load_info, load_labels
from ensemble_kd.targets import target_of
from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.statistics import combined_interval
from ensemble_kd.train.trials import Trial


def sweep_verdict(
    winner: Trial, baseline: Trial, metric: str, tried: int, members: Path, *, data: Path
) -> dict[str, Any]:
    """Winner against baseline, paired on the validation rows and over seeds.

    `tried` is the number of configurations that the winner is the best of, `members` the folder of all
    trained students, `data` that of the prepared data.
    """
    loss = metric.endswith("loss")
    labels, target = load_labels(data, "validation"), target_of(load_info(data).target)
    over_classes = metric in ("validation_balanced_accuracy", "validation_macro_f1")
    by_class = np.array(balanced_weights(np.bincount(labels).tolist()))[labels] if over_classes else 1.0

    def scores(trial: Trial) -> list[np.ndarray]:
        """Per seed what each row adds: right or wrong, log-likelihood, or less the squared error.

        Where the metric is a mean over classes, a row counts by 1 / its class's share: their mean is the
        balanced accuracy.
        """
        found = []
        for task in trial.tasks:
            logits = load_logits(task.folder(members), "validation").numpy()
            if not target.classified:
                found.append(-target.losses(logits, labels))
                continue
            log_probs = log_softmax(logits)[np.arange(len(labels)), labels]
            right = (logits.argmax(1) == labels).astype(np.float64)
            found.append(log_probs if loss else right * by_class)
        return found

    counts = target.classified and not over_classes
    difference = combined_interval(scores(winner), scores(baseline), comparisons=tried, counts=counts)
    scale, unit = (
        (0.01, "nats" if counts else "of loss")
        if loss
        else (1.0, "points of balanced accuracy" if over_classes else "points of accuracy")
    )
    low, high, mean = (scale * x for x in (difference.low, difference.high, difference.points))
    count = f"{len(labels):,} validation rows"
    over = f"{len(winner.tasks)} seeds, {count}" if len(winner.tasks) > 1 else f"one seed, {count}"
    change = (
        f"{abs(mean):.3g} {unit} {'better' if mean >= 0 else 'worse'} than {baseline.name} on hard labels"
    )
    told = f"(95% interval {low:+.3g} to {high:+.3g}, allowing for the choice; {over})"
    configurations = f"{tried} configuration{'s' if tried != 1 else ''}"
    text = {
        "helped": f"{winner.name} is the best of {configurations}: {change} {told}.",
        "hurt": f"Distillation did not help in {configurations}: the best, {winner.name}, is {change} "
        f"{told}.",
        "no difference shown": f"A gain from distillation is not shown in {configurations}: the best, "
        f"{winner.name}, is {change}, within the noise {told}.",
    }[difference.outcome]
    return {"outcome": difference.outcome, "text": text, "difference": mean, "low": low, "high": high}
