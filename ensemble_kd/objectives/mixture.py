"""A student's whole loss: soft and hard term, weighted, and further terms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, Objective, build_objective, stack, stacks_with
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.schedules import Schedule, parse_weight


@dataclass(frozen=True)
class Term:
    """One further loss and its weight over the course of the training."""

    objective: Objective
    weight: Schedule
    path: str = "student.terms"
    """Field that it was read from, for messages."""


def build_terms(settings: Sequence[dict[str, Any]], temperature: float, path: str) -> tuple[Term, ...]:
    """The terms that `student.terms` asks for. Raises ConfigError with every problem."""
    terms, problems = [], []
    for i, fields in enumerate(settings):
        where, own = f"{path}.{i}", dict(fields)
        weight = None
        try:
            weight = parse_weight(own.pop("weight", 1.0), f"{where}.weight")
        except ConfigError as error:
            problems += error.problems
        try:
            objective = build_objective(own, temperature, where)
            if weight is not None:
                terms.append(Term(objective, weight, where))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(terms)


@dataclass(frozen=True)
class DistillationLoss:
    """1/B * sum_i (alpha * soft_i + (1 - alpha) * hard_i + pseudo * guess_i + sum_k w_k term_ki).

    hard_i is the loss on the label, 0 without one; guess_i the same loss on the ensemble's most probable
    class, 0 with a label. So alpha = 1 alone is distillation, and alpha = 0, pseudo = 1 is training on labels
    where there are any and on pseudo-labels elsewhere (Lee 2013, "Pseudo-Label").

    The weighted average of arXiv 1503.02531, section 2. B counts all examples of the batch, so that a
    label weighs the same however many of its neighbours have one. With alpha = 0 the soft targets are not
    read, with alpha = 1 the labels are not; without a soft loss alpha = 1 leaves the terms alone. A teacher
    trains with `DistillationLoss()`. Of values, outputs and labels are divided by `unit` before any loss
    reads them.

    `soft` reads the averaged teacher; each term is averaged over the teachers that run beside the student.
    Where the batch has weights, soft_i, hard_i and guess_i are multiplied by that of their example.
    """

    soft: Objective | None = None
    alpha: float = 0.0
    label_smoothing: float = 0.0
    terms: tuple[Term, ...] = ()
    shares: tuple[float, ...] = (1.0,)
    """Weights of the teachers beside the student, which sum to 1."""
    learned: list[list[nn.Module | None]] = field(default_factory=list)
    """Per teacher and term what is trained along; filled by `prepare`."""
    hard: Callable[..., Tensor] = cross_entropy
    """The loss on labels: `cross_entropy` or `squared_error`."""
    unit: float | Sequence[float] | None = None
    """Standard deviation of the labels where these are values, of several columns that of each; None for
    classes."""
    pseudo: float = 0.0
    schedule: Schedule | None = None
    """How alpha goes over the course of the training; `alpha` is then the largest it has."""

    def __post_init__(self) -> None:
        if not 0 <= self.pseudo <= 1:
            raise ValueError(f"pseudo: between 0 and 1, got {self.pseudo}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: between 0 and 1, got {self.alpha}")
        if self.alpha > 0 and self.soft is None and not self.terms:
            raise ValueError(f"alpha is {self.alpha}, but there is no soft loss; give one, or alpha=0")

    def alpha_at(self, progress: float) -> float:
        """Weight of the soft loss when `progress` (0 to 1) of the training is done."""
        return self.alpha if self.schedule is None else self.schedule.at(progress)

    @property
    def reads_labels(self) -> bool:
        """Whether labels count at any time."""
        return self.alpha < 1 if self.schedule is None else min(self.schedule.start, self.schedule.end) < 1

    @property
    def needs(self) -> frozenset[str]:
        """What of the teacher is read: the objectives' needs, or nothing with alpha = 0 and no terms."""
        own = self.soft.needs if self.soft is not None and self.alpha > 0 else frozenset()
        return own.union(*(term.objective.needs for term in self.terms))

    @property
    def wants(self) -> dict[str, bool]:
        """What a network is asked for beside logits, as arguments of its forward pass."""
        read = frozenset[str]().union(*(term.objective.needs for term in self.terms))
        return {what: True for what in ("hidden", "attention") if what in read}

    def prepare(self, student: Outputs, teachers: Sequence[Outputs]) -> nn.ModuleList:
        """Hold both sides' shapes against each other; returns what is trained along, projections.

        Raises ConfigError with every term that does not fit.
        """
        problems: list[str] = []
        self.learned.clear()
        for teacher in teachers:
            found: list[nn.Module | None] = []
            for term in self.terms:
                prepare = getattr(term.objective, "prepare", None)
                try:
                    found.append(prepare(student, teacher) if prepare is not None else None)
                except ConfigError as error:
                    problems += [f"{term.path}.{line}" for line in error.problems]
            self.learned.append(found)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return nn.ModuleList(module for found in self.learned for module in found if module is not None)

    def __call__(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, beside: Sequence[Outputs] = ()
    ) -> Tensor:
        """The scalar to minimise. `beside` are the outputs of the teachers that run beside the student."""
        total: Tensor | None = None
        if self.unit is not None:
            student, teacher, batch = in_units(self.unit, student, teacher, batch)
            beside = [replace(outputs, logits=divided(outputs.logits, self.unit)) for outputs in beside]
        alpha = self.alpha_at(batch.progress)
        if self.soft is not None and alpha > 0:
            if teacher is None:
                raise ValueError(f"alpha is {alpha}, but the batch has no teacher outputs")
            soft = at_temperature(self.soft, batch.temperature)
            total = alpha * weighted(soft(student, teacher, batch), batch.weights).mean()
        if self.pseudo > 0:
            own = on_labels(self, student.logits, batch, 1 - alpha, self.pseudo)
            hard = weighted(own, batch.weights).mean()
            total = hard if total is None else total + hard
        elif alpha < 1:
            losses = self.hard(student.logits, batch.labels, self.label_smoothing)
            hard = weighted(losses, batch.weights).mean()
            total = hard * (1 - alpha) if total is None else total + (1 - alpha) * hard
        for k, term in enumerate(self.terms):
            weight = term.weight.at(batch.progress)
            if weight == 0 and not any(found[k] for found in self.learned):
                continue  # what is learned along needs a gradient in every step, if one of 0
            if not beside:
                raise ValueError("a term reads a teacher beside the student, and there is none")
            for share, outputs, learned in zip(self.shares, beside, self.learned, strict=True):
                extra = () if learned[k] is None else (learned[k],)
                objective = at_temperature(term.objective, batch.temperature)
                value = objective(student, outputs, batch, *extra).mean() * (weight * share)
                total = value if total is None else total + value
        if total is None:  # every weight is 0 for now
            return student.logits.sum() * 0.0
        return total


