"""How many students to train together: as many as take least time for each."""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.fused import Fleet, started
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.learner import train_step
from ensemble_kd.train.loop import make_optimizer
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import loss_of
from ensemble_kd.train.stack import quiet
from ensemble_kd.train.stackable import fusable
from ensemble_kd.train.task import MemberTask

COPIES = 6
"""Of each member's weights in memory: weights, step, gradient, two moments, the best so far."""
GAIN = 0.95
"""Stacking, or doubling a stack, pays where a member's step takes at most this share of the time before."""


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
        return train_step(network, network, optimizer, batch, loss, fleet.training, device=device)

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
