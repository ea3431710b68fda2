"""What a member's task trains: its network, its peers, the branches it shares a trunk with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ensemble_kd.artifacts import read_manifest
from ensemble_kd.attached import ensure
from ensemble_kd.config import ModelConfig, TrainingConfig, methods
from ensemble_kd.config.methods import LearnerConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.branched import Branched
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.quantise import Quantiser, quantise_
from ensemble_kd.models.rows import cut_tables_, tables
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.batches import Batches
from ensemble_kd.train.blocks import as_tensor, mix
from ensemble_kd.train.branches import Branches, branched, gate_term
from ensemble_kd.train.compression import compressors
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import load_initial, load_network
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import predict
from ensemble_kd.train.member_loss import beside
from ensemble_kd.train.peers import Peers, mutual_term, peer_settings, with_peers
from ensemble_kd.train.specialist import Judge, Specialty, start
from ensemble_kd.train.task import MemberTask


def learner_of(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    loss: DistillationLoss,
    batches: Batches,
    training: TrainingConfig,
) -> tuple[Learner, nn.Module | None]:
    """What is trained: `network`, alone or with its peers; and the projections that its loss learns along."""
    if task.peers is not None or task.branches is not None:
        assert task.online is None, "no teacher runs beside them; the configuration is checked for it"
    if task.peers is not None:
        networks = [network, *(each.to(batches.device) for each in other_peers(task, data))]
        shared = with_peers(loss, mutual_term(task.peers), len(networks))
        return Peers(networks, shared, **peer_settings(task.peers)), None
    if task.branches is not None:
        views = [
            branch_view(task, data, network, i).to(batches.device) for i in range(task.branches["count"])
        ]
        return Branches(network, views, loss, gate_term(task.branches), task.branches["ship"]), None
    if task.learner is not None:
        block: LearnerConfig = TypeAdapter(methods.Learner).validate_python(task.learner)

        def another(k: int) -> Network:
            own = replace(task, seed=mix(task.seed, 59, k), initial=None)
            made = initial_network(own, data)
            cut_tables(own, data, made)
            return made.to(batches.device)

        learner: Learner = block.learner(network, loss, another)
        return learner, None
    online, learned = beside(task, data, network, loss, batches, training.precision)
    return Learner(network, loss, online=online, learned=learned), learned


def other_peers(task: MemberTask, data: TrainingData) -> list[Network]:
    """The networks that learn together with the student, each with initial weights of its own."""
    assert task.peers is not None
    found = []
    for k in range(1, task.peers["count"]):
        model, initial = task.model, task.initial
        if task.peers["models"]:
            model, initial = task.peers["models"][k - 1], None
        own = replace(task, model=model, initial=initial, seed=mix(task.seed, 53, k))
        network = initial_network(own, data)
        cut_tables(own, data, network)
        found.append(network)
    return found


def branch_view(task: MemberTask, data: TrainingData, network: Network, number: int) -> Network:
    """Trunk and one branch of `network` as one of the student's own model; modules are shared."""
    assert isinstance(network.body, Branched)
    plain = {key: value for key, value in task.model.items() if key not in ("branches", "branch_section")}
    view = build(TypeAdapter(ModelConfig).validate_python(plain), data.info)
    view.body = network.body.branch(number)
    return view


@torch.no_grad()
def logits_of(network: Network, data: TrainingData, device: torch.device) -> dict[str, Tensor]:
    """A trained network's logits (N, C) on `validation` and `test` rows."""
    splits = {"validation": data.validation, "test": data.test}
    return {name: predict(network, as_tensor(part.inputs), device) for name, part in splits.items()}


def initial_network(task: MemberTask, data: TrainingData) -> Network:
    """The network that a task without a generalist starts from."""
    torch.manual_seed(mix(task.seed, 11))
    fields = task.model
    if task.branches is not None:
        fields = {**fields, **branched(task.branches)}
    model: Any = TypeAdapter(ModelConfig).validate_python(fields)
    network = build(model, data.info, masked_lm=task.masked_lm)
    if task.initial is not None:
        load_initial(network, task.initial, data.run, data.info)
    for compressor in compressors(task):
        compressor.prepare(network)
    if task.quantization is not None:  # last: what it starts from is in float
        quantise_(network, Quantiser(**task.quantization))
    return network


def cut_tables(task: MemberTask, data: TrainingData, network: Network) -> None:
    """Leave word pieces out of a network's training, in place, that no text at hand has."""
    # Others would shrink with weight decay; a quantised table has one step for all of its rows.
    if task.training["weight_decay"] > 0 or task.quantization is not None or task.corpus is not None:
        return
    if data.info["kind"] != "text" or data.transfer is None or not tables(network):
        return
    cut_tables_(network, data.pieces)


def generalist_of(task: MemberTask, data: TrainingData) -> tuple[Network, Judge]:
    """The network to train on, and how it is judged; both come from the generalist's finished folder."""
    torch.manual_seed(mix(task.seed, 11))
    assert task.specialist is not None and data.generalists is not None
    specialty = Specialty(**task.specialist)
    folder = data.generalists / specialty.generalist
    ensure(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(
            f"{folder}: the generalist of {task.name} is missing; run the teachers stage again"
        )
    logits = load_logits(folder, "validation")
    judge = Judge(specialty, logits, as_tensor(data.validation.labels))
    return start(specialty, load_network(manifest.config, data.info, folder), logits), judge
