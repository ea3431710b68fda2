"""Networks that learn together, each from the others' predictions: mutual learning and codistillation.

Peers see the same batches in the same order, start from weights of their own, and have one optimiser and one
checkpoint. Each one's loss is the student's (labels, stored soft targets) and a term that reads its peers.
What a peer predicts is a constant in the others' losses, so that every loss moves its own network alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensemble_kd.config import TrainingConfig
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.weights import save_weights
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, Term
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.train.device import autocast
from ensemble_kd.train.learner import Evaluate, Learner, Left, Predict, update
from ensemble_kd.train.validation import preference

PEERS = "peers.safetensors"
"""In a member's folder: the weights of all networks that learned together, the shipped one among them."""
PATH = "student.peers"


def mutual_term(settings: dict[str, Any]) -> Term:
    """The term between a network and its peers, from the fields of `student.peers`. Raises ConfigError."""
    given = settings["objective"]
    fields = {"name": given} if isinstance(given, str) else dict(given)
    if "temperature" in fields:
        raise ConfigError(f"{PATH}.objective.temperature: set {PATH}.temperature instead")
    objective = build_objective(fields, settings["temperature"], f"{PATH}.objective")
    if missing := sorted(objective.needs - {"logits"}):
        raise ConfigError(
            f"{PATH}.objective: {fields['name']!r} reads {', '.join(missing)}, and peers see each other's "
            "logits; use kl, or another loss on logits"
        )
    if hasattr(objective, "prepare"):
        raise ConfigError(
            f"{PATH}.objective: {fields['name']!r} learns a projection along; use kl, or another"
        )
    return Term(objective, parse_weight(settings["weight"], f"{PATH}.weight"), PATH)


def with_peers(loss: DistillationLoss, term: Term, count: int) -> DistillationLoss:
    """The loss of each of `count` networks: `loss`, and the mean of `term` over the other networks.

    L_k = L(k) + w / (K - 1) sum_{l != k} T^2 KL(p_l || p_k) with `kl`: arXiv 1706.00384, where L(k) is the
    cross-entropy with the labels, w = 1 and T = 1.
    """
    others = count - 1
    if not others:
        return loss
    return replace(loss, terms=(term,), shares=(1 / others,) * others, learned=[[None]] * others)


