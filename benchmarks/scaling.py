"""scaling, members: more workers for the same work, and more members for the same workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks import generated
from benchmarks.harness import Measured, available_cores, benchmark, fresh_processes, median, rounded, say
from benchmarks.soft_targets import _anonymous
from ensemble_kd.stages import soft_targets as stage

# ------------------------------------------------------------------------------------------- scaling

WORKERS = (1, 2, 4)
MODEL = {"name": "mlp", "hidden": [1200, 1200], "dropout": 0.3}
CLASS_SETS = ([0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9])
"""Specialists of equal size, so that their number alone decides how they spread over workers."""


class TimedLabeller(stage.Labeller):
    """The stage's actor, whose entries say when a shard was begun and ended."""

    def make(self, item: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        entry = super().make(item)
        return {**entry, "began": began, "ended": time.time()}


def expected(seconds: float, items: int, workers: int, cores: int) -> float:
    """The model: rounds of items, each of `seconds` on a core of its own, on no more cores than there are."""
    return ceil(items / workers) * seconds * max(1.0, workers / cores)


def _train(workers: int, tasks: list[Any], folder: Path, arrays: dict[str, Any], load: Any) -> list[float]:
    """Seconds of the whole call, and from the first member's start to the last one's end."""
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.train.task import finished
    from ensemble_kd.workers import train_members

    began = time.perf_counter()
    with Runtime(generated.config(compute=generated.on_cpu(workers)).compute) as runtime:
        train_members(runtime, tasks, folder, load, lambda: arrays, replicas=1, path="scaling")
    whole = time.perf_counter() - began
    done = [manifest for task in tasks if (manifest := finished(task, folder))]
    assert len(done) == len(tasks)
    first = min(manifest.created - manifest.summary["seconds"] for manifest in done)
    return [whole, max(manifest.created for manifest in done) - first]


def _label(workers: int, folder: Path, data: Path, info: dict[str, Any], teachers: list[Any]) -> list[float]:
    """As `_train`, from the first shard's start to the last one's end."""
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages.context import Context
    from ensemble_kd.tracking import Tracker

    config = generated.config(soft_targets={"num_actors": workers}, compute=generated.on_cpu(workers))
    tracker = Tracker(config.tracking, folder, config.name, say)
    names = {f"teacher-{member:03d}": f"{member}" for member in range(len(teachers))}
    original, began = stage.Labeller, time.perf_counter()
    stage.Labeller = TimedLabeller  # type: ignore[misc]
    try:
        with Runtime(config.compute) as runtime:
            context = Context(config, folder / "run", runtime, tracker)
            plan = stage.plan(config, context.folder, "data", names)
            manifest = stage.run(context, plan, data, info, teachers)
    finally:
        stage.Labeller = original  # type: ignore[misc]
    entries = manifest.files.values()
    span = max(entry["ended"] for entry in entries) - min(entry["began"] for entry in entries)
    return [time.perf_counter() - began, span]


def _stages(
    folder: Path, rows: int, shards: int
) -> dict[str, tuple[int, Callable[[int, Path], list[float]]]]:
    """By stage: how many items it spreads, and the function that runs it on so many workers."""
    from ensemble_kd.stages import specialists, teachers
    from ensemble_kd.stages.training_data import load_training_data, with_generalists

    config = generated.config(
        teachers={"model": MODEL, "training": {"epochs": 1}, "num_members": len(CLASS_SETS)},
        specialists={"training": {"epochs": 1}},
    )
    info, arrays = generated.info(rows), generated.shared_arrays(rows)
    load = partial(load_training_data, info=info, layouts={}, shards=[], parts={})
    members = teachers.tasks(config, "data", rows)
    _train(1, members[:1], folder / "generalist", arrays, load)  # and Ray's first worker is warm
    entry = {"name": members[0].name, "fingerprint": members[0].fingerprint}
    sets = [{"classes": classes} for classes in CLASS_SETS]
    special = specialists.tasks(config, {"data": "data"}, sets, [entry], arrays["transfer/labels"])
    beside = partial(with_generalists, load=load, generalists=str(folder / "generalist"))
    many = generated.info(shards * 8192)
    generated.write_prepared(folder / "data", many)
    networks = generated.write_teachers(folder / "networks", 5, MODEL, many)
    return {
        "teachers": (len(members), lambda w, place: _train(w, members, place, arrays, load)),
        "specialists": (len(special), lambda w, place: _train(w, special, place, arrays, beside)),
        "soft targets": (shards, lambda w, place: _label(w, place, folder / "data", many, networks)),
    }


@benchmark(
    "scaling",
    "speed-up of teachers, specialists and soft targets on 2 workers (the least), against bare processes",
    "x",
    "at least",
    0.8,
)
def scaling(quick: bool) -> Measured:
    """The same work on 1, 2 and 4 workers, in turns, several times.

    Counted is from the first item's start to the last one's end; what starting the workers takes is beside
    it. Bare processes that share nothing say what two cores of this machine allow. Where there are fewer
    cores than workers, more workers cannot be faster, and must not be slower.
    """
    import ray

    from benchmarks.bare import teacher_pace

    rows, shards, rounds = (6400, 4, 1) if quick else (25_600, 16, 3)
    cores = available_cores()
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init(
            "local",
            num_cpus=max(WORKERS),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            runs = _stages(folder, rows, shards)
            found: dict[str, dict[int, list[list[float]]]] = {s: {w: [] for w in WORKERS} for s in runs}
            for turn in range(rounds):
                with fresh_processes(2) as pool:
                    alone = pool.submit(teacher_pace, 12_800, 3).result()
                    both = [pool.submit(teacher_pace, 12_800, 3) for _ in range(2)]
                    bare.append(2 * alone / max(future.result() for future in both))
                for which, (_, run) in runs.items():
                    for workers in WORKERS:
                        place = folder / f"{which}-{workers}-{turn}"
                        found[which][workers].append(run(workers, place))
                        whole, span = found[which][workers][-1]
                        say(f"{which}, {workers} workers: {span:.1f} s, {whole:.1f} s with the start")
        finally:
            ray.shutdown()
    detail: dict[str, Any] = {
        "cores": cores,
        "model": "784-1200-1200-10, batch 128; 5 of them for soft targets",
        "rows": {"teachers": rows, "specialists": rows, "soft targets": shards * 8192},
        "bare_processes": rounded(bare),
    }
    least, slower = [], []
    for which, (items, _) in runs.items():
        spans = {w: median([span for _, span in found[which][w]]) for w in WORKERS}
        wholes = {w: median([whole for whole, _ in found[which][w]]) for w in WORKERS}
        least.append(spans[1] / spans[2])
        if spans[4] > 1.25 * spans[2]:
            slower.append(which)
        detail[which] = {
            "items": items,
            "seconds": {w: rounded([span for _, span in found[which][w]], 2) for w in WORKERS},
            "speed_up": {w: round(spans[1] / spans[w], 2) for w in WORKERS},
            "expected_seconds": {w: round(expected(spans[1] / items, items, w, cores), 2) for w in WORKERS},
            "start_seconds": {w: round(wholes[w] - spans[w], 2) for w in WORKERS},
        }
    problem = f"4 workers are slower than 2: {', '.join(slower)}" if slower else None
    return Measured(min(least), median(bare), detail, problem)


# ------------------------------------------------------------------------------------------- members

GROWTH = 100.0
WORKER_GROUPS = 1


def _many_members(name: str, members: int) -> dict[str, Any]:
    """The pipeline up to the teachers in this process: its memory, its worker groups, their workers."""
    import ray.train.torch as ray_torch

    from ensemble_kd import pipeline
    from ensemble_kd.stages import members as helpers
    from ensemble_kd.stages.context import Console

    groups: list[Any] = []
    workers: set[int] = set()
    samples: list[tuple[float, float]] = []
    """Seconds since the start, and MB."""
    began = time.perf_counter()

    class Counted(ray_torch.TorchTrainer):
        def fit(self) -> Any:
            groups.append(self)
            return super().fit()

    train = helpers.train_members

    def watched(*args: Any, on_event: Callable[[Any, Any], None], **options: Any) -> None:
        def see(task: Any, event: Any) -> None:
            on_event(task, event)
            if event["kind"] == "start":
                workers.add(event["pid"])
            if event["kind"] == "done":
                samples.append((time.perf_counter() - began, _anonymous(Path("/proc/self")) / 1e6))

        train(*args, on_event=see, **options)

    ray_torch.TorchTrainer = Counted
    helpers.train_members = watched  # type: ignore[assignment]
    config = generated.config(
        data={"source": "digits", "kind": "image"},
        teachers={
            "num_members": members,
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 32},
        },
        compute=generated.on_cpu(2),
        tracking={"enabled": True},
    )
    warnings: list[str] = []
    done = pipeline.run(
        config, Path(name) / "runs" / "many", until="teachers", console=Console(warning=warnings.append)
    )
    return {
        "finished": len(done["teachers"].summary["members"]),
        "groups": len(groups),
        "workers": len(workers),
        "samples": samples,
        "seconds": time.perf_counter() - began,
        "warnings": warnings,
    }


@benchmark(
    "members",
    "growth of the driver's memory from the first to the last of 200 members on 2 workers, against 100 MB",
    "MB",
    "at most",
    1.0,
)
def members(quick: bool) -> Measured:
    """Tiny members through the pipeline, tracked by MLflow in SQLite, in a fresh process.

    Memory is anonymous resident pages, read whenever a member is done; growth is the most of them less the
    first. One worker group, whose two workers train all members.
    """
    count = 20 if quick else 200
    with tempfile.TemporaryDirectory() as folder, fresh_processes(1) as pool:
        found = pool.submit(_many_members, folder, count).result()
    seconds, sizes = zip(*found["samples"], strict=True)
    tenth = max(1, count // 10)
    detail = {
        "members": found["finished"],
        "worker_groups": found["groups"],
        "workers": found["workers"],
        "driver_at_first_member (MB)": round(sizes[0], 1),
        "driver_at_each_tenth (MB)": rounded(sizes[tenth - 1 :: tenth], 1),
        "seconds_at_each_tenth": rounded(seconds[tenth - 1 :: tenth], 1),
        "seconds": round(found["seconds"], 1),
        "warnings": found["warnings"],
    }
    problems = []
    if found["finished"] != count:
        problems.append(f"{found['finished']} members of {count}")
    if found["groups"] != WORKER_GROUPS:
        problems.append(f"{found['groups']} worker groups, {WORKER_GROUPS} allowed")
    if found["workers"] != 2:
        problems.append(f"{found['workers']} workers trained members, 2 expected")
    return Measured(max(sizes) - sizes[0], GROWTH, detail, "; ".join(problems) or None)
