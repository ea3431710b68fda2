"""Which rows of the transfer set a member draws its examples from, in memory and in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.labels import labelled
from ensemble_kd.train.blocks import Block, mix, slice_block
from ensemble_kd.train.masking import uniform
from ensemble_kd.train.specialist import Specialty
from ensemble_kd.train.task import MemberTask


def pick_rows(task: MemberTask, labels: Tensor) -> Tensor:
    """(n,) row numbers that the member draws its examples from."""
    rows = labelled(labels).nonzero()[:, 0] if task.rows["labelled"] else torch.arange(len(labels))
    if without := task.rows.get("without"):
        rows = rows[~torch.isin(labels[rows], torch.tensor(without))]
    generator = torch.Generator().manual_seed(mix(task.rows.get("drawn_by", task.seed), 17))
    if task.rows["fraction"] < 1:
        kept = max(1, round(len(rows) * task.rows["fraction"]))
        rows = rows[torch.randperm(len(rows), generator=generator)[:kept]]
    if task.rows["bootstrap"]:
        rows = rows[torch.randint(len(rows), rows.shape, generator=generator)]
    return rows


def filtered(
    task: MemberTask, blocks: Iterator[Block], info: dict[str, Any], epoch: int = 0
) -> Iterator[Block]:
    """The streaming form of `pick_rows`: each row decides by a hash of its number.

    For a specialist, rows of its classes or the others are thinned to `special_fraction`, anew in each epoch.
    """
    specialty = Specialty(**task.specialist) if task.specialist else None
    inside = specialty.inside(info["num_classes"]) if specialty else None
    for block in blocks:
        keep = (
            labelled(block.labels)
            if task.rows["labelled"]
            else torch.ones_like(block.labels, dtype=torch.bool)
        )
        if without := task.rows.get("without"):
            keep &= ~torch.isin(block.labels, torch.tensor(without))
        rows = block.rows.numpy().astype(np.uint64)
        if specialty is not None and inside is not None:
            special = (block.labels >= 0) & inside[block.labels]
            chances = _chances(specialty, task, info)
            drawn = torch.from_numpy(uniform(rows, mix(task.seed, 23, epoch)))
            keep &= drawn < torch.where(special, *chances)
        if task.rows["fraction"] < 1:
            seed = mix(task.rows.get("drawn_by", task.seed), 17)
            keep &= torch.from_numpy(uniform(rows, seed) < task.rows["fraction"])
        picked = keep.nonzero()[:, 0]
        if task.rows["bootstrap"]:  # Poisson(1) copies of a row: the bootstrap for a stream
            drawn_at = uniform(rows, mix(task.seed, 19))
            edges = np.cumsum([np.exp(-1.0) / f for f in (1, 1, 2, 6, 24, 120)])
            copies = torch.from_numpy(np.searchsorted(edges, drawn_at))
            picked = picked.repeat_interleave(copies[picked])
        yield slice_block(block, picked)


def _chances(specialty: Specialty, task: MemberTask, info: dict[str, Any]) -> tuple[float, float]:
    """With what probability a row of its classes, and another, is kept: the rarer of the two always."""
    share = specialty.natural_share
    if not task.rows["labelled"]:  # of all rows it draws from
        share *= info["counts"]["labelled"] / info["counts"]["transfer"]
    wanted = specialty.special_fraction / (1 - specialty.special_fraction)
    odds = share / (1 - share) / wanted
    return (1.0, odds) if odds <= 1 else (1 / odds, 1.0)
