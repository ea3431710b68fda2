"""mutual, one: what a step costs where networks learn together, against one network's own.

The residual network of the recipes `mutual` and `one` on images of the size of CIFAR, with hard labels. The
CPU time of one thread counts, so that others on the machine hardly show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.harness import Measured, benchmark, median, rounded, say
from ensemble_kd.config import ResNetConfig, TrainingConfig
from ensemble_kd.config.branches import BranchesConfig
from ensemble_kd.models.branched import Branched
from ensemble_kd.models.build import Network, build
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.branches import Branches, gate_term
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import make_optimizer
from ensemble_kd.train.peers import Peers, mutual_term, with_peers

MUTUAL: dict[str, Any] = {"objective": "kl", "temperature": 1.0, "weight": 1.0}


def information(size: int) -> dict[str, Any]:
    return {
        "kind": "image",
        "input_shape": [size, size, 3],
        "num_classes": 10,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }


def student(size: int) -> Network:
    return build(ResNetConfig(width=8, blocks=1), information(size))


class Steps:
    """Training steps of one learner, on the same batch again and again."""

    def __init__(self, learner: Learner, rows: int, size: int) -> None:
        self.learner, self.training = learner, TrainingConfig(precision="float32")
        self.optimizer = make_optimizer(learner.trained, self.training)
        inputs = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8)
        self.batch = Batch(inputs, torch.zeros(rows, dtype=torch.int64))

    def __call__(self, steps: int) -> float:
        """Milliseconds of CPU time of a step."""
        self.learner.trained.train()
        began = time.process_time()
        for number in range(steps):
            parts = self.learner.trained, self.optimizer, self.batch, self.training, number
            self.learner.step(*parts)
        return 1e3 * (time.process_time() - began) / steps


class Asked(Learner):
    """One network that predicts, and is not trained: what a refreshed prediction costs."""

    def step(self, model: nn.Module, optimizer: Any, batch: Batch, training: Any, number: int) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.network(batch.inputs).logits
        return found


def asked(size: int) -> Learner:
    return Asked(student(size), DistillationLoss())


def alone(size: int) -> Learner:
    return Learner(student(size), DistillationLoss())


def peers(size: int, **how: Any) -> Learner:
    return Peers(
        [student(size) for _ in range(2)], with_peers(DistillationLoss(), mutual_term(MUTUAL), 2), **how
    )


def branches(size: int, section: Literal[2, 3]) -> Learner:
    settings = BranchesConfig(section=section)
    whole = build(ResNetConfig(width=8, branches=settings.count, branch_section=section), information(size))
    assert isinstance(whole.body, Branched)
    views = [student(size) for _ in range(settings.count)]
    for i, view in enumerate(views):
        view.body = whole.body.branch(i)
    return Branches(whole, views, DistillationLoss(), gate_term(settings.model_dump()), settings.ship)


def compared(
    learners: dict[str, Callable[[int], Learner]], quick: bool
) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Milliseconds of one network's step, each learner's ratio to it, and how it was measured.

    Steps of all take turns with the reference's; the median over ratios of neighbours counts.
    """
    rows, size, rounds, steps = (32, 8, 3, 1) if quick else (128, 32, 9, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        reference = Steps(alone(size), rows, size)
        measured = {name: Steps(make(size), rows, size) for name, make in learners.items()}
        for each in (reference, *measured.values()):
            each(1)
        ratios: dict[str, list[float]] = {name: [] for name in learners}
        before: list[float] = []
        for turn in range(rounds):
            for name, each in measured.items():
                before.append(reference(steps))
                ratios[name].append(each(steps) / before[-1])
            say(f"round {turn}: reference {median(before):.1f} ms")
    finally:
        torch.set_num_threads(threads)
    detail = {
        "networks": "residual, 8-16-32 channels, one block a section",
        "batch": f"{rows} images of {size} x {size} x 3, one thread",
        "reference_ms": rounded(before, 1),
    }
    return median(before), {name: median(values) for name, values in ratios.items()}, detail


@benchmark(
    "mutual",
    "step of two networks that learn together, against one network's step",
    "ms/step",
    "at most",
    2.2,
)
def mutual(quick: bool) -> Measured:
    """Simultaneous updates, the default; sequential ones and codistillation are in the detail.

    Sequential updates have a bound of their own. Two networks take two steps, and the second reads what the
    first predicts after its step: a forward pass that nothing has computed, since the next batch is another.
    With K networks that is K steps and K - 1 forward passes.
    """
    learners: dict[str, Callable[[int], Learner]] = {
        "simultaneous": peers,
        "sequential": lambda size: peers(size, updates="sequential"),
        "refreshed every 50 steps": lambda size: peers(size, refresh_steps=50),
        "a forward pass": asked,
    }
    own, ratios, detail = compared(learners, quick)
    detail["least that sequential updates take"] = round(2 + ratios["a forward pass"], 3)
    detail["ratios"] = {name: round(ratio, 3) for name, ratio in ratios.items()}
    return Measured(own * ratios["simultaneous"], own, detail)


@benchmark(
    "one", "step of three branches of the last section, against one network's step", "ms/step", "at most", 1.8
)
def one(quick: bool) -> Measured:
    """Branches from the section before are in the detail."""
    learners: dict[str, Callable[[int], Learner]] = {
        "from section 3": lambda size: branches(size, 3),
        "from section 2": lambda size: branches(size, 2),
    }
    own, ratios, detail = compared(learners, quick)
    detail["ratios"] = {name: round(ratio, 3) for name, ratio in ratios.items()}
    return Measured(own * ratios["from section 3"], own, detail)
