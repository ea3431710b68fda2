"""The one training loop: teacher, specialist, student and trial all pass through `train`.

It is torch only. Ray starts it in workers, tests and benchmarks call it directly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ensemble_kd.config import TrainingConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.batches import Batches
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.checkpoint import load_state, save_state
from ensemble_kd.train.device import autocast
from ensemble_kd.train.learner import Evaluate, Learner
from ensemble_kd.train.online import Beside


class NotFiniteError(Exception):
    """The loss of a member became NaN or infinite."""

    def __init__(self, epoch: int, loss: float) -> None:
        super().__init__(f"loss became {loss} in epoch {epoch}")
        self.epoch = epoch


class Interrupted(Exception):
    """Training was asked to stop; what it reached is in the checkpoint, and the same call goes on there."""


@dataclass(frozen=True)
class Replicas:
    """The workers that train one member together; by default one."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """torch.distributed process group of these workers, None for one."""

    def agree(self, flag: bool, device: torch.device) -> bool:
        """The first replica's answer, on all of them."""
        if self.size == 1:
            return flag
        shared = torch.tensor([float(flag)], device=device)
        dist.broadcast(shared, group=self.group, group_src=0)
        return bool(shared.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the replicas; not finite where one of theirs is not."""
        if self.size == 1:
            return value
        shared = value.clone()
        dist.all_reduce(shared, group=self.group)
        return shared / self.size


@dataclass
class Progress:
    """Where a member's training stands; survives in its checkpoint."""

    epoch: int = 0
    """Finished epochs."""
    best_loss: float = math.inf
    best_epoch: int = 0
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per epoch: epoch, train_loss, validation_loss, validation_accuracy, seconds, ..."""
    step: int = 0
    """Steps of the next epoch that are done: 0 but where training was stopped in the middle of one."""
    partial_loss: float = 0.0
    """The sum of these steps' losses."""
    rng: str | None = None
    """State of the random numbers (dropout) after them, in hexadecimal digits."""

    def add(self, entry: dict[str, float], patience: int | None) -> bool:
        """Note a finished epoch; True where early stopping is to keep its weights.

        Sets `stopped` where `patience` epochs brought nothing better; None for no early stopping.
        """
        self.epoch += 1
        self.history.append(entry)
        if patience is None:
            return False
        judged = entry.get("calibrated_loss", entry.get("validation_loss", entry["train_loss"]))
        better = judged < self.best_loss
        if better:
            self.best_loss, self.best_epoch = judged, self.epoch
        self.stopped = self.epoch - self.best_epoch >= patience
        return better


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD in torch's fused form; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def learning_rate(training: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up from 0, then constant, a line or a half cosine down to 0; `step` counts from 0."""
    warmup = round(training.warmup_fraction * total_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return training.learning_rate
    part = (step - warmup) / max(1, total_steps - warmup)
    if training.schedule == "linear":
        return training.learning_rate * (1 - part)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


def train(
    network: Network,
    batches: Batches,
    loss: DistillationLoss,
    training: TrainingConfig,
    *,
    seed: int,
    online: Beside | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    replicas: Replicas | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda entry: None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> Progress:
    """Train `network` in place; afterwards it holds the weights to keep.

    With `checkpoint`, every epoch ends in a saved state and a later call continues from it, ending in the
    same bits as an undisturbed run. With early stopping the best epoch's weights are kept, else the last.
    Raises NotFiniteError when the loss is no longer finite.
    """
    epochs = train_epochs(
        Learner(network, loss, online=online),
        batches,
        training,
        seed=seed,
        evaluate=evaluate,
        checkpoint=checkpoint,
        replicas=replicas,
        on_warning=on_warning,
    )
    while True:
        try:
            entry = next(epochs)
        except StopIteration as end:
            progress: Progress = end.value
            return progress
        if replicas is None or replicas.rank == 0:
            on_epoch(entry)


def train_epochs(
    learner: Learner,
    batches: Batches,
    training: TrainingConfig,
    *,
    seed: int,
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    replicas: Replicas | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
    on_step: Callable[[float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generator[dict[str, float], None, Progress]:
    """`train` of any learner, one epoch at each `next`: whoever holds several can train them side by side.

    `on_step` is told, before each step, which share of them is done. `stop` is asked after each step (where
    replicas train together, after each epoch); once it says yes, the state is saved and Interrupted raised.
    Yields each epoch's entry of the history once its checkpoint is written.
    """
    replicas = replicas or Replicas()
    device = batches.device
    trained = learner.trained
    optimizer = make_optimizer(trained, training)
    progress, best = Progress(), None
    if checkpoint is not None and checkpoint.exists():
        initial = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
        try:
            best, saved = load_state(checkpoint, trained, optimizer)
            progress = Progress(**saved)
        except (ArtifactError, TypeError) as error:
            on_warning(f"{error}; this member starts again")
            progress, best = Progress(), None
            trained.load_state_dict(initial)  # part of the checkpoint may have been loaded
            optimizer = make_optimizer(trained, training)
    model: nn.Module = trained
    if replicas.size > 1:
        model = DistributedDataParallel(trained, process_group=replicas.group)
    total_steps = training.num_epochs * batches.steps_per_epoch
    while progress.epoch < training.num_epochs and not progress.stopped:
        epoch = progress.epoch
        began = time.perf_counter()
        # Dropout follows (seed, epoch), so that a resumed run draws what the undisturbed one drew.
        torch.manual_seed(mix(seed, epoch, replicas.rank, 7))
        model.train()
        total = torch.zeros((), device=device)
        first = epoch * batches.steps_per_epoch
        skipped = first + progress.step
        if progress.rng is not None:  # stopped in the middle of this epoch, whose first steps are done
            total += progress.partial_loss
            set_rng_state(progress.rng, device)
            progress.step, progress.partial_loss, progress.rng = 0, 0.0, None
        for step, batch in enumerate(batches.epoch(epoch), start=first):
            if step < skipped:
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, step, total_steps)
            batch.progress = step / total_steps
            batch.group = replicas.group if replicas.size > 1 else None
            if on_step is not None:
                on_step(batch.progress)
            total += learner.step(model, optimizer, batch, training, step)
            # Not after the last step: what an epoch ends with is below.
            middle = step + 1 < first + batches.steps_per_epoch
            if stop is not None and replicas.size == 1 and middle and stop():
                if checkpoint is not None:
                    progress.step, progress.partial_loss = step + 1 - first, float(total)
                    progress.rng = rng_state(device)
                    save_state(checkpoint, trained, optimizer, best, progress.__dict__)
                raise Interrupted
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        train_loss = float(replicas.mean(total)) / batches.steps_per_epoch
        entry = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "learning_rate": learning_rate(training, step, total_steps),
            "seconds": seconds,
            "examples_per_second": batches.steps_per_epoch * batches.batch_size / seconds,
        }
        if evaluate is not None:
            entry |= learner.judged(evaluate)
        # The validation loss too: a last step may ruin the weights after its own loss was still finite.
        losses = [train_loss, entry.get("validation_loss", train_loss)]
        if not replicas.agree(all(map(math.isfinite, losses)), device):
            raise NotFiniteError(epoch + 1, next((x for x in losses if not math.isfinite(x)), math.nan))
        if progress.add(entry, training.early_stopping):
            best = {name: tensor.detach().clone() for name, tensor in learner.kept.state_dict().items()}
        if training.early_stopping is not None:
            progress.stopped = replicas.agree(progress.stopped, device)
        if checkpoint is not None and replicas.rank == 0:
            save_state(checkpoint, trained, optimizer, best, progress.__dict__)
        yield entry
        if stop is not None and replicas.agree(stop(), device) and progress.epoch < training.num_epochs:
            raise Interrupted
    if best is not None:
        learner.kept.load_state_dict(best)
    return progress


def rng_state(device: torch.device) -> str:
    """The state of the device's random numbers as text; a GPU's dropout draws from the GPU's own."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return state.numpy().tobytes().hex()


def set_rng_state(text: str, device: torch.device) -> None:
    state = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


TOKENS_AT_ONCE = {"cpu": 512, "cuda": 32_768}
"""Tokens of one forward pass in `predict`, where texts differ in length, by kind of device.

On a CPU so many that activations stay in its caches: a BERT of six blocks, 384 wide, gave 43 texts/s at
32,768, 143 at 4,096, 203 at 1,024, 214 at 512.
"""


@torch.no_grad()
def predict(
    network: Network, inputs: Tensor, device: torch.device, batch_size: int = 1024, precision: str = "float32"
) -> Tensor:
    """(N, C) float32 logits on the CPU, in evaluation mode."""
    network.eval()
    if not len(inputs):
        return torch.empty(0, 0)
    if getattr(network.body, "sequential", False):
        return _predict_texts(network, inputs, device, batch_size, precision)
    chunks = []
    for begin in range(0, len(inputs), batch_size):
        with autocast(device, precision):
            outputs = network(inputs[begin : begin + batch_size].to(device))
        chunks.append(outputs.logits.float().cpu())
    return torch.cat(chunks)


def _predict_texts(
    network: Network, inputs: Tensor, device: torch.device, batch_size: int, precision: str
) -> Tensor:
    order, found = [], []
    tokens = TOKENS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
    for rows, part in text_batches(inputs, batch_size, tokens):
        with autocast(device, precision):
            logits = network(part.to(device)).logits
        order.append(rows)
        found.append(logits.float().cpu())
    logits = torch.empty(len(inputs), found[0].shape[1])
    logits[torch.cat(order)] = torch.cat(found)
    return logits


def text_batches(inputs: Tensor, batch_size: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Texts (N, L) of about one length at a time: their rows, and their tokens without the padding behind.

    At most `batch_size` of them, and so many tokens, padding included.
    """
    positions = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
    lengths = ((inputs != 0) * positions).amax(1).clamp(min=1).cpu()  # (N,)
    order = torch.argsort(lengths, stable=True)
    begin = 0
    while begin < len(order):
        # As many rows as fit when padded to the longest of them.
        ends = lengths[order[begin : begin + batch_size]]
        fits = int((ends * torch.arange(1, len(ends) + 1) <= tokens).sum())
        rows = order[begin : begin + max(1, fits)]
        yield rows, inputs[rows, : int(lengths[rows[-1]])]
        begin += len(rows)
