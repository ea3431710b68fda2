"""Batches for the training loop, from tensors in memory or from a stream of shards.

Both sources yield *blocks*: a few thousand examples gathered at once, augmented at once and given their
soft targets at once; a batch is a slice of a block. That costs a Python call per block where indexing
each batch by itself would cost one per batch, which is what a small student would spend its time on.

Every random choice is a function of (seed, epoch, row), never of a running generator: a resumed run,
another number of replicas or another machine sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.versions import Others, version
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.masking import Masking

BLOCK_EXAMPLES = 8192
"""Examples gathered at once; large enough to hide Python, small enough to stay in the cache."""

RESTORED_BYTES = 8 * 2**20
"""Member logits of a block that are restored and averaged at once."""

VIEW_SEED = 0
"""Seed of the stored views: the stage that fills the store and the student must see the same ones."""


@dataclass
class Block:
    """Examples on their way to batches."""

    rows: Tensor
    """(B,) int64: row number in the split; seeds augmentation."""
    inputs: Tensor
    """(B, ...) raw inputs."""
    labels: Tensor
    """(B,) int64, -1 where unlabelled; or float32 values, NaN where unlabelled."""
    member_logits: Deferred | None = None
    """(B, M, C) the members' logits, for the view that `views` names."""
    views: Tensor | None = None
    """(B,) int64: which stored view of the example this is."""


class MemberLogits(Protocol):
    """Teacher outputs in memory, picked by row and view."""

    num_views: int

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        """(B, M, C) logits of the members."""
        ...


class Deferred(Protocol):
    """The members' logits of a block: a replica restores those of its own share alone.

    As they are stored they may be a fiftieth of the size.
    """

    def __getitem__(self, part: slice | Tensor) -> Self:
        """Those of some of the rows."""
        ...

    def join(self, other: Self) -> Self:
        """Followed by those of another block of the same source."""
        ...

    def logits(self) -> Tensor:
        """(B, M, C)"""
        ...


@dataclass
class Picked:
    """Rows (B,) and views (B,) of what is in memory."""

    teacher: MemberLogits
    rows: Tensor
    views: Tensor

    def __getitem__(self, part: slice | Tensor) -> Picked:
        return Picked(self.teacher, self.rows[part], self.views[part])

    def join(self, other: Picked) -> Picked:
        rows, views = (torch.cat(pair) for pair in ((self.rows, other.rows), (self.views, other.views)))
        return Picked(self.teacher, rows, views)

    def logits(self) -> Tensor:
        return self.teacher.pick(self.rows, self.views)


class Source(Protocol):
    """Where blocks come from."""

    def blocks(self, epoch: int, num_examples: int) -> Iterator[Block]:
        """Blocks with `num_examples` examples in all, in an order that depends on the epoch alone."""
        ...


def mix(*numbers: int) -> int:
    """A 31-bit seed from several numbers (splitmix64 steps), the same on every machine."""
    state = 0
    for number in numbers:
        state = (state + (number & 0xFFFFFFFF) + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & 0x7FFFFFFF


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory. Arrays from Ray's object store are read-only, as we treat them."""
    if not array.flags.writeable:
        array = array.view()
        # torch warns that writing would be undefined; nothing here writes to its sources.
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(array)
    return torch.from_numpy(array)


class TensorSource:
    """Rows held in memory and picked by index, without a copy of the whole."""

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        rows: Tensor,
        seed: int,
        teacher: MemberLogits | None = None,
        num_views: int = 1,
        special: Tensor | None = None,
        special_fraction: float = 0.5,
    ) -> None:
        """`rows` (N,) are the rows to draw from; a row may stand in it several times.

        With `special` (M,), a specialist's own rows, that share of the examples comes from them.
        """
        self.inputs, self.labels, self.rows, self.seed = inputs, labels, rows, seed
        self.teacher, self.num_views = teacher, num_views
        self.special, self.special_fraction = special, special_fraction

    def blocks(self, epoch: int, num_examples: int) -> Iterator[Block]:
        for begin, rows in self._order(epoch, num_examples):
            block = Block(rows, self.inputs[rows], self.labels[rows])
            if self.num_views > 1:
                generator = torch.Generator().manual_seed(mix(self.seed, epoch, begin, 1))
                block.views = torch.randint(self.num_views, rows.shape, generator=generator).to(rows.device)
            if self.teacher is not None:
                views = block.views if block.views is not None else torch.zeros_like(rows)
                block.member_logits = Picked(self.teacher, rows, views)
            yield block

    def _order(self, epoch: int, num_examples: int) -> Iterator[tuple[int, Tensor]]:
        """Row numbers, some thousand at a time."""
        if self.special is None:
            order = self._draw(self.rows, num_examples, epoch)
        else:
            inside = round(num_examples * self.special_fraction)
            parts = [
                self._draw(self.special, inside, epoch, 5),
                self._draw(self.rows, num_examples - inside, epoch),
            ]
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, 7, 7))
            order = torch.cat(parts)[torch.randperm(num_examples, generator=generator)]
        for begin in range(0, num_examples, BLOCK_EXAMPLES):
            yield begin, order[begin : begin + BLOCK_EXAMPLES]

    def _draw(self, rows: Tensor, num_examples: int, epoch: int, *stream: int) -> Tensor:
        """One permutation of `rows` after another until there are enough."""
        if not len(rows):
            raise ValueError("there are no rows to train on")
        permutations, missing, turn = [], num_examples, 0
        while missing > 0:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, turn, *stream))
            permutations.append(torch.randperm(len(rows), generator=generator)[:missing])
            missing -= len(permutations[-1])
            turn += 1
        return rows[torch.cat(permutations).to(rows.device)]


