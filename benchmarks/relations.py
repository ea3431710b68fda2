"""relations: what losses on maps and on relations between rows add to a step of distillation.

Residual networks on images of CIFAR's size, those of the recipe `attention_transfer`. The teacher runs beside
the student on both sides, and the reference is the soft loss alone. The CPU time of one thread counts, so
that others on the machine hardly show.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.harness import Measured, benchmark, median, rounded, say
from ensemble_kd.config import ResNetConfig, TrainingConfig
from ensemble_kd.models.build import build
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.train.batches import Targets
from ensemble_kd.train.learner import WithLearned, train_step
from ensemble_kd.train.loop import make_optimizer
from ensemble_kd.train.member_loss import prepare_loss
from ensemble_kd.train.online import Online

CPU = torch.device("cpu")
TEMPERATURE = 4.0
NAMES = (
    "hint",
    "attention_transfer",
    "fsp",
    "rkd_distance",
    "rkd_angle",
    "darkrank_hard",
    "darkrank_soft",
    "similarity_preserving",
    "correlation_congruence",
    "crd",
)
EXCEPTED = "darkrank_soft"
"""Its costs grow with the factorial of its list; reported, and not held to the bound."""


class Steps:
    """Training steps of one student with one loss, on the same batch again and again."""

    def __init__(self, name: str | None, rows: int, size: int) -> None:
        info: dict[str, Any] = {
            "kind": "image",
            "input_shape": [size, size, 3],
            "num_classes": 10,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        torch.manual_seed(0)
        self.network = build(ResNetConfig(width=8, blocks=1), info)
        teacher = build(ResNetConfig(width=24, blocks=1), info)
        self.training = TrainingConfig(precision="float32")
        terms = build_terms([] if name is None else [{"name": name}], TEMPERATURE, "student.terms")
        self.loss = DistillationLoss(build_objective({"name": "kl"}, TEMPERATURE), 1.0, terms=terms)
        targets = Targets(TEMPERATURE, soft=True)
        self.online = Online([teacher], self.loss.wants, "float32", CPU, targets)
        learned = prepare_loss(self.loss, self.network, [teacher], info, CPU)
        self.model = WithLearned(self.network, learned)
        self.optimizer = make_optimizer(self.model, self.training)
        inputs = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8)
        self.batch = Batch(inputs, torch.zeros(rows, dtype=torch.int64))

    def __call__(self, steps: int) -> float:
        """Milliseconds of CPU time of a step."""
        self.model.train()
        began = time.process_time()
        for _ in range(steps):
            parts = self.model, self.network, self.optimizer, self.batch, self.loss, self.training
            train_step(*parts, device=CPU, online=self.online)
        return 1e3 * (time.process_time() - began) / steps


@benchmark(
    "relations",
    "step with the costliest loss on maps or relations beside the soft loss, against the soft loss alone",
    "ms/step",
    "at most",
    1.25,
)
def relations(quick: bool) -> Measured:
    """Steps of all losses take turns with the reference's; the median over ratios of neighbours counts."""
    rows, size, rounds, steps = (32, 8, 3, 1) if quick else (128, 32, 9, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reference = Steps(None, rows, size)
        measured = {name: Steps(name, rows, size) for name in NAMES}
        for each in (reference, *measured.values()):
            each(1)
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        ratios: dict[str, list[float]] = {name: [] for name in NAMES}
        before: list[float] = []
        for turn in range(rounds):
            for name, each in measured.items():
                before.append(reference(steps))
                times[name].append(each(steps))
                ratios[name].append(times[name][-1] / before[-1])
            say(f"round {turn}: reference {median(before):.1f} ms")
    finally:
        torch.set_num_threads(threads)
    found = {name: median(values) for name, values in ratios.items()}
    worst = max((name for name in NAMES if name != EXCEPTED), key=lambda name: found[name])
    detail = {
        "networks": "residual, 24-48-96 and 8-16-32 channels, one block a section",
        "batch": f"{rows} images of {size} x {size} x 3, one thread",
        "costliest": worst,
        "ratios": {name: round(ratio, 3) for name, ratio in found.items()},
        "reference_ms": rounded(before, 1),
    }
    own = median(before)
    return Measured(own * found[worst], own, detail)
