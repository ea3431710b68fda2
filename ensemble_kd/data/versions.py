"""A numbered version of examples, whatever it is made of: one way for the store and for its readers."""

from __future__ import annotations

from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.augment import view
from ensemble_kd.data.mixing import Pool, mixed_view
from ensemble_kd.data.munge import Neighbourhood, munged_view

Others = Pool | Neighbourhood
"""Rows of the split that a version is made of, beside its own."""


def version(
    inputs: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    views: Tensor | int,
    seed: int,
    config: AugmentConfig,
    *,
    others: Others | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Version `views` of the inputs (B, ...) whose row numbers are `rows` (B,), and their labels (B,).

    `others` is wanted with `mixup` and `munge`.
    """
    if isinstance(others, Pool):
        return mixed_view(inputs, labels, rows, views, seed, config, pool=others)
    if isinstance(others, Neighbourhood):
        return munged_view(inputs, labels, rows, views, seed, config.munge, near=others)
    assert not (config.mixup or config.munge), (
        "the stages ask for others' rows only where these are in memory"
    )
    return view(inputs, rows, views, seed, config), labels
