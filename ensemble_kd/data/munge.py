"""MUNGE of Bucila, Caruana and Niculescu-Mizil (Model compression, KDD 2006): made-up rows of a table.

Each column of a row takes over, with some probability, a value near that of a similar row. What comes out has
no label: the teachers say what it is, so that a student learns what they think between the rows they know.

Here, unlike in the paper: a version of a row is made of that row and one of its nearest five, drawn anew for
each version, not of the one nearest row in repeated passes over the set; columns of few values, and those
that one column of words became, take the other row's value as it is. Which row that is, and what changes, are
functions of (seed, row, view), so that the store and the student see the same numbers.

Shapes: B examples, N rows of the transfer set, D columns of numbers, G groups of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.augment import hash_numbers, uniform
from ensemble_kd.data.table import TableColumn

NEIGHBOURS = 5
MOST_CANDIDATES = 10_000
"""Rows among which neighbours are looked for, evenly spread over the set: more of them would take longer than
the teachers' answers."""
FEW_VALUES = 10
"""Different values of a column up to which it is taken for a category or a count."""
AT_ONCE = 2**21
"""Random numbers that are drawn at once."""
STREAM = 0x4D55
"""Added to the seed, so that what is made up does not depend on other views."""


@dataclass(frozen=True)
class Neighbourhood:
    """What rows are like which."""

    inputs: Tensor
    """(N, D)"""
    nearest: Tensor
    """(N, K) int64: rows of the set, none the row itself."""
    groups: Tensor
    """(D,) int64: columns that change together."""
    smooth: Tensor
    """(D,) bool: columns whose values have others in between."""


def neighbourhood(inputs: np.ndarray, info: dict[str, Any]) -> Neighbourhood:
    """Of the transfer set's inputs (N, D), N >= 2; `info` as `DataInfo.to_dict`.

    Similar rows have a small distance over columns divided by their standard deviation.
    """
    from sklearn.neighbors import NearestNeighbors

    count, columns = inputs.shape
    # Columns of one value have a deviation of 0.
    scaled = inputs / np.maximum(inputs.std(axis=0, dtype=np.float64), 1e-12).astype(np.float32)
    candidates = np.unique(np.linspace(0, count - 1, min(count, MOST_CANDIDATES)).astype(np.int64))
    wanted = min(NEIGHBOURS, len(candidates) - 1)
    search = NearestNeighbors(n_neighbors=wanted + 1).fit(scaled[candidates])
    found = candidates[search.kneighbors(scaled, return_distance=False)]  # (N, K + 1)
    own = found == np.arange(count)[:, None]
    own[:, -1] |= ~own.any(axis=1)  # where the row itself is not among them, the farthest is one too many
    nearest = found[~own].reshape(count, wanted)
    table = info.get("preprocess", {}).get("table")
    widths = [TableColumn.from_dict(column).width for column in table] if table else [1] * columns
    groups = np.repeat(np.arange(len(widths)), widths)
    alone = np.repeat(np.array(widths) == 1, widths)
    many = [len(np.unique(inputs[candidates, column])) > FEW_VALUES for column in range(columns)]
    return Neighbourhood(
        torch.from_numpy(np.ascontiguousarray(inputs)),
        torch.from_numpy(nearest),
        torch.from_numpy(groups),
        torch.from_numpy(np.array(many) & alone),
    )


def munged_view(
    inputs: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    views: Tensor | int,
    seed: int,
    probability: float,
    *,
    near: Neighbourhood,
) -> tuple[Tensor, Tensor | None]:
    """Version `views` of the inputs (B, D) whose row numbers are `rows` (B,), and their labels (B,).

    With that probability a column takes a number from the normal distribution around the other row's value
    whose deviation is the difference of the two, or where it is not smooth that value. View 0 is the row as
    it is; of every other the label is missing.
    """
    views = torch.as_tensor(views, dtype=torch.int64, device=inputs.device).expand(len(inputs))
    size = max(1, AT_ONCE // (1 + len(near.groups) * 2))
    made = [
        _made_up(inputs[part], rows[part], views[part], seed, probability, near)
        for part in (slice(begin, begin + size) for begin in range(0, len(inputs), size))
    ]
    seen = torch.cat(made) if made else inputs
    if labels is None:
        return seen, None
    missing = float("nan") if labels.is_floating_point() else -1
    kept = (views == 0).view(-1, *[1] * (labels.dim() - 1))
    return seen, torch.where(kept, labels, torch.full_like(labels, missing))


def _made_up(
    inputs: Tensor, rows: Tensor, views: Tensor, seed: int, probability: float, near: Neighbourhood
) -> Tensor:
    bits = hash_numbers(rows.to(inputs.device, torch.int64), views, seed + STREAM)
    columns, groups = len(near.groups), int(near.groups[-1]) + 1
    numbers = uniform(bits, 1 + groups + columns).T  # (B, 1 + G + D)
    which, whether, noise = numbers.split([1, groups, columns], dim=1)
    count = near.nearest.shape[1]
    places = (which[:, 0] * count).long().clamp_(max=count - 1)
    numbers_of = near.nearest[rows.cpu(), places.cpu()]
    others = near.inputs[numbers_of.to(near.inputs.device)].to(inputs)
    normal = torch.special.ndtri(noise.clamp(2**-54, 1 - 2**-53)).to(inputs)
    normal = normal * near.smooth.to(inputs.device)
    taken = whether[:, near.groups.to(inputs.device)] < probability
    taken &= (views != 0)[:, None]
    return torch.where(taken, others + normal * (inputs - others).abs(), inputs)
