"""Which students of a stage are trained as stacked parameters, and with which others.

A small network's step is mostly the cost of starting its operations; seeds of one role share it.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from ensemble_kd.config import Config, ModelConfig
from ensemble_kd.models.build import build
from ensemble_kd.train.stack import deterministic
from ensemble_kd.train.stackable import fuse_key, random_inputs
from ensemble_kd.train.task import MemberTask

SMALL = 2**20
"""Weights x examples of a batch up to which a step is the cost of starting its operations, which students in
a stack share: above, a stack of ten costs nearly as much as ten."""


def stackable(task: MemberTask, config: Config, info: dict[str, Any]) -> bool:
    """Whether students like this one can be trained as one stack, and are so small that it pays."""
    if fuse_key(task) is None or config.student.replicas_per_member > 1:
        return False
    model: Any = TypeAdapter(ModelConfig).validate_python(task.model)  # an assistant's is its own
    network = build(model, info)
    if network.num_parameters * task.training["batch_size"] > SMALL:
        return False
    return deterministic(network, random_inputs(info))


def stacks_of(tasks: list[MemberTask], config: Config, info: dict[str, Any]) -> list[list[MemberTask]]:
    """The seeds of each role as one stack, in order; roles of one student, or that cannot, are left out.

    What is in a stack follows from the tasks alone, not from the number of processes: rounding depends on it.
    """
    groups: dict[tuple[str, str | None], list[MemberTask]] = {}
    for task in {task.fingerprint: task for task in reversed(tasks)}.values():  # one of each, the first
        groups.setdefault((task.role, fuse_key(task)), []).append(task)
    found = [group[::-1] for group in groups.values() if len(group) > 1]
    return [group for group in found if stackable(group[0], config, info)]
