"""fused: what many small students trained together cost, and whether it is known where that pays."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import generated
from benchmarks.harness import Measured, benchmark, median, rounded, say

if TYPE_CHECKING:
    from ensemble_kd.train.group_data import TrainingData
    from ensemble_kd.train.task import MemberTask

DIGITS = [8, 8, 1]
HELD_OUT = 250
"""Rows of validation and of test, as the digits recipe has them."""
MEMBERS = 5
TOGETHER = 16
SIZES = [([32, 32], DIGITS, 64), ([128, 128], DIGITS, 64), ([64, 64], generated.PIXELS, 64)]
LARGE = ([800, 800], generated.PIXELS, 128)
"""Hidden layers, pixels, batch size."""
WORSE = 1.1
"""How much more time per student than the better of 1 and 16 the chosen number may take."""


def _data(rows: int, pixels: list[int]) -> TrainingData:
    """Images of this shape with labels on every row and soft targets of five members."""
    from ensemble_kd.data.records import Arrays
    from ensemble_kd.data.store import StoreLayout
    from ensemble_kd.train.group_data import TrainingData
    from ensemble_kd.train.stored import StoredLogits

    parts = []
    for seed, count in enumerate((HELD_OUT, HELD_OUT, rows)):
        images, labels = generated.images(count, seed)
        crop = np.ascontiguousarray(images[:, : pixels[0], : pixels[1]])
        parts.append(Arrays(crop, labels, np.arange(count)))
    layout = StoreLayout(1, MEMBERS, generated.CLASSES)
    stored = StoredLogits({"logits": generated.member_logits(rows, MEMBERS)}, layout)
    return TrainingData(generated.info(rows, shape=pixels), parts[0], parts[1], parts[2], stored)


def _tasks(count: int, hidden: list[int], batch: int, rows: int, epochs: int) -> list[MemberTask]:
    """A grid of temperatures and alphas."""
    from ensemble_kd.config import TrainingConfig
    from ensemble_kd.train.task import MemberTask

    side = round(count**0.5)
    training = TrainingConfig(epochs=epochs, batch_size=batch, weight_decay=0.01)
    return [
        MemberTask(
            name=f"student-{i}",
            role="distilled",
            seed=0,
            model={"name": "mlp", "hidden": hidden},
            training=training.model_dump(mode="json"),
            inputs={"data": "generated", "soft_targets": "generated"},
            rows={"labelled": False, "bootstrap": False, "fraction": 1.0},
            examples_per_epoch=rows,
            alpha=0.1 + 0.9 * (i % side) / max(1, side - 1),
            objective={"name": "kl"},
            temperature=float(1 + i // side),
        )
        for i in range(count)
    ]


@benchmark(
    "fused",
    "16 students 64-32-32-10 trained together, batch 64, against one by itself; whole epochs",
    "s/epoch",
    "at most",
    4.0,
)
def fused(quick: bool) -> Measured:
    """Epochs of one student, of 16 and of 64 take turns, each with evaluation and checkpoint.

    `sizes` asks for each network what 16 take per student, against one by itself, and how many `choose_fuse`
    puts together; `above_better` is what that takes per student against the better of 1 and 16.
    """
    import torch

    torch.set_num_threads(1)
    rows, epochs = (1280, 6) if quick else (1280, 40)
    found = _epochs(rows, epochs)
    steps = rows // 64
    whole = {n: median([whole for whole, _ in times]) for n, times in found.items()}
    step = {n: median([seconds for _, seconds in times]) / steps for n, times in found.items()}
    sizes, problem = {}, None
    for hidden, pixels, batch in SIZES[:1] if quick else [*SIZES, LARGE]:
        name = "-".join(map(str, [pixels[0] * pixels[1], *hidden, generated.CLASSES]))
        sizes[name] = _choice(hidden, pixels, batch, 3 if quick else 7)
        say(f"{name}: {sizes[name]}")
        if sizes[name]["above_better"] > WORSE:
            problem = (
                f"{name}: {sizes[name]['chosen']} together, {sizes[name]['above_better']:.2f} x the better"
            )
    detail = {
        "rows": rows,
        "evaluated_rows": HELD_OUT,
        "members": MEMBERS,
        "epochs_of_one": rounded([whole for whole, _ in found[1]], 4),
        "epochs_of_16": rounded([whole for whole, _ in found[16]], 4),
        "milliseconds_per_step": {n: round(1e3 * seconds, 3) for n, seconds in step.items()},
        "times_one": {n: round(seconds / whole[1], 2) for n, seconds in whole.items()},
        "times_one_in_steps_alone": {n: round(seconds / step[1], 2) for n, seconds in step.items()},
        "sizes": sizes,
    }
    return Measured(whole[TOGETHER], whole[1], detail, problem)


def _epochs(rows: int, epochs: int) -> dict[int, list[tuple[float, float]]]:
    """Seconds of (the whole epoch, its steps) of 1, 16 and 64 students, without the first one."""
    from ensemble_kd.train.fused import fused_epochs
    from ensemble_kd.train.member import member_epochs

    data = _data(rows, DIGITS)
    found: dict[int, list[tuple[float, float]]] = {1: [], 16: [], 64: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = {n: _tasks(n, [32, 32], 64, rows, epochs) for n in found}
        runs: dict[int, Any] = {
            n: fused_epochs(tasks[n], data, folder / f"{n}", checkpoint=folder / f"{n}.safetensors")
            if n > 1
            else member_epochs(tasks[n][0], data, folder / "1")
            for n in found
        }
        for turn in range(epochs):
            for n in sorted(runs, reverse=turn % 2 == 1):
                began = time.perf_counter()
                entry = next(runs[n])
                whole = time.perf_counter() - began
                # An entry of several has each one's share.
                found[n].append((whole, entry["seconds"] if n == 1 else n * entry[0]["seconds"]))
        for run in runs.values():
            run.close()
    return {n: times[1:] for n, times in found.items()}


def _choice(hidden: list[int], pixels: list[int], batch: int, rounds: int) -> dict[str, float]:
    from ensemble_kd.train.stack_size import choose_fuse, measure

    rows = 16 * batch
    data = _data(rows, pixels)
    task = _tasks(1, hidden, batch, rows, 1)[0]
    began = time.perf_counter()
    chosen = choose_fuse(task, data, TOGETHER)
    seconds = time.perf_counter() - began
    shares: dict[int, list[float]] = {n: [] for n in {1, TOGETHER, chosen}}
    for _ in range(rounds):
        for n in sorted(shares, reverse=True):
            if n > 1:
                one, together = measure(task, data, n, 4)
                shares[n].append(together / n)
                shares[1].append(one)
    per_student = {n: median(times) for n, times in shares.items()}
    return {
        "16_per_student": round(per_student[TOGETHER] / per_student[1], 3),
        "chosen": chosen,
        "above_better": round(per_student[chosen] / min(per_student[1], per_student[TOGETHER]), 3),
        "seconds_to_choose": round(seconds, 2),
    }
