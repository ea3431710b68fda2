"""One network with branches that learn from their own gated ensemble (ONE, arXiv 1806.04606)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_kd.config import TrainingConfig
from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.logits import KL
from ensemble_kd.objectives.mixture import DistillationLoss, Term
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.train.device import autocast
from ensemble_kd.train.learner import Evaluate, Learner, Left, Predict, update
from ensemble_kd.train.validation import preference

PATH = "student.branches"


def branched(settings: dict[str, Any]) -> dict[str, Any]:
    """Fields of the model with the branches that the fields of `student.branches` ask for."""
    return {"branches": settings["count"], "branch_section": settings["section"]}


def gate_term(settings: dict[str, Any]) -> Term:
    """The term between branch and ensemble, from the fields of `student.branches`. Raises ConfigError."""
    weight = parse_weight(settings["weight"], f"{PATH}.weight")
    return Term(KL(temperature=settings["temperature"]), weight, PATH)


class Branches(Learner):
    """m branches and their gate, z_i and v = sum_i g_i z_i:

    sum_i L(z_i) + L(v) + w(t) sum_i T^2 KL(softmax(v / T) || softmax(z_i / T)); L is the student's own loss,
    the cross-entropy in the paper. The ensemble is a constant in the KL, which so moves neither gate nor the
    other branches. `views` are the branches as networks of the student's model, which share their modules
    with `network`.
    """

    def __init__(
        self, network: Network, views: Sequence[Network], loss: DistillationLoss, term: Term, ship: str
    ) -> None:
        super().__init__(network, loss)
        self.views, self.whole = list(views), ship == "ensemble"
        self.of_branch = replace(loss, terms=(term,), shares=(1.0,), learned=[[None]])

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        training: TrainingConfig,
        number: int,
    ) -> Tensor:
        assert model is self.trained, "branches are not replicated; the configuration is checked for it"
        optimizer.zero_grad(set_to_none=True)
        with autocast(batch.inputs.device, training.precision):
            outputs = self.network(batch.inputs, hidden=True)
        losses = torch.stack(self.losses(outputs, batch))
        losses.sum().backward()
        update(optimizer, training, [self.network], self.views)
        return losses.detach().mean()

    def losses(self, outputs: Outputs, batch: Batch) -> list[Tensor]:
        """Each branch's loss, and last the ensemble's own."""
        assert outputs.hidden is not None
        gated, constant = Outputs(outputs.logits), Outputs(outputs.logits.detach())
        found = [
            self.of_branch(Outputs(outputs.hidden[f"branch_{i}"]), batch.teacher, batch, [constant])
            for i in range(1, len(self.views) + 1)
        ]
        return [*found, self.loss(gated, batch.teacher, batch)]

    def judged(self, evaluate: Evaluate) -> dict[str, float]:
        """What validation rows say of what would be shipped now, of each branch, and of the ensemble."""
        ensemble, found = evaluate(self.network), [evaluate(view) for view in self.views]
        entry = dict(ensemble if self.whole else found[_best(found)])
        names = ("validation_loss", "validation_accuracy")
        entry |= {f"branch_{i}_{name}": one[name] for i, one in enumerate(found, start=1) for name in names}
        return entry | {f"gated_{name}": ensemble[name] for name in names}

    def finished(self, evaluate: Evaluate, predict: Predict, folder: Path) -> tuple[Network, Left]:
        """The best branch on validation rows and the ensemble's logits, or all of it."""
        judged = [evaluate(view) for view in self.views]
        entries = [
            {"parameters": view.num_parameters, **one} for view, one in zip(self.views, judged, strict=True)
        ]
        left = Left(summary={"branches": entries, "together_parameters": self.network.num_parameters})
        if self.whole:
            return self.network, left
        left.logits = {f"together/{split}": logits for split, logits in predict(self.network).items()}
        best = _best(judged)
        left.summary["branch"] = best + 1
        return self.views[best], left


def _best(judged: list[dict[str, float]]) -> int:
    return min(range(len(judged)), key=lambda i: preference(judged[i]))
