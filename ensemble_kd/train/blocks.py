"""Blocks of examples: a few thousand rows gathered at once, from memory or from a stream of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

BLOCK_EXAMPLES = 8192
"""Examples gathered at once; large enough to hide Python, small enough to stay in the cache."""


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
        *,
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


def pad_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Token matrices (B, L) of two shards brought to one length with padding (0)."""
    if first.dim() != 2 or first.shape[1] == second.shape[1]:
        return first, second
    length = max(first.shape[1], second.shape[1])
    return tuple(torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in (first, second))  # type: ignore[return-value]


def cat(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat`, which would copy a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
