"""Epochs from rows, so that a tenth of the labels does not mean a tenth of the training.

For recipes that give epochs as a number; what says `auto` is left to the training loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensemble_kd.guess.counts import Rows


@dataclass(frozen=True)
class Aim:
    """How long to train: so many optimiser steps, within bounds of epochs."""

    steps: int
    least: int
    """Epochs."""
    most: int
    fine_tuned: bool = False
    """Of pretrained weights: a few epochs are enough, within `steps` and five times as many."""


AIMS = {
    "text": (Aim(500, 1, 60, fine_tuned=True), Aim(6000, 5, 200)),
    "text-offline": (Aim(2500, 3, 100), Aim(5000, 4, 200)),
    "image": (Aim(4000, 6, 100), Aim(6000, 8, 200)),
    "numeric": (Aim(5000, 5, 300), Aim(8000, 8, 400)),
}
"""Of teachers and student, by recipe: what served on the shared data sets (docs/results.md)."""
FEW_EPOCHS = 4
MOST_FACTOR = 5


def epochs(aim: Aim, rows: int, batch_size: int) -> int:
    a_pass = max(1, rows // batch_size)
    steps = aim.steps
    if aim.fine_tuned:
        steps = max(aim.steps, min(FEW_EPOCHS * a_pass, MOST_FACTOR * aim.steps))
    return int(min(max(round(steps / a_pass), aim.least), aim.most))


def epochs_of(raw: dict[str, Any], rows: Rows) -> tuple[int, int]:
    """Epochs of teachers and of students with these settings on so many rows."""
    return raw["teachers"]["training"]["epochs"], raw["student"]["training"]["epochs"]


def batch_of(wanted: int, rows: int) -> int:
    """The recipe's batch size, or a power of 2 that leaves eight steps an epoch."""
    size = wanted
    while size > 4 and size * 8 > rows:
        size //= 2
    return max(1, min(size, rows))
