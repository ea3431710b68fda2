"""What sets a specialist's training apart: where it starts, what it sees, how it is judged. Torch only.

Hinton, Vinyals and Dean, arXiv 1503.02531, sections 5.3 and 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ensemble_kd.ensemble.specialists import (
    active_specialists,
    fit_dustbin_bias,
    sampling_correction,
    specialist_logits_from_generalist,
)
from ensemble_kd.models.build import Network
from ensemble_kd.models.specialist import specialise
from ensemble_kd.objectives.hard import cross_entropy


@dataclass(frozen=True)
class Specialty:
    """What a task says of a specialist, as JSON."""

    classes: list[int]
    """S, ascending."""
    generalist: str
    """Fingerprint of the trained member whose weights it starts from."""
    natural_share: float
    """Share of the labelled rows whose class is in S."""
    output: str = "aggregate"
    """`aggregate`, `row` or `full`; see `models.specialist.specialise`."""
    train_outside: bool = True
    """Whether the inherited rows behind an aggregated dustbin are trained."""
    special_fraction: float = 0.5
    """Share of the examples that come from S."""
    correction: str = "fitted"
    """Of the dustbin for that share: `fitted` on validation rows, the `formula`, or `none`."""
    top_n: int = 1
    """It is asked where one of the generalist's n most probable classes is in S."""

    def outputs(self, num_classes: int) -> Tensor:
        """(C,) int64: the output for each class, |S| for those outside."""
        found = torch.full((num_classes,), len(self.classes))
        found[self.classes] = torch.arange(len(self.classes))
        return found

    def inside(self, num_classes: int) -> Tensor:
        """(C,) bool: is the class in S?"""
        return self.outputs(num_classes) < len(self.classes)

    def logits(self, outputs: Tensor) -> Tensor:
        """(B, |S| + 1) from the network's outputs: of C classes the others are summed up as the dustbin."""
        return specialist_logits_from_generalist(outputs, self.classes) if self.output == "full" else outputs


class Judge:
    """Holds a specialist against the validation rows that concern it.

    Its slice are the rows on which it will be asked, those where the generalist's most probable classes
    touch S; all rows where there is none. Its loss there is the cross-entropy over S and the dustbin after
    the best correction, because the share of S in training is not that of the slice.
    """

    def __init__(self, specialty: Specialty, generalist_logits: Tensor, labels: Tensor) -> None:
        """`generalist_logits` (N, C) and `labels` (N,) of the validation rows."""
        num_classes = generalist_logits.shape[1]
        asked = active_specialists(generalist_logits, [specialty.classes], specialty.top_n)[:, 0]
        if not bool(asked.any()):
            asked = torch.ones_like(asked)
        inside = specialty.inside(num_classes)[labels]
        self.rows = (asked | inside).nonzero()[:, 0]
        """(n,) rows that have to be predicted."""
        self.specialty = specialty
        self.asked, self.inside = asked[self.rows], inside[self.rows]
        self.targets = specialty.outputs(num_classes)[labels[self.rows]]
        self.before = self._conditional(
            specialist_logits_from_generalist(generalist_logits[self.rows], specialty.classes)
        )
        """The generalist's conditional accuracy on S; None where no validation row is of S."""

    def correction(self, logits: Tensor) -> float:
        """What to add to the dustbin of (n, |S| + 1) logits of `rows`, fitted where the slice is."""
        return fit_dustbin_bias(logits, self.targets, self.asked.double())

    def __call__(self, logits: Tensor, corrected: bool = False) -> dict[str, float]:
        """Loss and conditional accuracy of (n, |S| + 1) logits of `rows`."""
        if not corrected:
            logits = logits.clone()
            logits[:, -1] += self.correction(logits)
        losses = cross_entropy(logits[self.asked], self.targets[self.asked])
        found = {"validation_loss": float(losses.mean())}
        accuracy = self._conditional(logits)
        return found if accuracy is None else {**found, "validation_accuracy": accuracy}

    def _conditional(self, logits: Tensor) -> float | None:
        """Accuracy on examples of S, among the classes of S."""
        if not bool(self.inside.any()):
            return None
        right = logits[self.inside, :-1].argmax(1) == self.targets[self.inside]
        return float(right.float().mean())


def start(specialty: Specialty, generalist: Network, generalist_logits: Tensor) -> Network:
    """The specialist before training; `generalist_logits` (N, C) set the level of a `row` dustbin."""
    return specialise(
        generalist,
        specialty.classes,
        specialty.output,
        train_outside=specialty.train_outside,
        logits=generalist_logits,
    )


def correction_for(specialty: Specialty, judge: Judge, logits: Tensor) -> float:
    """The constant to add to the dustbin after training, as the specialty asks; `logits` of `judge.rows`."""
    if specialty.correction == "fitted":
        return judge.correction(logits)
    if specialty.correction == "formula":
        return sampling_correction(specialty.special_fraction, specialty.natural_share)
    return 0.0


def describe(judge: Judge, found: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a specialist beside its loss: conditional accuracy before and after."""
    return {
        "conditional_accuracy_before": judge.before,
        "conditional_accuracy": found.get("validation_accuracy"),
        "conditional_rows": int(judge.inside.sum()),
    }
