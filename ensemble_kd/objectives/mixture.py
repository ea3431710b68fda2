"""The student's whole loss: soft and hard term, weighted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, Objective, stack, stacks_with
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


class StackedLoss:
    """`DistillationLoss` of n members at once: logits (n, B, C) -> (n,), with each one's alpha and smoothing.

    Objectives that differ in numbers alone, of a class that declares `stacks`, are one call; the others are
    called one after another.
    """

    def __init__(self, losses: Sequence[DistillationLoss], device: torch.device | None = None) -> None:
        groups: dict[Hashable, list[int]] = {}
        for i, loss in enumerate(losses):
            if loss.soft is not None and loss.alpha > 0:
                alike = stacks_with(loss.soft)
                groups.setdefault(i if alike is None else alike, []).append(i)
        self.groups: list[tuple[int | slice | Tensor, Objective]] = []
        for members in groups.values():
            objectives = [soft for i in members if (soft := losses[i].soft) is not None]
            if len(members) == 1:
                self.groups.append((members[0], objectives[0]))
            else:
                every = len(members) == len(losses)
                which = slice(None) if every else torch.tensor(members, device=device)
                self.groups.append((which, stack(objectives, device)))
        # Where the groups' values, one after another, hold each member's; the 0 behind them for hard labels.
        order = [i for members in groups.values() for i in members]
        places = [order.index(i) if i in order else len(order) for i in range(len(losses))]
        self.places = None if order == places else torch.tensor(places, device=device)
        self.alpha = torch.tensor([loss.alpha for loss in losses], device=device)  # (n,)
        smoothing = [[loss.label_smoothing] for loss in losses]  # (n, 1)
        self.label_smoothing = torch.tensor(smoothing, device=device) if any(map(any, smoothing)) else 0.0
        self.reads_labels = any(loss.alpha < 1 for loss in losses)

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """What to minimise, for each member (n,); the gradient of the sum is that of each.

        Logits (n, B, C) on both sides; labels (B,), or (n, B) where the members see different examples, and
        inputs alike.
        """
        values = []
        for which, objective in self.groups:
            if teacher is None:
                raise ValueError("alpha is above 0, but the batch has no teacher outputs")
            z, v = Outputs(student.logits[which]), Outputs(teacher.logits[which])
            seen = batch if batch.labels.dim() == 1 else Batch(batch.inputs[which], batch.labels[which])
            values.append(objective(z, v, seen).mean(-1).view(-1))
        if self.places is None:
            soft = torch.cat(values)
        else:
            soft = torch.cat([*values, student.logits.new_zeros(1, dtype=torch.float32)])[self.places]
        if not self.reads_labels:
            return self.alpha * soft
        hard = cross_entropy(student.logits, batch.labels, self.label_smoothing).mean(1)
        return self.alpha * soft + (1 - self.alpha) * hard
