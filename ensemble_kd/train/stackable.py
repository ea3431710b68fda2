"""Which students can be trained together as stacked parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_kd.artifacts import canonical
from ensemble_kd.config import TrainingConfig
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.stack import deterministic
from ensemble_kd.train.task import MemberTask

OWN_SETTINGS = (
    "seed",
    "alpha",
    "alpha_schedule",
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


def fuse_key(task: MemberTask) -> str | None:
    """Tasks with equal keys can be trained together by `fused_epochs`; None for one that cannot be with any.

    Whether their architecture can be stacked shows with the network: `deterministic`.
    """
    training = TrainingConfig.model_validate(task.training)
    # A specialist starts from its generalist and a phase leaves no answers; the others ask for more than one
    # pass and one step per batch.
    if task.specialist is not None or task.phase is not None:
        return None
    if task.temperature_schedule is not None:  # means over the teachers are kept from epoch to epoch at one T
        return None
    if task.compress:  # a plug-in's hook is given one network
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
    return task.peers is not None or task.branches is not None or task.learner is not None


def fusable(task: MemberTask, data: TrainingData) -> bool:
    """Whether students like this one can be trained together at all."""
    return fuse_key(task) is not None and deterministic(initial_network(task, data), random_inputs(data.info))


def random_inputs(info: dict[str, Any]) -> Tensor:
    """(4, ...) raw inputs of the data's kind."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, *info["input_shape"])
    if info["kind"] == "image":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if info["kind"] == "text":
        return torch.randint(info["vocabulary_size"], shape, generator=generator, dtype=torch.int32)
    return torch.randn(shape, generator=generator)
