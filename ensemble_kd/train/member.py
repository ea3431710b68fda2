"""One member of an ensemble (or one student) from its task to its finished folder. Torch only."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import torch

from ensemble_kd.artifacts import write_json
from ensemble_kd.config import TrainingConfig
from ensemble_kd.models.build import Network
from ensemble_kd.models.rows import restore_tables_
from ensemble_kd.models.trees import Trees
from ensemble_kd.models.weights import save_weights
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.compression import before_steps
from ensemble_kd.train.finishing import CHECKPOINT, FAILED, Trained, finish_member, finish_phase
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED
from ensemble_kd.train.loop import NotFiniteError, Progress, Replicas, predict, train_epochs
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import loss_of
from ensemble_kd.train.member_networks import (
    cut_tables,
    generalist_of,
    initial_network,
    learner_of,
    logits_of,
)
from ensemble_kd.train.specialist import Judge
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.trees import fit_trees_, rows_of
from ensemble_kd.train.validation import validation_metrics


def train_member(
    task: MemberTask,
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    replicas: Replicas | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda entry: None,
    on_warning: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Train one member, or go on where its checkpoint stands, and finish its folder.

    The folder then holds the weights, the logits on validation and test rows, and the manifest with the
    history. Returns False, after writing `failed.json`, for a member whose loss became NaN or infinite.
    Raises Interrupted, the state saved, once `stop` says yes.
    """
    epochs = member_epochs(
        task, data, members, device=device, replicas=replicas, on_warning=on_warning, stop=stop
    )
    while True:
        try:
            entry = next(epochs)
        except StopIteration as end:
            return bool(end.value)
        if replicas is None or replicas.rank == 0:
            on_epoch(entry)


def member_epochs(
    task: MemberTask,
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    replicas: Replicas | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] | None = None,
) -> Generator[dict[str, float], None, bool]:
    """`train_member`, one epoch at each `next`, yielding its entry of the history."""
    device = device or torch.device("cpu")
    replicas = replicas or Replicas()
    folder = task.folder(members)
    folder.mkdir(parents=True, exist_ok=True)
    if replicas.rank == 0:
        for stale in folder.glob(".*.tmp"):  # what a killed run was writing
            stale.unlink()
    began = time.perf_counter()
    training = TrainingConfig.model_validate(task.training)
    judge: Judge | None = None
    if task.specialist is None:
        network = initial_network(task, data)
        cut_tables(task, data, network)
    else:
        network, judge = generalist_of(task, data)
    network = network.to(device)
    if network.quantiser is not None:
        network.quantiser.group = replicas.group
    batches = make_batches(task, data, training, device, replicas)
    loss = loss_of(task, training, data.info.get("target"))
    learner, learned = learner_of(task, data, network, loss, batches, training)
    validation = as_tensor(data.validation.inputs)
    validation_labels = as_tensor(data.validation.labels)
    if judge is not None:
        validation = validation[judge.rows]

    def evaluate(network: Network) -> dict[str, float]:
        logits = predict(network, validation, device, precision=training.precision)
        if judge is not None:
            return judge(judge.specialty.logits(logits))
        by = training.early_stopping_by
        return validation_metrics(logits, validation_labels, data.info.get("target"), by)

    if isinstance(network.body, Trees):
        if replicas.rank == 0:
            judged, target = (validation, validation_labels), data.info.get("target")
            rows = rows_of(batches.source, batches.weights)
            rounds = fit_trees_(network, task.model, training, task.seed, rows, judged, target=target)
            seconds = time.perf_counter() - began
            finish_member(task, data, Trained(network, Progress(rounds), seconds), folder, device)
        return True
    try:
        progress = yield from train_epochs(
            learner,
            batches,
            training,
            seed=task.seed,
            evaluate=evaluate if replicas.rank == 0 and task.corpus is None else None,
            checkpoint=folder / CHECKPOINT,
            replicas=replicas,
            on_warning=on_warning,
            on_step=before_steps(task, network),
            stop=stop,
        )
    except NotFiniteError as error:
        if replicas.rank == 0:
            write_json(folder / FAILED, {"name": task.name, "reason": str(error)})
        return False
    for each in learner.networks:
        restore_tables_(each)
    if replicas.rank == 0:
        seconds = time.perf_counter() - began
        if learned is not None and list(learned.parameters()):
            save_weights(learned, folder / LEARNED)
        if task.phase is not None:
            finish_phase(task, network, progress, folder, seconds)
        else:
            network, left = learner.finished(evaluate, partial(logits_of, data=data, device=device), folder)
            trained = Trained(network, progress, seconds, judge, left)
            finish_member(task, data, trained, folder, device)
    return True
