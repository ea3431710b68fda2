"""loop, ensemble, targets: what training costs beside the arithmetic it cannot avoid."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import generated
from benchmarks.harness import Measured, available_cores, benchmark, fresh_processes, median, rounded, say

# ---------------------------------------------------------------------------------------------- loop


def _load_and_compare(arrays: dict[str, Any], *, load: Callable[..., Any], hidden: list[int]) -> Any:
    """Runs in the Ray Train worker: its data, and from now on a bare epoch after each of the student's."""
    import torch

    import ensemble_kd.member_loop as member_loop
    from benchmarks.bare import BareLoop
    from ensemble_kd.train.blocks import as_tensor

    data = load(arrays)
    bare = BareLoop(
        as_tensor(arrays["transfer/inputs"]), torch.tensor(arrays["ensemble/logits"][:, 0]), hidden
    )
    original = member_loop.train_member

    def compared(*args: Any, on_epoch: Callable[[dict[str, float]], None], **options: Any) -> bool:
        resumed = time.perf_counter()

        def after(entry: dict[str, float]) -> None:
            nonlocal resumed
            # The optimiser step, evaluation and checkpoint of this epoch, without the bare epoch before.
            whole = time.perf_counter() - resumed
            on_epoch({**entry, "whole_seconds": whole, "bare": bare.epoch()})
            resumed = time.perf_counter()

        return original(*args, on_epoch=after, **options)

    member_loop.train_member = compared  # type: ignore[assignment]
    return data


