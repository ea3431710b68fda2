"""Teachers that run beside the student: frozen, in evaluation mode, without gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.batches import Targets
from ensemble_kd.train.device import autocast

Beside = Callable[[Batch], list[Outputs]]
"""What gives each teacher's outputs for a batch: networks that run, or states that were kept."""


@dataclass
class Online:
    """What the soft targets do not hold, computed batch by batch."""

    networks: Sequence[Network]
    wants: dict[str, bool]
    """Arguments of their forward pass: `hidden`, `attention`."""
    precision: str
    device: torch.device
    targets: Targets | None = None
    """How their logits are averaged, where these are not read from the store either."""
    pieces: list[int] | None = None
    """Of a masked language model the words that the student knows, where that is not all."""

    def __post_init__(self) -> None:
        for network in self.networks:
            network.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Outputs]:
        """Each teacher's outputs for the batch; with `targets` also sets `batch.teacher`."""
        found = []
        for network in self.networks:
            with autocast(self.device, self.precision):
                found.append(network(batch.inputs, masked=batch.masked, **self.wants))
        if self.targets is not None:
            logits = torch.stack([outputs.logits.float() for outputs in found], 1)  # (B, M, C)
            if self.pieces is not None:
                logits = logits[..., self.pieces]
            batch.teacher = Outputs(self.targets.average(logits))
        return found
