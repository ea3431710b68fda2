"""What a member minimises, with the teachers beside it and what the loss trains along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ensemble_kd.config import TrainingConfig
from ensemble_kd.models.build import Network, made_up_inputs
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.class_weights import WeightedCrossEntropy
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.objectives.targets import HALVES
from ensemble_kd.targets import target_of
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import load_learned, online_networks
from ensemble_kd.train.online import Beside, Online
from ensemble_kd.train.stored_states import StoredStates
from ensemble_kd.train.task import MemberTask


def loss_of(
    task: MemberTask, training: TrainingConfig, described: dict[str, Any] | None = None
) -> DistillationLoss:
    """What a task minimises; `described` is `DataInfo.target`. Words that are guessed are classes."""
    target = target_of(None if task.masked_lm else described)
    of_labels: dict[str, Any] = {"hard": HALVES[target.name].hard, "unit": target.unit}
    if training.class_weights is not None or training.focal_gamma > 0:
        weights = training.class_weights
        assert weights is None or isinstance(weights, list), "the data stage puts numbers in place of names"
        of_labels["hard"] = WeightedCrossEntropy(tuple(weights) if weights else None, training.focal_gamma)
    soft = build_objective(task.objective, task.temperature) if task.objective and task.alpha > 0 else None
    terms = build_terms(task.terms, task.temperature, "student.terms")
    shares = tuple(task.online["shares"]) if task.online else (1.0,)
    of_labels["pseudo"] = task.guess_weight
    if task.alpha_schedule is not None and task.alpha > 0:
        of_labels["schedule"] = parse_weight(task.alpha_schedule, "student.alpha")
    return DistillationLoss(soft, task.alpha, training.label_smoothing, terms, shares, **of_labels)


def beside(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    loss: DistillationLoss,
    batches: Batches,
    precision: str,
) -> tuple[Beside | None, nn.Module | None]:
    """The teachers beside the student, running or read, and what the loss trains along with it."""
    if task.online is None:
        return None, None
    online: Online | StoredStates
    if task.online.get("stored"):
        assert data.states is not None, "the stage decides so only where states are held"
        names = [str(place["member"]) for place in task.online["teachers"]]
        online = data.states.of(names, loss.wants, batches.device)
    else:
        networks = online_networks(task.online["teachers"], data.run, data.info, task.masked_lm)
        targets = None
        if task.online["logits"]:
            own = task.online.get("calibration")
            targets = Targets(task.temperature, task.mean, task.online["shares"], calibration=own)
        pieces = getattr(network.body, "pieces", None) if task.masked_lm else None
        online = Online(networks, loss.wants, precision, batches.device, targets, pieces)
    torch.manual_seed(mix(task.seed, 37))
    teachers = online if isinstance(online, StoredStates) else online.networks
    learned = prepare_loss(loss, network, teachers, data.info, batches.device)
    load_learned(learned, task.initial, data.run)
    return online, learned.to(batches.device)


@torch.no_grad()
def prepare_loss(
    loss: DistillationLoss,
    network: Network,
    teachers: Sequence[Network] | StoredStates,
    info: dict[str, Any],
    device: torch.device,
) -> nn.ModuleList:
    """`loss.prepare` on what the networks return for made-up inputs, or on what is stored of two rows; raises
    ConfigError as that does."""
    inputs = made_up_inputs(info["kind"], info["input_shape"]).to(device)
    inputs = inputs[:, :8] if info["kind"] == "text" else inputs
    was_training = network.training
    own = network.eval()(inputs, **loss.wants)
    if isinstance(teachers, StoredStates):
        none = torch.zeros(len(inputs), dtype=torch.int64)
        others = teachers(Batch(inputs, none, rows=none))
    else:
        others = [net.eval()(inputs, **loss.wants) for net in teachers]
    network.train(was_training)
    return loss.prepare(own, others)
