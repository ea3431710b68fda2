"""Batches for the training loop, from tensors in memory or from a stream of shards.

Both sources yield *blocks*: a few thousand examples gathered at once, augmented at once and given their
soft targets at once; a batch is a slice of a block. That costs a Python call per block where indexing
each batch by itself would cost one per batch, which is what a small student would spend its time on.

Every random choice is a function of (seed, epoch, row), never of a running generator: a resumed run,
another number of replicas or another machine sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.versions import Others, version
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.schedules import Schedule
from ensemble_kd.train.blocks import Block, Deferred, Source, cat, join_blocks, mix, slice_block
from ensemble_kd.train.masking import Masking

RESTORED_BYTES = 8 * 2**20
"""Member logits of a block that are restored and averaged at once."""
VIEW_SEED = 0
"""Seed of the stored views: the stage that fills the store and the student must see the same ones."""


def length_order(inputs: Tensor, batch_size: int, seed: int) -> Tensor:
    """(n,) order of texts (n, L), n a multiple of the batch's size: each batch of about one length.

    The batches come in random order; texts of one length keep theirs, which is random already.
    """
    lengths = (inputs != 0).sum(1)
    order = torch.argsort(lengths, stable=True).view(-1, batch_size)
    generator = torch.Generator().manual_seed(seed)
    return order[torch.randperm(len(order), generator=generator).to(order.device)].reshape(-1)


@dataclass
class Targets:
    """What the loss wants of the members, at which temperature, averaged how."""

    temperature: float = 1.0
    """That of all epochs, unless there is a schedule."""
    mean: str = "arithmetic"
    weights: list[float] | None = None
    guesses: bool = False
    """Whether the loss reads the ensemble's most probable class where a label is missing."""
    soft: bool = False
    """Whether the loss reads the teacher at all."""
    specialist_outputs: Tensor | None = None
    """(C,) int64: the output of a specialist that stands for each class, its last one for all outside."""
    calibration: list[float] | None = None
    """Temperature of each member's own; None for logits as they are."""
    certain: Tensor | None = None
    """(C,) bool: classes whose labelled examples have the label, for certain, as their soft target."""
    schedule: Schedule | None = None
    """How the temperature goes from the first of the `epochs` to the last."""
    epochs: int = 1

    def temperature_in(self, epoch: int) -> float:
        """Of an epoch, counted from 0: the schedule's start in the first, its end in the last."""
        return (
            self.temperature if self.schedule is None else self.schedule.at(epoch / max(1, self.epochs - 1))
        )

    def average(self, member_logits: Tensor, epoch: int = 0) -> Tensor:
        """The teacher's logits (B, C) from its members' (B, M, C)."""
        temperature = self.temperature_in(epoch)
        return mean_logits(member_logits, temperature, self.mean, self.weights, self.calibration)

    def guess(self, member_logits: Tensor) -> Tensor:
        """The teacher's most probable class (B,)."""
        return mean_logits(member_logits, 1.0, self.mean, self.weights, self.calibration).argmax(1)


