"""Losses on the relations between a batch's rows: whether the batch has what they relate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemble_kd.config.training import TrainingConfig
from ensemble_kd.objectives.mixture import Term


def relation_problems(
    path: str, training: TrainingConfig, terms: Sequence[Term], settings: Sequence[dict[str, Any]]
) -> list[str]:
    """What is wrong with the `training` of the block at `path` for its terms, whose `settings` have their
    names."""
    problems = []
    for term, fields in zip(terms, settings, strict=True):
        if not getattr(term.objective, "relates", False):
            continue
        name, parts = fields["name"], training.gradient_accumulation
        least: int = getattr(term.objective, "least_rows", 2)
        if parts > 1:
            problems.append(
                f"{path}.training.gradient_accumulation: {parts}, but {name!r} ({term.path}) relates all "
                "rows of a batch, which that would cut; set it to 1, and lower batch_size to save memory"
            )
        if training.batch_size < least:
            problems.append(
                f"{path}.training.batch_size: {training.batch_size}, but {name!r} ({term.path}) relates "
                f"{least} rows or more; raise it to {least} at least"
            )
    return problems
