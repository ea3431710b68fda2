"""A small problem of numbers, its members' tasks and data, for the tests of the training room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig, MLPConfig, TrainingConfig
from ensemble_kd.data.records import Arrays
from ensemble_kd.models.build import Network, build
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import Block, Picked, TensorSource
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.task import MemberTask

FEATURES, CLASSES = 6, 3
INFO: dict[str, Any] = {
    "kind": "numeric",
    "input_shape": [FEATURES],
    "num_classes": CLASSES,
    "class_names": ["a", "b", "c"],
    "mean": [0.0] * FEATURES,
    "std": [1.0] * FEATURES,
    "vocabulary_size": 0,
    "preprocess": {"columns": {"input": "x", "label": "y", "id": None}},
    "counts": {"train": 96, "validation": 30, "test": 30, "transfer": 96, "labelled": 96},
}
MODEL = {"name": "mlp", "hidden": [16], "dropout": 0.2}


def arrays(rows: int, seed: int) -> Arrays:
    """Classes that a line separates, with some noise."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, FEATURES)).astype(np.float32)
    labels = (inputs[:, :CLASSES] + 0.2 * generator.normal(size=(rows, CLASSES))).argmax(1)
    return Arrays(inputs, labels.astype(np.int64), np.arange(rows))


def settings(**changes: Any) -> TrainingConfig:
    """Short training in float32."""
    defaults = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "precision": "float32"}
    return TrainingConfig.model_validate({**defaults, **changes})


def network(seed: int = 0, **changes: Any) -> Network:
    torch.manual_seed(seed)
    return build(MLPConfig.model_validate({**MODEL, **changes}), INFO)


def batches(batch_size: int = 16, rows: int = 96, **changes: Any) -> Batches:
    data = arrays(rows, 0)
    source = TensorSource(
        torch.from_numpy(data.inputs), torch.from_numpy(data.labels), torch.arange(rows), seed=5
    )
    return Batches(source, batch_size, rows // batch_size, Targets(), AugmentConfig(), **changes)


class Members:
    """Soft targets in memory: two members that know the right class, less and more surely."""

    num_views = 1

    def __init__(self, labels: np.ndarray) -> None:
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).float()
        self.logits = torch.stack([2 * one_hot, 4 * one_hot], 1)  # (N, M, C)

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return self.logits[rows]


def data(unlabelled: int = 0) -> TrainingData:
    """The first `unlabelled` rows of the transfer set have no label, the members know it."""
    transfer = arrays(96, 0)
    members = Members(transfer.labels)
    labels = transfer.labels.copy()
    labels[:unlabelled] = -1
    transfer = Arrays(transfer.inputs, labels, transfer.ids)
    return TrainingData(INFO, arrays(30, 1), arrays(30, 2), transfer, members)


def task(role: str = "hard", **changes: Any) -> MemberTask:
    """A member's task: `teacher`, `hard`, `pseudo` or `distilled`."""
    fields: dict[str, Any] = {
        "name": f"{role}-seed-0",
        "role": role,
        "seed": 7,
        "model": MODEL,
        "training": settings().model_dump(mode="json"),
        "inputs": {"data": "0123"},
        "examples_per_epoch": 96,
    }
    if role in ("distilled", "pseudo"):
        fields["rows"] = {"labelled": False, "bootstrap": False, "fraction": 1.0}
    if role == "distilled":
        fields |= {"alpha": 0.5, "objective": {"name": "kl"}, "temperature": 2.0}
    if role == "pseudo":
        fields["pseudo_labels"] = True
    return MemberTask(**{**fields, **changes})


def streamed(whole: TrainingData, shard: int = 20) -> TrainingData:
    """The same rows as a stream of shards, each in an order that follows from (seed, epoch)."""
    assert whole.transfer is not None
    inputs, labels = torch.from_numpy(whole.transfer.inputs), torch.from_numpy(whole.transfer.labels)

    def stream(targets: str | None, seed: int, views: int) -> Callable[[int], Iterator[Block]]:
        def open_epoch(epoch: int) -> Iterator[Block]:
            generator = torch.Generator().manual_seed(seed + epoch)
            for begin in range(0, len(labels), shard):
                rows = torch.arange(begin, min(begin + shard, len(labels)))
                rows = rows[torch.randperm(len(rows), generator=generator)]
                none = torch.zeros_like(rows)
                members = Picked(whole.teacher, rows, none) if targets and whole.teacher else None
                yield Block(rows, inputs[rows], labels[rows], members, none)

        return open_epoch

    return replace(whole, transfer=None, teacher=None, stream=stream)
