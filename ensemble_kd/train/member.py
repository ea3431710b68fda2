"""One member of an ensemble (or one student) from its task to its finished folder. Torch only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from ensemble_kd.artifacts import Manifest, fingerprint, finish, read_manifest, write_json
from ensemble_kd.config import AugmentConfig, ModelConfig, TrainingConfig
from ensemble_kd.data.prepared import Arrays
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.weights import load_weights, save_weights
from ensemble_kd.objectives.base import build_objective
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.batches import (
    Batches,
    Block,
    MemberLogits,
    Source,
    StreamSource,
    Targets,
    TensorSource,
    as_tensor,
    mix,
    slice_block,
)
from ensemble_kd.train.loop import NotFiniteError, Progress, Replicas, predict, train

WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.safetensors"
CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.json"


@dataclass(frozen=True)
class MemberTask:
    """Everything that decides a member's weights, as JSON; its fingerprint names its folder."""

    name: str
    """For people: `teacher-003`, `distilled-seed-0`; not part of the fingerprint."""
    role: str
    """`teacher`, `distilled`, or a baseline: `hard`, `plain`, `pseudo`; not part of the fingerprint."""
    seed: int
    model: dict[str, Any]
    training: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of the data and, where the member reads them, of the soft targets."""
    rows: dict[str, Any] = field(
        default_factory=lambda: {"labelled": True, "bootstrap": False, "fraction": 1.0}
    )
    """Which rows of the transfer set it sees."""
    examples_per_epoch: int = 0
    """Rows of the transfer set, so that a member that sees fewer of them still takes as many steps."""
    augment: dict[str, Any] = field(default_factory=dict)
    """AugmentConfig; empty for none."""
    views: int = 0
    """0: augment anew in every epoch; n: draw one of the n fixed views."""
    alpha: float = 0.0
    objective: dict[str, Any] | None = None
    """The soft loss and its fields; None for hard labels alone."""
    temperature: float = 1.0
    mean: str = "arithmetic"
    weights: list[float] | None = None
    pseudo_labels: bool = False

    @property
    def reads_teacher(self) -> bool:
        return self.alpha > 0 or self.pseudo_labels

    @property
    def settings(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self).items() if k not in ("name", "role")}
        if not self.reads_teacher:  # so that a hard-label baseline outlives a change of T
            for key in ("objective", "temperature", "mean", "weights"):
                kept.pop(key)
        return kept

    @property
    def fingerprint(self) -> str:
        return fingerprint("member", self.settings)

    def folder(self, members: Path) -> Path:
        return members / self.fingerprint


@dataclass
class TrainingData:
    """What the members of one worker group share: arrays held once, or shards to stream."""

    info: dict[str, Any]
    validation: Arrays
    test: Arrays
    transfer: Arrays | None = None
    """The transfer set in memory; None where it is streamed."""
    teacher: MemberLogits | None = None
    """The soft targets in memory, aligned with `transfer`."""
    stream: Callable[[bool, int, int], Callable[[int], Iterator[Block]]] | None = None
    """(with soft targets, seed, views) -> epoch -> blocks, for a transfer set that is not in memory."""


def finished(task: MemberTask, members: Path) -> Manifest | None:
    """The receipt of a member that is trained already."""
    return read_manifest(task.folder(members))


def train_member(
    task: MemberTask,
    data: TrainingData,
    members: Path,
    *,
    device: torch.device | None = None,
    replicas: Replicas | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda entry: None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> bool:
    """Train one member, or go on where its checkpoint stands, and finish its folder.

    The folder then holds the weights, the logits on validation and test rows, and the manifest with the
    history. Returns False, after writing `failed.json`, for a member whose loss became NaN or infinite.
    """
    device = device or torch.device("cpu")
    replicas = replicas or Replicas()
    folder = task.folder(members)
    folder.mkdir(parents=True, exist_ok=True)
    if replicas.rank == 0:
        for stale in folder.glob(".*.tmp"):  # what a killed run was writing
            stale.unlink()
    began = time.perf_counter()
    training = TrainingConfig.model_validate(task.training)
    torch.manual_seed(mix(task.seed, 11))
    network = build(TypeAdapter(ModelConfig).validate_python(task.model), data.info).to(device)
    batches = make_batches(task, data, training, device, replicas)
    soft = build_objective(task.objective, task.temperature) if task.objective and task.alpha > 0 else None
    loss = DistillationLoss(soft, task.alpha, training.label_smoothing)
    validation = as_tensor(data.validation.inputs)
    validation_labels = as_tensor(data.validation.labels)

    def evaluate(network: Network) -> dict[str, float]:
        logits = predict(network, validation, device, precision=training.precision)
        return {
            "validation_loss": float(cross_entropy(logits, validation_labels).mean()),
            "validation_accuracy": float((logits.argmax(1) == validation_labels).float().mean()),
        }

    try:
        progress = train(
            network,
            batches,
            loss,
            training,
            seed=task.seed,
            evaluate=evaluate if replicas.rank == 0 else None,
            checkpoint=folder / CHECKPOINT,
            replicas=replicas,
            on_epoch=on_epoch,
            on_warning=on_warning,
        )
    except NotFiniteError as error:
        if replicas.rank == 0:
            write_json(folder / FAILED, {"name": task.name, "reason": str(error)})
        return False
    if replicas.rank == 0:
        _finish(task, data, network, progress, folder, device, time.perf_counter() - began)
    return True


def _finish(
    task: MemberTask,
    data: TrainingData,
    network: Network,
    progress: Progress,
    folder: Path,
    device: torch.device,
    seconds: float,
) -> None:
    logits = {
        "validation": predict(network, as_tensor(data.validation.inputs), device),
        "test": predict(network, as_tensor(data.test.inputs), device),
    }
    save_weights(network, folder / WEIGHTS)
    partial = folder / f".{PREDICTIONS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in logits.items()}, partial)
    partial.replace(folder / PREDICTIONS)
    labels = as_tensor(data.validation.labels)
    summary = {
        "name": task.name,
        "role": task.role,
        "seed": task.seed,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch or progress.epoch,
        "parameters": network.num_parameters,
        "bytes": (folder / WEIGHTS).stat().st_size,
        "validation_loss": float(cross_entropy(logits["validation"], labels).mean()),
        "validation_accuracy": float((logits["validation"].argmax(1) == labels).float().mean()),
        "seconds": seconds,
        "history": progress.history,
    }
    finish(folder, "member", task.fingerprint, task.settings, task.inputs, [WEIGHTS, PREDICTIONS], summary)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)


def make_batches(
    task: MemberTask,
    data: TrainingData,
    training: TrainingConfig,
    device: torch.device,
    replicas: Replicas | None = None,
) -> Batches:
    """The batches that a task describes, over the data at hand."""
    replicas = replicas or Replicas()
    augment = AugmentConfig.model_validate(task.augment)
    source: Source
    if data.transfer is not None:
        labels = as_tensor(data.transfer.labels)
        inputs, labels, rows = _resident(
            [as_tensor(data.transfer.inputs), labels, pick_rows(task, labels)], device
        )
        source = TensorSource(
            inputs,
            labels,
            rows,
            mix(task.seed, 13),
            data.teacher if task.reads_teacher else None,
            max(1, task.views),
        )
    else:
        assert data.stream is not None, "a transfer set is either in memory or streamed"
        open_epoch = data.stream(task.reads_teacher, mix(task.seed, 13), max(1, task.views))
        source = StreamSource(lambda epoch: _filtered(task, open_epoch(epoch)))
    return Batches(
        source,
        training.batch_size,
        max(1, round(task.examples_per_epoch * task.rows["fraction"]) // training.batch_size),
        Targets(task.temperature, task.mean, task.weights, task.pseudo_labels, task.alpha > 0),
        augment,
        fresh_views=task.views == 0,
        seed=task.seed,
        rank=replicas.rank,
        replicas=replicas.size,
        device=device,
        trim_padding=data.info["kind"] == "text",
    )


def _resident(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """On a GPU, rows live where the model does, as long as they take at most a quarter of its free memory.

    All or none: rows on a GPU cannot pick from inputs that are not.
    """
    if device.type != "cuda":
        return tensors
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return [tensor.to(device) for tensor in tensors] if size < free // 4 else tensors


def pick_rows(task: MemberTask, labels: Tensor) -> Tensor:
    """(n,) row numbers that the member draws its examples from."""
    rows = (labels >= 0).nonzero()[:, 0] if task.rows["labelled"] else torch.arange(len(labels))
    generator = torch.Generator().manual_seed(mix(task.seed, 17))
    if task.rows["fraction"] < 1:
        kept = max(1, round(len(rows) * task.rows["fraction"]))
        rows = rows[torch.randperm(len(rows), generator=generator)[:kept]]
    if task.rows["bootstrap"]:
        rows = rows[torch.randint(len(rows), rows.shape, generator=generator)]
    return rows


def _filtered(task: MemberTask, blocks: Iterator[Block]) -> Iterator[Block]:
    """The streaming form of `pick_rows`: each row decides by a hash of its number."""
    for block in blocks:
        keep = block.labels >= 0 if task.rows["labelled"] else torch.ones_like(block.labels, dtype=torch.bool)
        rows = block.rows.numpy().astype(np.uint64)
        if task.rows["fraction"] < 1:
            keep &= torch.from_numpy(_uniform(rows, mix(task.seed, 17)) < task.rows["fraction"])
        picked = keep.nonzero()[:, 0]
        if task.rows["bootstrap"]:  # Poisson(1) copies of a row: the bootstrap for a stream
            uniform = _uniform(rows, mix(task.seed, 19))
            edges = np.cumsum([np.exp(-1.0) / f for f in (1, 1, 2, 6, 24, 120)])
            copies = torch.from_numpy(np.searchsorted(edges, uniform))
            picked = picked.repeat_interleave(copies[picked])
        yield slice_block(block, picked)


def _uniform(rows: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on (row, seed) alone (splitmix64)."""
    with np.errstate(over="ignore"):
        state = rows + np.uint64((seed * 0x9E3779B97F4A7C15) & (2**64 - 1))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def load_network(task_settings: dict[str, Any], info: dict[str, Any], folder: Path) -> Network:
    """A finished member's network, from its manifest's settings and its weights."""
    network = build(TypeAdapter(ModelConfig).validate_python(task_settings["model"]), info)
    load_weights(network, folder / WEIGHTS)
    return network.eval()


def discard(task: MemberTask, members: Path) -> None:
    """Remove a member's folder, finished or not."""
    shutil.rmtree(task.folder(members), ignore_errors=True)
