"""Many students of one architecture trained together in one process, as stacked parameters.

A small network's step is mostly the cost of starting its operations. Students that differ in numbers alone
(temperature, alpha, learning rate, ..., seed) share them: a step of n is one forward pass, one backward pass
and one update over tensors with n in front. Each gets what it would get by itself, up to rounding.

Shapes: n members, B examples, C classes, N validation rows, P weights of one network.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ensemble_kd.artifacts import write_json
from ensemble_kd.config import TrainingConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.rows import restore_tables_
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.mixture import StackedLoss
from ensemble_kd.targets import target_of
from ensemble_kd.targets.metrics import class_means
from ensemble_kd.train.blocks import as_tensor, mix
from ensemble_kd.train.checkpoint import load_state, save_state
from ensemble_kd.train.device import autocast
from ensemble_kd.train.finishing import FAILED, Trained, finish_member
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.loop import NotFiniteError, Progress, learning_rate
from ensemble_kd.train.member_loss import loss_of
from ensemble_kd.train.member_networks import cut_tables, initial_network
from ensemble_kd.train.shared_batches import Reader
from ensemble_kd.train.stack import Stack, StackedOptimizer, quiet
from ensemble_kd.train.stackable import fusable, fuse_key
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.validation import calibrated_loss, validation_metrics

Entry = dict[str, float]


def started(task: MemberTask, data: TrainingData) -> Network:
    """The network that a task's training starts with."""
    network = initial_network(task, data)
    cut_tables(task, data, network)
    return network


# ------------------------------------------------------------------------------------------- training


@dataclass
class Member:
    """One of the members and how it stands."""

    task: MemberTask
    training: TrainingConfig
    progress: Progress = field(default_factory=Progress)
    best: Tensor | None = None
    """(P,) weights of the best epoch, with early stopping."""
    reason: str | None = None
    """Why it failed."""

    @property
    def active(self) -> bool:
        return self.reason is None and not self.progress.stopped


