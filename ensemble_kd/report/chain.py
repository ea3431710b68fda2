"""What a report says of a chain: its links' roles, the ensemble of its generations, what the chain adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ensemble_kd.config.student import MOST_ASSISTANTS, MOST_GENERATIONS
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.train.statistics import Interval, shown

if TYPE_CHECKING:
    from ensemble_kd.report.build import System

DIRECT, TOGETHER = "direct", "generations"
LINKS = {f"assistant-{i}": f"Assistant {i}" for i in range(1, MOST_ASSISTANTS + 1)}
LINKS |= {f"generation-{k}": f"Student, generation {k}" for k in range(1, MOST_GENERATIONS)}
CHAIN_ROLES = {
    DIRECT: "Student, without assistants",
    **LINKS,
    TOGETHER: "Ensemble of the generations",
}
"""Roles of a chain's members beside the last, which is `distilled`, and how they are called."""


def together(students: Sequence[System], mean: str) -> list[System]:
    """For each seed the ensemble of its generations, the last among them; none without a chain of them.

    `mean` as in `mean_logits`. Parameters, bytes and latency are sums: members run one after another.
    """
    from ensemble_kd.report.build import System

    found = []
    for seed in sorted({s.seed for s in students if s.seed is not None and s.role == "generation-1"}):
        links = [s for s in students if s.seed == seed and _is_generation(s.role)]
        members = torch.from_numpy(np.stack([link.logits for link in links], 1))  # (N, M, C)
        latencies = [link.latency or {} for link in links]
        found.append(
            System(
                f"{TOGETHER}-seed-{seed}",
                TOGETHER,
                seed,
                mean_logits(members, 1.0, mean).numpy(),
                sum(link.parameters or 0 for link in links),
                sum(link.bytes or 0 for link in links),
                {key: sum(each[key] for each in latencies) for key in latencies[0]},
            )
        )
    return found


def _is_generation(role: str) -> bool:
    return role == "distilled" or role.startswith("generation-")


def first_of(roles: Sequence[str]) -> str | None:
    """The role of the student that learned from the ensemble itself; None without a chain."""
    return next((role for role in (DIRECT, "generation-1") if role in roles), None)


def chain_text(difference: Interval, noun: str) -> str:
    """`difference` is the last student less the one that learned from the ensemble itself."""
    told = shown(difference)
    change = f"{abs(difference.points):.2f} points {'more' if difference.points >= 0 else 'less'} {noun}"
    against = "than the student that learned from the ensemble itself"
    if difference.outcome == "no difference shown":
        return f" What the chain adds is not shown: {change} {against} is within the noise {told}."
    return f" The chain {difference.outcome}: {change} {against} {told}."