class StreamSource:
    """Shards that arrive one after another and are never all in memory.

    `open_epoch(epoch)` yields blocks of whole shards, each shard in an order of its own; what is left of
    one shard after its last full batch opens the next.
    """

    def __init__(self, open_epoch: Callable[[int], Iterator[Block]]) -> None:
        self.open_epoch = open_epoch

    def blocks(self, epoch: int, num_examples: int) -> Iterator[Block]:
        turn = 0
        while num_examples > 0:
            before = num_examples
            for block in self.open_epoch(mix(epoch, turn) if turn else epoch):
                if len(block.rows) > num_examples:
                    block = slice_block(block, slice(0, num_examples))
                num_examples -= len(block.rows)
                if len(block.rows):
                    yield block
                if num_examples <= 0:
                    return
            if num_examples == before:
                raise ValueError("the stream of shards holds no rows to train on")
            turn += 1


def slice_block(block: Block, part: slice | Tensor) -> Block:
    return Block(
        block.rows[part],
        block.inputs[part],
        block.labels[part],
        None if block.member_logits is None else block.member_logits[part],
        None if block.views is None else block.views[part],
    )


def join_blocks(first: Block, second: Block) -> Block:
    inputs = pad_alike(first.inputs, second.inputs)
    logits, views = (first.member_logits, second.member_logits), (first.views, second.views)
    return Block(
        torch.cat([first.rows, second.rows]),
        torch.cat(inputs),
        torch.cat([first.labels, second.labels]),
        None if logits[0] is None or logits[1] is None else logits[0].join(logits[1]),
        None if views[0] is None or views[1] is None else torch.cat([views[0], views[1]]),
    )


def length_order(inputs: Tensor, batch_size: int, seed: int) -> Tensor:
    """(n,) order of texts (n, L), n a multiple of the batch's size: each batch of about one length.

    The batches come in random order; texts of one length keep theirs, which is random already.
    """
    lengths = (inputs != 0).sum(1)
    order = torch.argsort(lengths, stable=True).view(-1, batch_size)
    generator = torch.Generator().manual_seed(seed)
    return order[torch.randperm(len(order), generator=generator).to(order.device)].reshape(-1)


def pad_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Token matrices (B, L) of two shards brought to one length with padding (0)."""
    if first.dim() != 2 or first.shape[1] == second.shape[1]:
        return first, second
    length = max(first.shape[1], second.shape[1])
    return tuple(torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in (first, second))  # type: ignore[return-value]


@dataclass
class Targets:
    """What the loss wants of the members, at which temperature, averaged how."""

    temperature: float = 1.0
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

    def average(self, member_logits: Tensor) -> Tensor:
        """The teacher's logits (B, C) from its members' (B, M, C)."""
        return mean_logits(member_logits, self.temperature, self.mean, self.weights, self.calibration)

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
            guesses, teacher = self._targets(block.member_logits, len(rows))
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

    def _targets(self, stored: Deferred, rows: int) -> tuple[Tensor | None, Tensor | None]:
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
                teachers.append(self.targets.average(members))
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
            yield Batch(batch_inputs, labels[part], soft, rows=rows[part], guesses=guessed, weights=weights)


def cat(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat`, which would copy a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _certain(teacher: Tensor, labels: Tensor, certain: Tensor) -> Tensor:
    """Logits (B, C) with all mass on the label where it is one of `certain` (C,)."""
    known = (labels >= 0) & certain[labels.clamp(min=0)]
    one_hot = torch.full_like(teacher, -1e4).scatter_(1, labels.clamp(min=0)[:, None], 0.0)
    return torch.where(known[:, None], one_hot, teacher)