class Fleet:
    """The members with their stack, which holds those that are still active, in order."""

    def __init__(
        self, tasks: list[MemberTask], data: TrainingData, device: torch.device, brief: bool = False
    ) -> None:
        self.device, self.target = device, data.info.get("target")
        self.label_axes = 1 + len(target_of(self.target).label_shape)
        self.members = [Member(task, TrainingConfig.model_validate(task.training)) for task in tasks]
        self.training = self.members[0].training
        self.reader = Reader(tasks, data, self.training, device, brief)
        self.total_steps = self.training.num_epochs * self.reader.steps_per_epoch
        self.unit = self.training.model_copy(update={"learning_rate": 1.0})
        by_seed = {task.seed: task for task in tasks}
        self.networks = {seed: started(task, data).to(device) for seed, task in by_seed.items()}
        self.network = self.networks[tasks[0].seed]
        self.stack = Stack([self.networks[task.seed] for task in tasks])
        self._arrange(None)
        self.validation = as_tensor(data.validation.inputs)
        self.validation_labels = as_tensor(data.validation.labels)

    def _arrange(self, state: dict[str, Any] | None) -> None:
        """Loss and optimiser of the members in the stack; `state` of the optimiser, where it has stepped."""
        members = [self.members[i] for i in self.stack.numbers]
        self.loss = StackedLoss([loss_of(m.task, m.training, self.target) for m in members], self.device)
        self.optimizer = StackedOptimizer(self.stack, [m.training for m in members])
        if state is not None:
            self.optimizer.inner.load_state_dict(state)

    def shrink(self) -> None:
        """Take those that failed or stopped out of the stack."""
        rows = [row for row, i in enumerate(self.stack.numbers) if self.members[i].active]
        if rows and len(rows) < len(self.stack):
            self.stack.keep([self.stack.numbers[row] for row in rows])
            self._arrange(self.optimizer.state_of(rows))

    def step(self, batch: Batch, step: int) -> Tensor:
        """One optimiser step of all, the `step`-th since the beginning; their losses (n,)."""
        batch.progress = step / self.total_steps
        with autocast(self.device, self.training.precision):
            logits = self.stack(batch.inputs, shared=batch.labels.dim() == self.label_axes)
        losses: Tensor = self.loss(Outputs(logits), batch.teacher, batch)
        (gradient,) = torch.autograd.grad(losses.sum(), self.stack.weights)
        self.optimizer.step(gradient, self._factor(step))
        return losses.detach()

    def epoch(self, epoch: int) -> list[Entry | None]:
        """Train and judge one epoch; the entry of each member, None where there is none."""
        began, count = time.perf_counter(), len(self.stack)
        self.stack.train()
        self.stack.reseed(
            [mix(member.task.seed, epoch, 0, 7) for member in self.members]
        )  # as `train_epochs`
        totals = torch.zeros(count, device=self.device)
        batches = self.reader.epoch(epoch, self.stack.numbers)
        for step, batch in enumerate(batches, start=epoch * self.reader.steps_per_epoch):
            totals += self.step(batch, step)
        train_losses = (totals / self.reader.steps_per_epoch).tolist()
        # Of each member's own share of the time: they sum up to what has passed.
        seconds = (time.perf_counter() - began) / count
        examples = self.reader.steps_per_epoch * self.reader.batch_size
        judged = self._judge()
        entries: list[Entry | None] = [None] * len(self.members)
        for row, i in enumerate(self.stack.numbers):
            member = self.members[i]
            entry = {
                "epoch": epoch + 1,
                "train_loss": train_losses[row],
                "learning_rate": member.training.learning_rate * self._factor(step),
                "seconds": seconds,
                "examples_per_second": examples / seconds,
                **judged[row],
            }
            losses = entry["train_loss"], entry["validation_loss"]
            if not all(map(math.isfinite, losses)):
                wrong = next(loss for loss in losses if not math.isfinite(loss))
                member.reason = str(NotFiniteError(epoch + 1, wrong))
                continue
            entries[i] = entry
            if member.progress.add(entry, member.training.early_stopping):
                member.best = self.stack.weights[row].detach().clone()
        return entries

    def _factor(self, step: int) -> float:
        """The schedule's, the same for all: what a learning rate of 1 is at this step."""
        return learning_rate(self.unit, step, self.total_steps)

    def _judge(self) -> list[Entry]:
        """`validation_metrics` of each row of the stack."""
        logits = self.stack.predict(self.validation, self.device, self.training.precision)  # (n, N, C)
        if not target_of(self.target).classified:
            return [validation_metrics(row, self.validation_labels, self.target) for row in logits]
        losses = cross_entropy(logits, self.validation_labels).mean(1)
        right = (logits.argmax(2) == self.validation_labels).float().mean(1)
        truth, classes = self.validation_labels.numpy(), logits.shape[2]
        means = [class_means(answers.numpy(), truth, classes) for answers in logits.argmax(2)]
        entries = [
            {"validation_loss": loss, "validation_accuracy": accuracy}
            | {f"validation_{name}": value for name, value in found.items()}
            for loss, accuracy, found in zip(losses.tolist(), right.tolist(), means, strict=True)
        ]
        if self.training.early_stopping_by == "calibrated_loss":
            for entry, row in zip(entries, logits, strict=True):
                entry["calibrated_loss"] = calibrated_loss(row, self.validation_labels)
        return entries

    def weights_of(self, i: int) -> Tensor:
        """(P,) the weights to keep of a member."""
        best = self.members[i].best
        return self.stack.weights[self.stack.numbers.index(i)].detach() if best is None else best

    def save(self, path: Path) -> None:
        members = [
            {"fingerprint": m.task.fingerprint, "progress": m.progress.__dict__, "reason": m.reason}
            for m in self.members
        ]
        best = {f"{i}": m.best for i, m in enumerate(self.members) if m.best is not None}
        progress = {"numbers": self.stack.numbers, "members": members}
        save_state(path, self.stack, self.optimizer.inner, best, progress)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint stands. Raises ArtifactError, maybe with half of it loaded."""
        try:
            with safe_open(path, framework="pt") as file:
                saved = json.loads(file.metadata()["progress"])
            if [m["fingerprint"] for m in saved["members"]] != [m.task.fingerprint for m in self.members]:
                raise ArtifactError(f"{path}: is of other members")
            for member, state in zip(self.members, saved["members"], strict=True):
                member.progress, member.reason = Progress(**state["progress"]), state["reason"]
            self.stack.keep(saved["numbers"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: not a readable checkpoint ({error})") from error
        self._arrange(None)
        best, _ = load_state(path, self.stack, self.optimizer.inner)
        for i, weights in (best or {}).items():
            self.members[int(i)].best = weights.to(self.device)
        self.shrink()


def fused_epochs(
    tasks: list[MemberTask],
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> Generator[list[Entry | None], None, list[bool]]:
    """`member_epochs` of several tasks with one `fuse_key` at once, an epoch of all at each `next`.

    Yields each task's entry of the history; None for one that stopped early before, or whose loss was not
    finite, for which `failed.json` says why. In the end the folders of the others are finished, and which
    these are is returned; a folder that was finished before stays as it is. With `checkpoint`, every epoch
    ends in a saved state, and a later call with the same tasks continues from it to the same bits. Raises
    ValueError for tasks that cannot be stacked.
    """
    device, began = device or torch.device("cpu"), time.perf_counter()
    if len({fuse_key(task) for task in tasks}) != 1 or not fusable(tasks[0], data):
        raise ValueError(f"{', '.join(task.name for task in tasks)} cannot be trained together")
    places = [(task.folder(members), ".*.tmp") for task in tasks]
    places += [(checkpoint.parent, f".{checkpoint.name}.*.tmp")] if checkpoint is not None else []
    for folder, pattern in places:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(pattern):  # what a killed run was writing
            stale.unlink()
    fleet = Fleet(tasks, data, device)
    if checkpoint is not None and checkpoint.exists():
        try:
            fleet.load(checkpoint)
        except ArtifactError as error:
            on_warning(f"{error}; these members start again")
            fleet = Fleet(tasks, data, device)
    epoch = max(member.progress.epoch for member in fleet.members)
    while epoch < fleet.training.num_epochs and any(member.active for member in fleet.members):
        with quiet():
            entries = fleet.epoch(epoch)
        epoch += 1
        for i in fleet.stack.numbers:
            if fleet.members[i].reason is not None:
                _tell_failure(fleet.members[i], members)
        if checkpoint is not None:
            fleet.save(checkpoint)
        fleet.shrink()
        yield entries
    for i, member in enumerate(fleet.members):
        if member.reason is None and finished(member.task, members) is not None:
            continue
        if member.reason is None:
            # A copy: what finishing does to one is not for the next.
            network = copy.deepcopy(fleet.networks[member.task.seed])
            fleet.stack.copy_to(network, fleet.weights_of(i), i)
            restore_tables_(network)
            share = (time.perf_counter() - began) / len(tasks)
            folder = member.task.folder(members)
            finish_member(member.task, data, Trained(network, member.progress, share), folder, device)
        else:
            _tell_failure(member, members)  # of an earlier call's: what it wrote may have been cleared away
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return [member.reason is None for member in fleet.members]


def _tell_failure(member: Member, members: Path) -> None:
    write_json(member.task.folder(members) / FAILED, {"name": member.task.name, "reason": member.reason})
