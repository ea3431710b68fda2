"""Are the distilled student's probabilities better, whatever its answers are?

Soft targets teach how sure to be. A student may answer no better and still say with better reason how sure it
is; accuracy does not see that. The measure is the negative log-likelihood (NLL, in nats) of the true class,
each student's logits divided by the temperature that suits its validation rows (arXiv 1706.04599): what one
number can mend is no merit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemble_kd.targets import target_in
from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.statistics import Interval, combined_interval

if TYPE_CHECKING:
    from ensemble_kd.report.build import ReportInputs, System


def likelihood_difference(inputs: ReportInputs) -> Interval | None:
    """NLL on hard labels less NLL distilled, over paired seeds, in hundredths of a nat: above 0 is better.

    None where values are predicted, or there is no pair of students.
    """
    if not target_in(inputs.info).classified:
        return None
    ours, theirs = (
        {s.seed: _log_likelihood(s, inputs.labels) for s in inputs.students if s.role == role}
        for role in ("distilled", "hard")
    )
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    return combined_interval([ours[s] for s in seeds], [theirs[s] for s in seeds], counts=False)


def in_nats(difference: Interval) -> dict[str, float | str]:
    """As the report keeps it."""
    numbers = {"gain": difference.points, "low": difference.low, "high": difference.high}
    return {**{name: value / 100 for name, value in numbers.items()}, "over": difference.over}


def likelihood_text(difference: Interval) -> str:
    """A sentence for the verdict; empty where the interval holds 0."""
    if difference.outcome == "no difference shown":
        return ""
    low, high = sorted((abs(difference.low) / 100, abs(difference.high) / 100))
    size = f"{abs(difference.points) / 100:.3f} nats (95% interval {low:.3f} to {high:.3f})"
    if difference.outcome == "helped":
        return (
            f" Its probabilities are better: the negative log-likelihood is less by {size}, each calibrated."
        )
    return f" Its probabilities are worse: the negative log-likelihood is more by {size}, each calibrated."


def _log_likelihood(system: System, labels: np.ndarray) -> np.ndarray:
    """(N,) of the true class."""
    found: np.ndarray = log_softmax(system.logits / system.calibration)[np.arange(len(labels)), labels]
    return found