@dataclass
class Batches:
    """Cuts a source's blocks into the batches of one replica."""

    source: Source
    batch_size: int
    steps_per_epoch: int
    targets: Targets
    augment: AugmentConfig
    fresh_views: bool = False
    """Augment anew in every epoch (teachers), rather than by the block's stored views (students)."""
    seed: int = 0
    rank: int = 0
    replicas: int = 1
    device: torch.device = torch.device("cpu")
    trim_padding: bool = False
    """Cut token matrices to the longest text of the batch."""
    at_once: int | None = None
    """Batches of a block that are augmented and given their targets at once; None for all."""
    by_length: bool = False
    """Put texts of about the same length into a batch, so that little of it is padding."""
    others: Others | None = None
    """What examples are mixed with or made up from, where `augment` says so."""
    masking: Masking | None = None
    """Masks words to be guessed; for masked language models."""
    weights: Tensor | None = None
    """(N,) float32: how much each row of the split counts; None for 1 each."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of this replica: its share of each global batch."""
        left: Block | None = None
        for block in self.source.blocks(epoch, self.steps_per_epoch * self.batch_size):
            block = block if left is None else join_blocks(left, block)
            whole = len(block.rows) - len(block.rows) % self.batch_size
            left = slice_block(block, slice(whole, None)) if whole < len(block.rows) else None
            if self.by_length and whole:
                seed = mix(self.seed, epoch, int(block.rows[0]), 31)
                block = slice_block(block, length_order(block.inputs[:whole], self.batch_size, seed))
            size = whole if self.at_once is None else self.at_once * self.batch_size
            for begin in range(0, whole, size or 1):
                part = slice(begin, min(begin + size, whole))
                finished = self._finish(slice_block(block, part), epoch)
                yield from self._cut(finished, block.rows[part], epoch)

    def _own(self, rows: Tensor) -> Tensor:
        """(B,) bool: the examples of this replica."""
        steps = torch.arange(len(rows), device=rows.device)
        share = self.batch_size // self.replicas
        return (steps % self.batch_size) // share == self.rank

    def _finish(self, block: Block, epoch: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if self.replicas > 1:  # (steps, replicas, share): keep this replica's share before any work
            block = slice_block(block, self._own(block.rows))
        inputs = block.inputs.to(self.device, non_blocking=True)
        rows = block.rows.to(self.device, non_blocking=True)
        labels = block.labels.to(self.device, non_blocking=True)
        if self.augment.active and (self.fresh_views or block.views is not None):
            views, seed = self._views(block, epoch)
            augment, others = self.augment, self.others
            inputs, changed = version(inputs, labels, rows, views, seed, augment, others=others)
            labels = labels if changed is None else changed
        teacher, guesses = None, None
        if block.member_logits is not None:
            guesses, teacher = self._targets(block.member_logits, len(rows), epoch)
            if guesses is not None:
                guesses = guesses.masked_fill(labels >= 0, -1)
            if teacher is not None and self.targets.certain is not None:
                teacher = _certain(teacher, labels, self.targets.certain.to(self.device))
        if self.targets.specialist_outputs is not None:
            outputs = self.targets.specialist_outputs.to(self.device)
            labels = torch.where(labels >= 0, outputs[labels.clamp(min=0)], labels)
        return inputs, labels, teacher, guesses

    def _views(self, block: Block, epoch: int) -> tuple[Tensor | int, int]:
        """Which versions of a block are wanted, and their seed."""
        if self.fresh_views:
            return 1 + epoch, self.seed
        assert block.views is not None
        return block.views.to(self.device), VIEW_SEED

    def _targets(self, stored: Deferred, rows: int, epoch: int) -> tuple[Tensor | None, Tensor | None]:
        """The ensemble's most probable class (B,) and the teacher's logits (..., B, C), if asked for.

        Members are restored a part at a time: those of a block may be gigabytes, and larger than every cache.
        """
        guesses, teachers = [], []
        a_row = stored[:1].logits()
        size = max(1, RESTORED_BYTES // (a_row.numel() * a_row.element_size()))
        for begin in range(0, rows, size):
            members = stored[begin : begin + size].logits().to(self.device, non_blocking=True)
            if self.targets.guesses:
                guesses.append(self.targets.guess(members))
            if self.targets.soft:
                teachers.append(self.targets.average(members, epoch))
        return cat(guesses, 0) if guesses else None, cat(teachers, -2) if teachers else None

    def _cut(
        self, parts: tuple[Tensor, Tensor, Tensor | None, Tensor | None], rows: Tensor, epoch: int
    ) -> Iterator[Batch]:
        inputs, labels, teacher, guesses = parts
        if self.replicas > 1:
            rows = rows[self._own(rows)]
        known = None if self.weights is None else self.weights[rows.cpu()].to(self.device)
        share = self.batch_size // self.replicas
        for begin in range(0, len(labels), share):
            part = slice(begin, begin + share)
            batch_inputs = inputs[part]
            if self.trim_padding:
                longest = max(1, int((batch_inputs != 0).any(0).nonzero()[-1:].sum()) + 1)
                batch_inputs = batch_inputs[:, :longest]
            if self.masking is not None:
                yield self.masking(batch_inputs, rows[part].to(self.device), epoch)
                continue
            soft = None if teacher is None else Outputs(teacher[..., part, :])
            guessed = None if guesses is None else guesses[part]
            weights = None if known is None else known[part]
            batch = Batch(batch_inputs, labels[part], soft, rows=rows[part], guesses=guessed, weights=weights)
            if self.targets.schedule is not None:
                batch.temperature = self.targets.temperature_in(epoch)
            yield batch


def _certain(teacher: Tensor, labels: Tensor, certain: Tensor) -> Tensor:
    """Logits (B, C) with all mass on the label where it is one of `certain` (C,)."""
    known = (labels >= 0) & certain[labels.clamp(min=0)]
    one_hot = torch.full_like(teacher, -1e4).scatter_(1, labels.clamp(min=0)[:, None], 0.0)
    return torch.where(known[:, None], one_hot, teacher)
