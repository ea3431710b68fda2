"""clusters, specialists, combine: what it takes to find specialists, to train them and to ask them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import generated
from benchmarks.harness import Measured, benchmark, fresh_processes, median, rounded, say
from ensemble_kd.artifacts import Identity

# ------------------------------------------------------------------------------------------ clusters

CLUSTERS = 61
"""As many as the paper has for its 15,000 classes, of 300 each (arXiv 1503.02531, table 4)."""
GB = 12.0
KEPT, CONFUSED = 20, 15
"""Classes that the store keeps of a prediction, and those of them that are of the label's group."""


def _predictions(classes: int, rows: int, members: int, seed: int) -> dict[str, np.ndarray]:
    """Columns of a store: each prediction names the label, others of its group, and five from elsewhere.

    Group g are the classes g, g + CLUSTERS, g + 2 CLUSTERS and so on.
    """
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, (rows, 1)).repeat(members, 1)[:, :, None]  # (B, M, 1)
    group = label % CLUSTERS
    inside = group + CLUSTERS * np.arange(-(-classes // CLUSTERS))  # (B, M, classes of a group)
    chance = generator.random(inside.shape)
    chance[inside >= classes] = 2.0  # the last groups have one class less
    chance[inside == label] = -1.0
    inside = np.take_along_axis(inside, chance.argsort(-1)[..., :CONFUSED], -1)
    steps = generator.random((rows, members, CLUSTERS - 1)).argsort(-1)[..., : KEPT - CONFUSED]
    outside = (group + 1 + steps) % CLUSTERS  # one class of each of five other groups
    outside = outside + CLUSTERS * generator.integers(0, classes // CLUSTERS, outside.shape)
    slopes = generator.uniform(0.25, 0.75, (rows, members, 1))
    columns = {
        "values": -slopes * np.arange(KEPT),
        "indices": np.concatenate([inside, outside], -1),
        "rest": np.full((rows, members), np.log(1e-3)),  # a thousandth of the most probable class
    }
    return {name: column[:, None] for name, column in columns.items()}  # one view


def _write_predictions(folder: Path, classes: int, rows: int, members: int) -> Any:
    """A finished store of soft targets, some thousand rows at a time; its manifest."""
    from ensemble_kd.artifacts import finish
    from ensemble_kd.data.store import ShardWriter, StoreLayout, shard_name

    folder.mkdir(parents=True)
    layout, entries = StoreLayout(1, members, classes, KEPT), {}
    for shard, first in enumerate(range(0, rows, 8192)):
        writer, end = ShardWriter(folder / shard_name(shard), layout), min(first + 8192, rows)
        for begin in range(first, end, 2048):
            numbers = np.arange(begin, min(begin + 2048, end))
            writer.write(numbers, **_predictions(classes, len(numbers), members, begin))
        entries[shard_name(shard)] = writer.close()
    summary = {"layout": asdict(layout), "rows": rows}
    return finish(folder, Identity("soft_targets", "0" * 16, {}, {}), entries, summary, known=entries)


def _find_clusters(name: str, classes: int, receipt: Any) -> dict[str, Any]:
    """The stage in this process; what it found, seconds of its parts, and peak memory in bytes."""
    from ensemble_kd.artifacts import Manifest
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages import clusters as stage
    from ensemble_kd.stages.context import Context
    from ensemble_kd.stages.upstream import Upstream
    from ensemble_kd.tracking import Tracker

    seconds: dict[str, float] = {}

    def timed(part: str) -> None:
        original: Callable[..., Any] = getattr(stage, part)

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = original(*args, **options)
            seconds[part] = time.perf_counter() - began
            return result

        setattr(stage, part, call)

    for part in ("predictions_matrix", "cluster_columns", "assign_classes"):
        timed(part)
    folder = Path(name)
    config = generated.config(
        clusters={"num_clusters": CLUSTERS, "classes_per_specialist": classes // 50},
        compute=generated.on_cpu(1),
    )
    tracker = Tracker(config.tracking, folder, config.name, say)
    info = {"num_classes": classes, "class_names": [str(c) for c in range(classes)]}
    even = {"calibration": {"rows": 0, "temperatures": [1.0]}}
    teachers = Manifest("teachers", "generated", {}, {}, {}, even, 0.0)
    before = _peak()
    with Runtime(config.compute) as runtime:
        context = Context(config, folder / "run", runtime, tracker)
        plan = stage.plan(config, context.folder, "data", "store")
        above = Upstream(folder / "data", info, (folder / "store", receipt), teachers)
        manifest = stage.run(context, plan, above)
        spread = runtime.started
    return {
        "sets": [cluster["classes"] for cluster in manifest.summary["clusters"]],
        "captured": manifest.summary["confusion_captured"],
        "seconds": {**seconds, "all": manifest.summary["seconds"]},
        "before": before,
        "peak": _peak(),
        "spread": spread,
    }


def _peak() -> float:
    """Most bytes that this process ever had in memory, its libraries included, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


def _together(sets: list[list[int]], classes: int) -> float:
    """Share of the pairs of classes of one group that some specialist knows both of."""
    knows = np.zeros((classes, len(sets)), dtype=np.int32)
    for k, members in enumerate(sets):
        knows[members, k] = 1
    together = pairs = 0
    for g in range(CLUSTERS):
        known = knows[g::CLUSTERS]
        both = known @ known.T > 0
        together += int(both.sum() - np.diagonal(both).sum())
        pairs += len(known) * (len(known) - 1)
    return together / pairs


@benchmark(
    "clusters",
    "peak memory of finding 61 clusters among 15,000 classes from 100,000 rows of top 20, against 12 GB",
    "GB",
    "at most",
    1.0,
)
def clusters(quick: bool) -> Measured:
    """The whole stage in a fresh process; 2 members, 61 planted groups, specialists of a fiftieth each."""
    classes, rows, members = (2000, 5000, 2) if quick else (15_000, 100_000, 2)
    with tempfile.TemporaryDirectory() as folder, fresh_processes(1) as pool:
        receipt = _write_predictions(Path(folder) / "store", classes, rows, members)
        say(f"{len(receipt.files)} shards written")
        found = pool.submit(_find_clusters, folder, classes, receipt).result()
    sets, seconds = found["sets"], found["seconds"]
    detail = {
        "classes": classes,
        "rows": rows,
        "members": members,
        "top_k": KEPT,
        "shards": len(receipt.files),
        "seconds_pass": round(seconds["predictions_matrix"], 1),
        "seconds_clustering": round(seconds["cluster_columns"], 1),
        "seconds_assigning": round(seconds["assign_classes"], 1),
        "seconds": round(seconds["all"], 1),
        "before (GB)": round(found["before"] / 1e9, 2),
        "clusters": len(sets),
        "classes_of_each": [min(map(len, sets)), max(map(len, sets))],
        "planted_pairs_together": round(_together(sets, classes), 4),
        "confusion_captured": round(found["captured"], 4),
    }
    problem = "Ray was started, and the memory of its workers is not counted" if found["spread"] else None
    return Measured(found["peak"] / 1e9, GB, detail, problem)


# --------------------------------------------------------------------------------------- specialists


def _load_and_time(arrays: dict[str, Any], *, load: Callable[..., Any]) -> Any:
    """Runs in the Ray Train worker: its data, and from now on the whole time between two ends of epochs."""
    import ensemble_kd.member_loop as member_loop

    original = member_loop.train_member

    def timed(*args: Any, on_epoch: Callable[[dict[str, float]], None], **options: Any) -> bool:
        resumed = time.perf_counter()

        def after(entry: dict[str, float]) -> None:
            nonlocal resumed
            now = time.perf_counter()
            on_epoch({**entry, "whole_seconds": now - resumed})
            resumed = now

        return original(*args, on_epoch=after, **options)

    member_loop.train_member = timed  # type: ignore[assignment]
    return load(arrays)


CLASS_SETS = ([0, 1, 2, 3], [2, 3, 4, 5, 6], [5, 6, 7, 8], [0, 4, 7, 8, 9])
"""Overlapping, as clusters of confusable classes are."""


def _turns(config: Any, labels: np.ndarray) -> list[Any]:
    """A generalist, a specialist of the first generalist, another generalist, and so on."""
    from ensemble_kd.stages import specialists, teachers

    generalists = teachers.tasks(config, "data", len(labels))
    first = {"name": generalists[0].name, "fingerprint": generalists[0].fingerprint}
    sets = [{"classes": classes} for classes in CLASS_SETS[: len(generalists)]]
    special = specialists.tasks(config, {"data": "data"}, sets, [first], labels)
    return [task for pair in zip(generalists, special, strict=True) for task in pair]


@benchmark(
    "specialists",
    "worker time of training specialists, against their examples at the generalist's examples per second",
    "s",
    "at most",
    1.2,
)
def specialists(quick: bool) -> Measured:
    """Generalists and specialists take turns in one worker; the first epoch of each is left out.

    A specialist's epoch is timed with its evaluation and checkpoint, the generalist's without. Each counts
    as often as there are epochs, at the median of them.
    """
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages.training_data import load_training_data, with_generalists
    from ensemble_kd.train.task import finished
    from ensemble_kd.workers import train_members

    rows, epochs, turns = (6400, 2, 2) if quick else (60_000, 5, 4)
    model = {"name": "mlp", "hidden": [800, 800]}
    config = generated.config(
        teachers={"model": model, "training": {"epochs": epochs}, "num_members": turns},
        # Never stops, but keeps the best weights as it does by default.
        specialists={"training": {"epochs": epochs, "early_stopping": epochs}},
        compute=generated.on_cpu(1),
    )
    info = generated.info(rows)
    arrays = generated.shared_arrays(rows)
    tasks = _turns(config, arrays["transfer/labels"])
    entries: dict[str, list[dict[str, float]]] = {task.name: [] for task in tasks}
    with tempfile.TemporaryDirectory() as folder, Runtime(config.compute) as runtime:
        members = Path(folder) / "members"
        load = partial(load_training_data, info=info, layouts={}, shards=[], parts={})
        load = partial(with_generalists, load=load, generalists=str(members))
        train_members(
            runtime,
            tasks,
            members,
            partial(_load_and_time, load=load),
            lambda: arrays,
            replicas=1,
            path="specialists",
            on_event=lambda task, event: (
                entries[task.name].append(event["entry"]) if event["kind"] == "epoch" else None
            ),
        )
        manifests = {task.name: finished(task, members) for task in tasks}
    pace = [e["examples_per_second"] for task in tasks[::2] for e in entries[task.name][1:]]
    special = {task.name: entries[task.name] for task in tasks[1::2]}
    examples = [found[0]["examples_per_second"] * found[0]["seconds"] for found in special.values()]

    def worker_time(key: str) -> float:
        return sum(epochs * median([e[key] for e in found[1:]]) for found in special.values())

    reference = epochs * sum(examples) / median(pace)
    whole = sum(manifest.summary["seconds"] for name in special if (manifest := manifests[name]))
    detail = {
        "model": "784-800-800-10, batch 128; specialists of 4 and 5 classes with an aggregated dustbin",
        "rows": rows,
        "epochs": epochs,
        "examples_per_epoch": [round(count) for count in examples],
        "generalist_examples_per_second": rounded(pace, 0),
        "seconds_per_epoch": [rounded([e["whole_seconds"] for e in found]) for found in special.values()],
        "ratio_without_evaluation_and_checkpoint": round(worker_time("seconds") / reference, 3),
        "ratio_with_start_and_last_predictions": round(whole / reference, 3),
        "evaluated_rows": generated.HELD_OUT,
    }
    return Measured(worker_time("whole_seconds"), reference, detail)


# ------------------------------------------------------------------------------------------- combine

SECONDS = 10.0
CLASSES, ASKED, SIZE = 100, 10, 20
"""Classes, specialists, and classes of each."""


def _predicted(examples: int, scattered: bool) -> tuple[Any, list[tuple[list[int], Any]]]:
    """log p_g (B, C), and sets of classes with log p_m (B, SIZE + 1).

    Neighbouring classes, on a circle, are confused. A set is a stretch of neighbours, every other one at
    random, so that a class has one to four specialists; or, `scattered`, any classes. The generalist and
    each specialist see the same evidence with errors of their own: it is right on 60% of the rows.
    """
    import torch

    from ensemble_kd.ensemble.specialists import specialist_logits_from_generalist

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (examples, 1), generator=generator)
    distance = (torch.arange(CLASSES) - labels).abs()
    evidence = -2.0 * torch.minimum(distance, CLASSES - distance).float().clamp(max=20)  # (B, C)

    def seen(error: float) -> Any:
        return evidence + error * torch.randn(examples, CLASSES, generator=generator)

    log_g = seen(2.0).log_softmax(1)
    found = []
    for m in range(ASKED):
        order = torch.randperm(CLASSES, generator=generator)
        first = m * CLASSES // ASKED if m % 2 == 0 else int(order[0])
        own = order[:SIZE] if scattered else (first + torch.arange(SIZE)) % CLASSES
        classes = sorted(own.tolist())
        found.append((classes, specialist_logits_from_generalist(seen(1.5), classes).log_softmax(1)))
    return log_g, found


@benchmark(
    "combine",
    "combining 100,000 predictions of 100 classes with 10 specialists on one thread, against 10 s",
    "s",
    "at most",
    1.0,
)
def combine(quick: bool) -> Measured:
    """Overlapping specialists of 20 neighbouring classes; asked are those that know the most probable class.

    Beside it: asked for one of the three most probable classes, and specialists of classes that have nothing
    to do with each other, which contradict the generalist and each other far more.
    """
    import torch

    from ensemble_kd.ensemble import specialists as package

    torch.set_num_threads(1)
    examples, rounds = (5000, 2) if quick else (100_000, 5)
    seconds: dict[str, list[float]] = {}
    several: dict[str, float] = {}
    for scattered in (False, True):
        log_g, found = _predicted(examples, scattered)
        for top_n in (1, 3):
            name = f"{'scattered' if scattered else 'neighbours'}, top_n={top_n}"
            seconds[name] = []
            for _ in range(1 if scattered else rounds):
                began = time.perf_counter()
                package.combine(log_g, found, top_n=top_n)
                seconds[name].append(time.perf_counter() - began)
            say(f"{name}: {max(seconds[name]):.2f} s")
            asked = package.active_specialists(log_g, [own for own, _ in found], top_n).sum(1)
            several[name] = round(float((asked > 1).float().mean()), 3)
    usual = "neighbours, top_n=1"
    detail = {
        "examples": examples,
        "seconds": {name: rounded(found) for name, found in seconds.items()},
        "worst": round(max(seconds[usual]), 3),
        "several_asked": several,
    }
    return Measured(median(seconds[usual]), SECONDS, detail)
