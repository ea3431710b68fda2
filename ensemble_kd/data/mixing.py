"""Mixup of Zhang et al. (arXiv 1710.09412): an input becomes a weighted mean of itself and another row's.

Which row that is, and the weight, are functions of (seed, row, view), so that the store and the student mix
the same inputs: the teachers answer exactly what the student sees (arXiv 2106.05237).

Shapes: B examples, N rows to draw from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.augment import hash_numbers, uniform, view

STREAM = 0x6D69
"""Added to the seed, so that mixing does not depend on what shifts draw."""


@dataclass(frozen=True)
class Pool:
    """What examples are mixed with."""

    inputs: Tensor
    """(rows of the split, ...)"""
    labels: Tensor | None = None
    """(rows of the split,)"""
    rows: Tensor | None = None
    """(N,) numbers of the rows that are drawn from; None for all."""

    def pick(self, numbers: Tensor) -> Tensor:
        """(B,) Row numbers in the split, from numbers (B,) in [0, 1)."""
        count = len(self.inputs) if self.rows is None else len(self.rows)
        places = (numbers * count).long().clamp_(max=count - 1)
        return places if self.rows is None else self.rows.to(places.device)[places]


def per_row(numbers: Tensor, labels: Tensor) -> Tensor:
    """(B,) numbers of rows as they broadcast over labels (B,) or (B, K)."""
    return numbers.view(-1, *(1,) * (labels.dim() - 1))


def mixed_view(
    inputs: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    views: Tensor | int,
    seed: int,
    config: AugmentConfig,
    *,
    pool: Pool,
) -> tuple[Tensor, Tensor | None]:
    """Version `views` of the inputs (B, ...) whose row numbers are `rows` (B,), mixed; and their labels (B,).

    x = s * x_i + (1 - s) * x_j with s uniform in [0, 1), each in this version; view 0 and the rest of the
    rows, with probability 1 - `mixup`, stay alone. Pixels are rounded. A value is mixed as x is. A class is
    that of i with probability s, else that of j: the hard loss is then on average the paper's, and a label
    stays one number. What is drawn may have no label.
    """
    views = torch.as_tensor(views, dtype=torch.int64, device=inputs.device).expand(len(inputs))
    seen = view(inputs, rows, views, seed, config)
    bits = hash_numbers(rows.to(inputs.device, torch.int64), views, seed + STREAM)
    whether, which, share, label = uniform(bits, 4)
    alone = (whether >= config.mixup) | (views == 0)
    numbers = pool.pick(which)
    share = share.masked_fill(alone, 1.0)
    others = view(pool.inputs[numbers.to(pool.inputs.device)].to(inputs.device), numbers, views, seed, config)
    weight = share.float().view(-1, *[1] * (inputs.dim() - 1))
    mixed = weight * seen.float() + (1 - weight) * others.float()
    if not seen.is_floating_point():
        mixed = mixed.round()
    seen = torch.where(alone.view(weight.shape), seen, mixed.to(seen.dtype))
    if labels is None or pool.labels is None:
        return seen, labels
    other = pool.labels[numbers.to(pool.labels.device)].to(labels.device)
    if labels.is_floating_point():
        share, alone = (per_row(each, labels) for each in (share, alone))
        mean = share.to(labels) * labels + (1 - share).to(labels) * other
        return seen, torch.where(alone, labels, mean)
    return seen, torch.where(label < share, labels, other)