@benchmark(
    "loop",
    "student's loop in a Ray Train worker, against a bare tensor-indexing loop in the same process",
    "examples/s",
    "at least",
    0.9,
)
def loop(quick: bool) -> Measured:
    """Epochs of the two take turns inside one worker; the first of each is warm-up and left out."""
    from ensemble_kd.data.store import StoreLayout
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages import student_tasks
    from ensemble_kd.stages.start import Basis, Sources
    from ensemble_kd.stages.training_data import load_training_data
    from ensemble_kd.workers import train_members

    rows, epochs, members = (12_800, 4, 5) if quick else (60_000, 8, 5)
    config = generated.config(compute=generated.on_cpu(1))
    info = generated.info(rows)
    task = student_tasks.tasks(config, Sources("data", "store", info["counts"], Basis.alone(config)))[0]
    task.training["epochs"] = epochs
    layout = StoreLayout(1, members, generated.CLASSES)
    load = partial(load_training_data, info=info, layouts={"ensemble": layout}, shards=[], parts={})
    entries: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, Runtime(config.compute) as runtime:
        train_members(
            runtime,
            [task],
            Path(folder) / "members",
            partial(_load_and_compare, load=load, hidden=task.model["hidden"]),
            lambda: generated.shared_arrays(rows, members),
            replicas=1,
            path="student",
            on_event=lambda task, event: entries.append(event["entry"]) if event["kind"] == "epoch" else None,
        )
    entries = entries[1:]
    ours = [entry["examples_per_second"] for entry in entries]
    bare = [entry["bare"] for entry in entries]
    whole = [rows // 128 * 128 / entry["whole_seconds"] for entry in entries]
    detail = {
        "model": "784-800-800-10, batch 128, fused AdamW, KL at T = 4",
        "rows": rows,
        "members": members,
        "ours": rounded(ours, 0),
        "reference": rounded(bare, 0),
        "with_evaluation_and_checkpoint": round(median(whole)),
        "evaluated_rows": generated.HELD_OUT,
    }
    return Measured(median(ours), median(bare), detail)


# ------------------------------------------------------------------------------------------ ensemble


def _span(folder: Path, tasks: list[Any]) -> float:
    """Seconds from the first member's start to the last one's end, from their manifests."""
    from ensemble_kd.train.task import finished

    done = [finished(task, folder) for task in tasks]
    assert all(done)
    starts = [manifest.created - manifest.summary["seconds"] for manifest in done if manifest]
    return max(manifest.created for manifest in done if manifest) - min(starts)


@benchmark(
    "ensemble",
    "four members on 2 workers against 1 worker, from the first member's start to the last one's end",
    "members/s",
    "at least",
    1.7,
)
def ensemble(quick: bool) -> Measured:
    """Runs on 1 and on 2 workers take turns; each starts its own worker group, which is not counted.

    `bare_processes` says what the machine allowed: the same on plain processes that share nothing.
    """
    from benchmarks.bare import teacher_pace
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages import teachers
    from ensemble_kd.stages.training_data import load_training_data
    from ensemble_kd.workers import train_members

    rows, epochs, rounds = (12_800, 3, 1) if quick else (60_000, 2, 3)
    info = generated.info(rows)
    load = partial(load_training_data, info=info, layouts={}, shards=[], parts={})
    found: dict[int, list[float]] = {1: [], 2: []}
    scaling: list[float] = []
    for turn in range(rounds):
        with fresh_processes(2) as pool:
            alone = pool.submit(teacher_pace, 12_800, 3).result()
            both = [pool.submit(teacher_pace, 12_800, 3) for _ in range(2)]
            scaling.append(2 * alone / max(future.result() for future in both))
        for workers in (1, 2):
            config = generated.config(compute=generated.on_cpu(workers))
            tasks = teachers.tasks(config, "data", rows)[:4]
            for task in tasks:
                task.training["epochs"] = epochs
            with tempfile.TemporaryDirectory() as folder, Runtime(config.compute) as runtime:
                if runtime.capacity() < workers:
                    raise RuntimeError(f"needs {workers} free cores, Ray sees {runtime.capacity()}")
                members = Path(folder) / "members"
                train_members(
                    runtime,
                    tasks,
                    members,
                    load,
                    lambda: generated.shared_arrays(rows),
                    replicas=1,
                    path="teachers",
                )
                found[workers].append(_span(members, tasks))
            say(f"round {turn + 1}: {workers} workers {found[workers][-1]:.1f} s")
    detail = {
        "model": "784-1200-1200-10 with dropout, batch 128",
        "rows": rows,
        "epochs": epochs,
        "seconds_on_1": rounded(found[1]),
        "seconds_on_2": rounded(found[2]),
        "bare_processes": rounded(scaling),
        "cores": available_cores(),
    }
    return Measured(4 / median(found[2]), 4 / median(found[1]), detail)


# ------------------------------------------------------------------------------------------- targets


@benchmark(
    "targets",
    "student's epoch with 10 teachers in the store, against 1",
    "s/epoch",
    "at most",
    1.2,
)
def targets(quick: bool) -> Measured:
    """Epochs with the two stores take turns in this process; the first of each is left out."""
    import torch
    from pydantic import TypeAdapter

    from ensemble_kd.config import ModelConfig, TrainingConfig
    from ensemble_kd.data.store import StoreLayout
    from ensemble_kd.models.build import build
    from ensemble_kd.objectives.base import build_objective
    from ensemble_kd.objectives.mixture import DistillationLoss
    from ensemble_kd.stages import student_tasks
    from ensemble_kd.stages.start import Basis, Sources
    from ensemble_kd.stages.training_data import load_training_data
    from ensemble_kd.train.loop import train
    from ensemble_kd.train.member_batches import make_batches

    rows, rounds = (12_800, 4) if quick else (60_000, 8)
    torch.set_num_threads(1)
    info = generated.info(rows)
    config = generated.config()
    task = student_tasks.tasks(config, Sources("data", "store", info["counts"], Basis.alone(config)))[0]
    training = TrainingConfig.model_validate({**task.training, "epochs": 1})
    loss = DistillationLoss(build_objective(task.objective or {}, task.temperature), task.alpha)
    shared = generated.shared_arrays(rows)
    runs: dict[int, Any] = {}
    for members in (1, 10):
        layout = StoreLayout(1, members, generated.CLASSES)
        arrays = shared | {"ensemble/logits": generated.member_logits(rows, members)}
        data = load_training_data(arrays, info=info, layouts={"ensemble": layout}, shards=[], parts={})
        torch.manual_seed(0)
        network = build(TypeAdapter(ModelConfig).validate_python(task.model), info)
        runs[members] = (network, make_batches(task, data, training, torch.device("cpu")))
    found: dict[int, list[float]] = {1: [], 10: []}
    for turn in range(rounds + 1):
        for members in sorted(runs, reverse=turn % 2 == 1):
            network, batches = runs[members]
            progress = train(network, batches, loss, training, seed=0)
            found[members].append(progress.history[-1]["seconds"])
    seconds = {members: times[1:] for members, times in found.items()}
    detail = {
        "model": "784-800-800-10, batch 128",
        "rows": rows,
        "classes": generated.CLASSES,
        "ours": rounded(seconds[10]),
        "reference": rounded(seconds[1]),
    }
    return Measured(median(seconds[10]), median(seconds[1]), detail)
