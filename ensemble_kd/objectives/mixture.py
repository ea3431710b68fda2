"""The student's whole loss: soft and hard term, weighted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, Objective
from ensemble_kd.objectives.hard import cross_entropy


@dataclass(frozen=True)
class DistillationLoss:
    """1/B * sum_i (alpha * soft_i + (1 - alpha) * hard_i), hard_i = 0 where example i has no label.

    The weighted average of arXiv 1503.02531, section 2. B counts all examples of the batch, so that a
    label weighs the same however many of its neighbours have one. With alpha = 0 the teacher is not
    read, with alpha = 1 the labels are not. A teacher trains with `DistillationLoss()`.
    """

    soft: Objective | None = None
    alpha: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: between 0 and 1, got {self.alpha}")
        if self.alpha > 0 and self.soft is None:
            raise ValueError(f"alpha is {self.alpha}, but there is no soft loss; give one, or alpha=0")

    @property
    def needs(self) -> frozenset[str]:
        """What of the teacher is read: the objective's needs, or nothing with alpha = 0."""
        return self.soft.needs if self.soft is not None and self.alpha > 0 else frozenset()

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The scalar to minimise."""
        if self.soft is None or self.alpha == 0:
            return cross_entropy(student.logits, batch.labels, self.label_smoothing).mean()
        if teacher is None:
            raise ValueError(f"alpha is {self.alpha}, but the batch has no teacher outputs")
        loss = self.alpha * self.soft(student, teacher, batch).mean()
        if self.alpha < 1:
            hard = cross_entropy(student.logits, batch.labels, self.label_smoothing).mean()
            loss = loss + (1 - self.alpha) * hard
        return loss
