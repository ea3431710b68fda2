"""What one optimiser trains, one checkpoint saves and one folder holds.

The training loop (`train.loop`) knows epochs, learning rates, checkpoints and early stopping; how a batch
becomes a step is the learner's. `Learner` has one network; those in which several learn together derive from
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ensemble_kd.config import TrainingConfig
from ensemble_kd.models.build import Network
from ensemble_kd.models.weights import max_norm_
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.device import autocast
from ensemble_kd.train.online import Beside

Evaluate = Callable[[Network], dict[str, float]]
Predict = Callable[[Network], dict[str, Tensor]]
"""A network's logits on each split: `validation`, `test`."""


class WithLearned(nn.Module):
    """A network and what its loss trains along, as one module to optimise, to save and to replicate."""

    def __init__(self, network: Network, learned: nn.Module) -> None:
        super().__init__()
        self.network, self.learned = network, learned

    def forward(self, inputs: Tensor, **wants: Any) -> Any:
        return self.network(inputs, **wants)


@dataclass
class Left:
    """What a learner leaves in the member's folder beside the network that is shipped."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors of the file of predictions."""
    files: list[str] = field(default_factory=list)
    """Names of the files that it wrote."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What the manifest says of it."""


class Learner:
    """One network, and what its loss learns along: projections."""

    trained: nn.Module
    """Its parameters are what the optimiser moves, its state is what a checkpoint holds."""

    def __init__(
        self,
        network: Network,
        loss: DistillationLoss,
        *,
        online: Beside | None = None,
        learned: nn.Module | None = None,
    ) -> None:
        self.network, self.loss, self.online = network, loss, online
        self.networks = [network]
        along = learned is not None and bool(list(learned.parameters()))
        self.trained = WithLearned(network, learned) if learned is not None and along else network

    @property
    def kept(self) -> nn.Module:
        """What early stopping keeps the best state of."""
        return self.network

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        training: TrainingConfig,
        number: int,
    ) -> Tensor:
        """The `number`-th optimiser step, counted from 0; returns the batch's loss, detached.

        `model` is `trained`, or what replicates it.
        """
        device = batch.inputs.device
        return train_step(
            model, self.network, optimizer, batch, self.loss, training, device=device, online=self.online
        )

    def judged(self, evaluate: Evaluate) -> dict[str, float]:
        """An entry of the history: what validation rows say."""
        return evaluate(self.network)

    def finished(self, evaluate: Evaluate, predict: Predict, folder: Path) -> tuple[Network, Left]:
        """The network to ship, and what else is left in the member's folder."""
        return self.network, Left()


def train_step(
    model: nn.Module,
    network: Network,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: DistillationLoss,
    training: TrainingConfig,
    *,
    device: torch.device,
    online: Beside | None = None,
) -> Tensor:
    """One optimiser step of one network; returns the batch's loss, detached."""
    parts = training.gradient_accumulation
    wants = getattr(loss, "wants", {})  # a plain function of outputs and batch is a loss as well
    total = torch.zeros((), device=device)
    optimizer.zero_grad(set_to_none=True)
    for i, part in enumerate(_parts(batch, parts)):
        wait = i < parts - 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if wait else nullcontext():  # type: ignore[operator]
            with autocast(device, training.precision):
                outputs = (
                    model(part.inputs, **wants)
                    if part.masked is None
                    else model(part.inputs, masked=part.masked, **wants)
                )
            beside = (online(part),) if online is not None else ()
            value = loss(outputs, part.teacher, part, *beside) / parts
            if online is not None:
                # A gradient of every weight, of the classifier too where no loss reads it: replicas wait for
                # one, and with or without replicas weight decay is to be the same.
                value = value + 0.0 * outputs.logits.sum()
            value.backward()
        total += value.detach()
    update(optimizer, training, [model], [network])
    return total


def update(
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
    models: Sequence[nn.Module],
    networks: Sequence[nn.Module],
) -> None:
    """Move weights along their gradients; those of each of the `models` are clipped together, and `max_norm`
    bounds the `networks`."""
    if training.gradient_clip is not None:
        for model in models:
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
    optimizer.step()
    if training.max_norm is not None:
        for network in networks:
            max_norm_(network, training.max_norm)


def _parts(batch: Batch, parts: int) -> Iterator[Batch]:
    if parts == 1:
        yield batch
        return
    size = len(batch) // parts
    for begin in range(0, size * parts, size):
        yield batch[begin : begin + size]
