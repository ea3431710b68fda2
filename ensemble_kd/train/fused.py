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
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ensemble_kd.artifacts import canonical, write_json
from ensemble_kd.config import TrainingConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.rows import restore_tables_
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.mixture import StackedLoss
from ensemble_kd.targets.metrics import class_means
from ensemble_kd.train.batches import as_tensor, mix
from ensemble_kd.train.checkpoint import load_state, save_state
from ensemble_kd.train.device import autocast
from ensemble_kd.train.learner import train_step
from ensemble_kd.train.loop import NotFiniteError, Progress, learning_rate, make_optimizer
from ensemble_kd.train.member import (
    FAILED,
    MemberTask,
    TrainingData,
    cut_tables,
    finish_member,
    finished,
    initial_network,
    loss_of,
    make_batches,
)
from ensemble_kd.train.shared_batches import Reader
from ensemble_kd.train.stack import Stack, StackedOptimizer, deterministic, quiet
from ensemble_kd.train.validation import calibrated_loss, validation_metrics

Entry = dict[str, float]

OWN_SETTINGS = (
    "seed",
    "alpha",
    "objective",
    "temperature",
    "mean",
    "weights",
    "targets",
    "pseudo",
    "calibration",
)
"""Fields of a MemberTask in which members of one stack may differ."""
OWN_TRAINING = {"learning_rate", "weight_decay", "label_smoothing"}
"""Fields of their TrainingConfig in which they may."""

COPIES = 6
"""Of each member's weights in memory: weights, step, gradient, two moments, the best so far."""
GAIN = 0.95
"""Stacking, or doubling a stack, pays where a member's step takes at most this share of the time before."""


def fuse_key(task: MemberTask) -> str | None:
    """Tasks with equal keys can be trained together by `fused_epochs`; None for one that cannot be with any.

    Whether their architecture can be stacked shows with the network: `deterministic`.
    """
    training = TrainingConfig.model_validate(task.training)
    # A specialist starts from its generalist and a phase leaves no answers; the others ask for more than one
    # pass and one step per batch.
    if task.specialist is not None or task.phase is not None:
        return None
    if task.quantization is not None:  # each has thresholds of its own, which every forward pass moves
        return None
    if task.model["name"] == "transformer" or task.terms or task.online or _together(task):
        return None
    if task.initial and "vectors" not in task.initial:
        return None
    if training.gradient_accumulation > 1 or training.max_norm is not None:
        return None
    kept = {name: value for name, value in task.settings.items() if name not in OWN_SETTINGS}
    kept.pop("pseudo_labels")  # a weight of `pseudo`, as any other
    kept["training"] = training.model_dump(mode="json", exclude=OWN_TRAINING)
    # Members that see other rows get batches of their own, and a baseline reads no soft targets.
    kept["rows"] = {name: value for name, value in task.rows.items() if name != "labelled"}
    kept["inputs"] = task.inputs.get("data")
    return canonical(kept)


def _together(task: MemberTask) -> bool:
    return task.peers is not None or task.branches is not None


def fusable(task: MemberTask, data: TrainingData) -> bool:
    """Whether students like this one can be trained together at all."""
    return fuse_key(task) is not None and deterministic(initial_network(task, data), random_inputs(data.info))


def started(task: MemberTask, data: TrainingData) -> Network:
    """The network that a task's training starts with."""
    network = initial_network(task, data)
    cut_tables(task, data, network)
    return network


def random_inputs(info: dict[str, Any]) -> Tensor:
    """(4, ...) raw inputs of the data's kind."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, *info["input_shape"])
    if info["kind"] == "image":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if info["kind"] == "text":
        return torch.randint(info["vocabulary_size"], shape, generator=generator, dtype=torch.int32)
    return torch.randn(shape, generator=generator)


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
        with autocast(self.device, self.training.precision):
            logits = self.stack(batch.inputs, shared=batch.labels.dim() == 1)
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
        if self.target is not None:
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
            finish_member(member.task, data, network, member.progress, folder, device, share)
        else:
            _tell_failure(member, members)  # of an earlier call's: what it wrote may have been cleared away
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return [member.reason is None for member in fleet.members]


def _tell_failure(member: Member, members: Path) -> None:
    write_json(member.task.folder(members) / FAILED, {"name": member.task.name, "reason": member.reason})


# ------------------------------------------------------------------------------------ how many together


def measure(
    task: MemberTask, data: TrainingData, n: int, steps: int, *, device: torch.device | None = None
) -> tuple[float, float]:
    """Seconds of one step of a student by itself, and of one step of n such students together.

    The least of two times `steps` each. They take turns in runs, not in single steps: each would push the
    other's weights out of the processor's cache, which many evict and one feels.
    """
    device = device or torch.device("cpu")
    # At temperatures of their own, since so they would be.
    tasks = [replace(task, temperature=task.temperature * (1 - 0.01 * i / n)) for i in range(n)]
    fleet = Fleet(tasks, data, device, brief=True)
    network, loss = copy.deepcopy(fleet.network).train(), loss_of(task, fleet.training, fleet.target)
    optimizer = make_optimizer(network, fleet.training)
    alone = make_batches(task, data, fleet.training, device)
    alone.at_once = 1
    every = list(range(n))
    pairs = list(islice(zip(alone.epoch(0), fleet.reader.epoch(0, every), strict=True), steps))
    fleet.stack.train()

    def one(batch: Batch) -> Tensor:
        return train_step(network, network, optimizer, batch, loss, fleet.training, device)

    def together(batch: Batch) -> Tensor:
        return fleet.step(batch, fleet.total_steps - 1)

    least = [math.inf, math.inf]
    with quiet():
        for turn in range(4):
            step = (one, together)[turn % 2]
            for number in range(steps + 1):
                batch = pairs[number % len(pairs)][turn % 2]
                began = time.perf_counter()
                float(step(batch).sum())  # reading the loss waits for an accelerator
                if number > 0:  # the first is warm-up
                    least[turn % 2] = min(least[turn % 2], time.perf_counter() - began)
    return least[0], least[1]


def choose_fuse(
    task: MemberTask, data: TrainingData, limit: int, *, device: torch.device | None = None
) -> int:
    """How many students like this one to train together, at most `limit`: what takes least time per student.

    1 where they cannot be, or where it does not save 5%.
    """
    device = device or torch.device("cpu")
    if limit < 2 or not fusable(task, data):
        return 1
    one_copy = 4 * started(task, data).num_parameters
    limit = min(limit, _free_memory(device) // 4 // (COPIES * one_copy))
    alone, shares = math.inf, {1: math.inf}
    n = 2
    while n <= limit:
        one, together = measure(task, data, n, 5, device=device)
        alone, before = min(alone, one), min(shares.values())
        shares[n] = together / n
        # What operations cost to start is shared by n: a + b / n, of which a is left for very many.
        left = 2 * shares[n] - before
        if n == limit or shares[n] > GAIN * before or left > GAIN * alone:
            break
        n = min(2 * n, limit)
    best = min(shares, key=lambda n: shares[n])
    return best if shares[best] <= GAIN * alone else 1


def _free_memory(device: torch.device) -> int:
    """Bytes that new tensors can have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