class Together(nn.Module):
    """The networks, and copies of them where they learn from copies."""

    def __init__(self, networks: Sequence[Network], stale: bool) -> None:
        super().__init__()
        self.peers = nn.ModuleList(networks)
        self.stale = nn.ModuleList(copy.deepcopy(list(networks)) if stale else [])
        self.stale.requires_grad_(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date."""
        for old, new in zip(self.stale.state_dict().values(), self.peers.state_dict().values(), strict=True):
            old.copy_(new)


class Peers(Learner):
    """K networks that learn together; the first `candidates` of them are of the model that is shipped.

    `updates`: `simultaneous`, one step of all from predictions made before it, or `sequential`, one network
    after the other, each from predictions that the networks before it made after their step (arXiv
    1706.00384, algorithm 1). With `refresh_steps` targets come from copies, made anew every so many steps
    (arXiv 1804.03235, where a copy is the checkpoint that another worker wrote last). Targets are predictions
    in training mode, dropout and the batch's own statistics included.
    """

    trained: Together

    def __init__(
        self,
        networks: Sequence[Network],
        loss: DistillationLoss,
        *,
        candidates: int | None = None,
        updates: Literal["simultaneous", "sequential"] = "simultaneous",
        refresh_steps: int | None = None,
    ) -> None:
        super().__init__(networks[0], loss)
        self.networks, self.candidates = list(networks), candidates or len(networks)
        self.sequential, self.refresh_steps = updates == "sequential", refresh_steps
        self.trained = Together(networks, refresh_steps is not None)

    @property
    def kept(self) -> nn.Module:
        return self.trained.peers

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        training: TrainingConfig,
        number: int,
    ) -> Tensor:
        assert model is self.trained, "peers are not replicated; the configuration is checked for it"
        optimizer.zero_grad(set_to_none=True)
        if self.refresh_steps is not None and number % self.refresh_steps == 0:
            self.trained.refresh()
        outputs = [self._ask(network, batch, training) for network in self.networks]
        targets = [_constant(each) for each in outputs]
        if self.refresh_steps is not None:
            targets = [self._predict(network, batch, training) for network in self.trained.stale]
        if self.sequential:
            return self._in_turn(optimizer, outputs, targets, batch, training)
        losses = [self._loss(k, outputs[k], targets, batch) for k in range(len(outputs))]
        torch.stack(losses).sum().backward()
        update(optimizer, training, self.networks, self.networks)
        return torch.stack(losses).detach().mean()

    def _in_turn(
        self,
        optimizer: torch.optim.Optimizer,
        outputs: list[Outputs],
        targets: list[Outputs],
        batch: Batch,
        training: TrainingConfig,
    ) -> Tensor:
        """Update one network after the other. What a network said before its turn still holds in its turn:
        nothing has moved it since."""
        losses = []
        for k, network in enumerate(self.networks):
            loss = self._loss(k, outputs[k], targets, batch)
            loss.backward()
            update(optimizer, training, [network], [network])  # the others have no gradient, and stay
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            if k + 1 < len(self.networks):
                targets[k] = self._predict(network, batch, training)
        return torch.stack(losses).mean()

    def _loss(self, k: int, own: Outputs, targets: list[Outputs], batch: Batch) -> Tensor:
        return self.loss(own, batch.teacher, batch, [*targets[:k], *targets[k + 1 :]])

    def _ask(self, network: nn.Module, batch: Batch, training: TrainingConfig) -> Outputs:
        with autocast(batch.inputs.device, training.precision):
            found: Outputs = network(batch.inputs)
        return found

    @torch.no_grad()
    def _predict(self, network: nn.Module, batch: Batch, training: TrainingConfig) -> Outputs:
        return self._ask(network, batch, training)

    def judged(self, evaluate: Evaluate) -> dict[str, float]:
        """What validation rows say of the network that would be shipped now, and of each."""
        found = [evaluate(network) for network in self.networks]
        entry = dict(found[self._best(found)])
        if len(found) > 1:
            entry |= {
                f"peer_{k}_{name}": one[name]
                for k, one in enumerate(found)
                for name in ("validation_loss", "validation_accuracy")
                if name in one
            }
        return entry

    def finished(self, evaluate: Evaluate, predict: Predict, folder: Path) -> tuple[Network, Left]:
        """The best of those of the shipped model on validation rows. Weights and logits of all are left, and
        the logits of their mean."""
        judged = [evaluate(network) for network in self.networks]
        best = self._best(judged)
        if len(self.networks) == 1:
            return self.networks[0], Left()
        logits = {
            f"peers/{k}/{split}": tensor
            for k, network in enumerate(self.networks)
            for split, tensor in predict(network).items()
        }
        for split in ("validation", "test"):
            members = torch.stack([logits[f"peers/{k}/{split}"] for k in range(len(self.networks))], 1)
            mean = "value" if self.network.output_scale is not None else "arithmetic"
            logits[f"together/{split}"] = mean_logits(members, 1.0, mean)
        save_weights(self.trained.peers, folder / PEERS)
        entries = [
            {"parameters": network.num_parameters, **one}
            for network, one in zip(self.networks, judged, strict=True)
        ]
        summary = {"peers": entries, "peer": best}
        summary["together_parameters"] = sum(network.num_parameters for network in self.networks)
        return self.networks[best], Left(logits, [PEERS], summary)

    def _best(self, judged: list[dict[str, float]]) -> int:
        return min(range(self.candidates), key=lambda k: preference(judged[k]))


def _constant(outputs: Outputs) -> Outputs:
    return replace(outputs, logits=outputs.logits.detach())


def peer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Peers` from the fields of `student.peers`."""
    same = settings["count"] if not settings["models"] else 1
    return {
        "candidates": same,
        "updates": settings["updates"],
        "refresh_steps": settings["refresh_steps"],
    }