def at_temperature(objective: Objective, temperature: float | None) -> Objective:
    """The objective at a batch's temperature; itself where either has none."""
    if temperature is None or "temperature" not in getattr(objective, "__dataclass_fields__", ()):
        return objective
    changed: Any = objective
    return cast(Objective, replace(changed, temperature=temperature))


def weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (..., B) times the weights (..., B) of their examples."""
    return losses if weights is None else losses * weights


def on_labels(
    loss: DistillationLoss | StackedLoss,
    logits: Tensor,
    batch: Batch,
    own: float | Tensor,
    pseudo: float | Tensor,
) -> Tensor:
    """(B,) hard losses times `own` on rows with a label, times `pseudo` on those with a guess.

    Stacked: logits (n, B, C), labels and guesses (B,) or (n, B), weights (n, 1) -> (n, B).
    """
    if batch.guesses is None:
        raise ValueError("pseudo is above 0, but the batch has no guesses of the ensemble's")
    guessed = batch.guesses >= 0
    values = loss.hard(logits, torch.where(guessed, batch.guesses, batch.labels), loss.label_smoothing)
    return values * torch.where(guessed, pseudo, own)


def in_units(
    unit: float | Sequence[float], student: Outputs, teacher: Outputs | None, batch: Batch
) -> tuple[Outputs, Outputs | None, Batch]:
    """Values and labels divided by `unit`: a loss of 1 is that of the labels' mean, whatever they measure."""
    if teacher is not None:
        teacher = replace(teacher, logits=divided(teacher.logits, unit))
    student = replace(student, logits=divided(student.logits, unit))
    return student, teacher, replace(batch, labels=divided(batch.labels, unit))


def divided(values: Tensor, unit: float | Sequence[float]) -> Tensor:
    """Values (..., K), or labels of one column (...,), by the unit of each column."""
    if isinstance(unit, int | float):
        return values / unit
    return values / torch.tensor(unit, dtype=torch.float32, device=values.device)


def labels_of_each(batch: Batch, logits: Tensor) -> bool:
    """Whether each member of a stack, logits (n, B, C), has labels of its own: (n, B) rather than (B,), and
    (n, B, K) rather than (B, K) of several values."""
    several = batch.labels.is_floating_point() and logits.shape[-1] > 1
    return batch.labels.dim() > (2 if several else 1)


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
        self.reads_labels = any(loss.reads_labels for loss in losses)
        self.scheduled = list(losses) if any(loss.schedule is not None for loss in losses) else []
        self.pseudo = torch.tensor([[loss.pseudo] for loss in losses], device=device)  # (n, 1)
        self.reads_guesses = any(loss.pseudo > 0 for loss in losses)
        self.hard, self.unit = losses[0].hard, losses[0].unit  # of the data, so the same for all

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """What to minimise, for each member (n,); the gradient of the sum is that of each.

        Logits (n, B, C) on both sides; labels (B,), or (n, B) where the members see different examples, and
        inputs alike; of several values with an axis (..., K) behind.
        """
        if self.unit is not None:
            student, teacher, batch = in_units(self.unit, student, teacher, batch)
        alpha, values = self.alpha_at(batch.progress), []
        for which, objective in self.groups:
            if teacher is None:
                raise ValueError("alpha is above 0, but the batch has no teacher outputs")
            z, v = Outputs(student.logits[which]), Outputs(teacher.logits[which])
            seen, weights = batch, batch.weights
            if labels_of_each(batch, student.logits):
                seen = Batch(batch.inputs[which], batch.labels[which])
                weights = None if weights is None else weights[which]
            values.append(weighted(objective(z, v, seen), weights).mean(-1).view(-1))
        if self.places is None:
            soft = torch.cat(values)
        else:
            soft = torch.cat([*values, student.logits.new_zeros(1, dtype=torch.float32)])[self.places]
        if self.reads_guesses:
            own = 1 - alpha[:, None]
            losses = on_labels(self, student.logits, batch, own, self.pseudo)
            return alpha * soft + weighted(losses, batch.weights).mean(1)
        if not self.reads_labels:
            return alpha * soft
        losses = self.hard(student.logits, batch.labels, self.label_smoothing)
        hard = weighted(losses, batch.weights).mean(1)
        return alpha * soft + (1 - alpha) * hard

    def alpha_at(self, progress: float) -> Tensor:
        """(n,), each member's."""
        if not self.scheduled:
            return self.alpha
        return torch.tensor([loss.alpha_at(progress) for loss in self.scheduled], device=self.alpha.device)
