"""store, precompute, memory: what the teachers' outputs take on disk, in time and in memory."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import generated
from benchmarks.harness import Measured, benchmark, fresh_processes, median, rounded, say
from ensemble_kd.artifacts import Identity
from ensemble_kd.stages import soft_targets as stage

# --------------------------------------------------------------------------------------------- store


def _store_bytes(folder: Path, rows: int, members: int, classes: int) -> float:
    """Bytes per example of everything in the folder of a finished store, its manifest included."""
    import torch

    from ensemble_kd.artifacts import finish, size_on_disk
    from ensemble_kd.data.store import ShardWriter, StoreLayout, shard_name

    layout, entries = StoreLayout(1, members, classes), {}
    for shard, first in enumerate(range(0, rows, 8192)):
        count = min(8192, rows - first)
        writer = ShardWriter(folder / shard_name(shard), layout)
        for begin in range(first, first + count, 1024):
            numbers = torch.arange(begin, min(begin + 1024, first + count))
            logits = torch.randn(len(numbers), 1, members, classes) * 4
            columns, _ = stage.encode(logits, layout)
            writer.write(numbers.numpy(), **columns)
        entries[shard_name(shard)] = writer.close()
    summary = {"layout": asdict(layout), "rows": rows, "class_names": [str(c) for c in range(classes)]}
    finish(folder, Identity("soft_targets", "0" * 16, {}, {}), entries, summary, known=entries)
    return size_on_disk(folder) / rows


@benchmark(
    "store",
    "bytes of the store per example, against 2 x members x classes (the worse of 5 x 10 and 10 x 77)",
    "bytes/example",
    "at most",
    1.1,
)
def store(quick: bool) -> Measured:
    """Random logits through the stage's own encoder and writer; sizes do not depend on the values."""
    rows = 10_000 if quick else 60_000
    found = []
    for members, classes in ((5, 10), (10, 77)):
        with tempfile.TemporaryDirectory() as folder:
            found.append((_store_bytes(Path(folder), rows, members, classes), 2 * members * classes))
    worst = max(found, key=lambda pair: pair[0] / pair[1])
    detail = {
        "rows": rows,
        "5 members x 10 classes": rounded(found[0], 2),
        "10 members x 77 classes": rounded(found[1], 2),
    }
    return Measured(worst[0], worst[1], detail)


# ---------------------------------------------------------------------------------------- precompute


class ComparedLabeller(stage.Labeller):
    """The stage's actor, which after each shard also times a bare loop of the same models over its rows."""

    ended: float | None = None

    def make(self, item: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.bare import label
        from ensemble_kd.data.records import DataInfo, read_shard
        from ensemble_kd.train.blocks import as_tensor

        # From the end of the shard before: what Ray Data takes to hand over the next one is ours.
        began = time.perf_counter() if self.ended is None else self.ended
        entry = super().make(item)
        seconds = time.perf_counter() - began
        inputs = as_tensor(read_shard(Path(item["source"]), DataInfo.from_dict(self.info)).inputs.copy())
        bare = label([network for network, _ in self.networks], inputs, self.batch_size, self.layout.classes)
        self.ended = time.perf_counter()
        return {**entry, "seconds": seconds, "bare_seconds": bare}


def _context(folder: Path, members: int) -> tuple[Any, Any]:
    """A context with one actor, and the plan of a store of so many members."""
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages.context import Context
    from ensemble_kd.tracking import Tracker

    config = generated.config(soft_targets={"num_actors": 1}, compute=generated.on_cpu(1))
    tracker = Tracker(config.tracking, folder, config.name, say)
    names = {f"teacher-{member:03d}": f"{member}" for member in range(members)}
    context = Context(config, folder / "run", Runtime(config.compute), tracker)
    return context, stage.plan(config, context.folder, "data", names)


@benchmark(
    "precompute",
    "soft targets in one Ray Data actor, against a bare loop over the same models in the same process",
    "examples/s",
    "at least",
    0.7,
)
def precompute(quick: bool) -> Measured:
    """Shard by shard in turns; ours reads, labels, encodes, writes, hashes and waits for Ray Data.

    The first shard, which includes the actor's warm-up, is left out.
    """
    rows, members = (5 * 8192, 2) if quick else (12 * 8192, 5)
    info = generated.info(rows)
    model = {"name": "mlp", "hidden": [1200, 1200], "dropout": 0.3}
    original = stage.Labeller
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated.write_prepared(folder / "data", info)
        teachers = generated.write_teachers(folder / "teachers", members, model, info)
        context, plan = _context(folder, members)
        stage.Labeller = ComparedLabeller  # type: ignore[misc]
        try:
            with context.runtime:
                manifest = stage.run(context, plan, folder / "data", info, teachers)
        finally:
            stage.Labeller = original  # type: ignore[misc]
    # In order of their files, which is the order of the one actor.
    entries = [entry for _, entry in sorted(manifest.files.items())][1:]
    ours = [entry["rows"] / entry["seconds"] for entry in entries]
    bare = [entry["rows"] / entry["bare_seconds"] for entry in entries]
    detail = {
        "models": f"{members} x 784-1200-1200-10",
        "shards": len(entries),
        "rows_per_shard": 8192,
        "ours": rounded(ours, 0),
        "reference": rounded(bare, 0),
    }
    return Measured(median(ours), median(bare), detail)


# -------------------------------------------------------------------------------------------- memory

FEATURES = 64


def _write_store(name: str, rows: int, members: int) -> dict[str, float]:
    """The whole stage in this process and its Ray; peak memory in bytes."""
    folder = Path(name)
    info = generated.info(rows, "numeric", [FEATURES])
    model = {"name": "mlp", "hidden": [16]}
    generated.write_prepared(folder / "data", info)
    teachers = generated.write_teachers(folder / "teachers", members, model, info)
    context, plan = _context(folder, members)
    with context.runtime:
        context.runtime.start()
        with MemoryWatch() as watch:
            manifest = stage.run(context, plan, folder / "data", info, teachers)
    assert manifest.summary["rows"] == rows
    return {**watch.peaks, "samples": watch.samples, "seconds": manifest.summary["seconds"]}


class MemoryWatch:
    """Peak memory of this process and of its Ray Data actors: anonymous resident pages, sampled.

    Shared pages (libraries, Ray's object store) are left out: every process would count them again.
    """

    def __init__(self) -> None:
        self.peaks = {"driver": 0.0, "actors": 0.0, "driver and actors": 0.0}
        self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            actors = [path for path in Path("/proc").glob("[0-9]*") if "MapWorker" in _text(path / "cmdline")]
            now = {"driver": _anonymous(Path("/proc/self")), "actors": sum(map(_anonymous, actors))}
            now["driver and actors"] = now["driver"] + now["actors"]
            self.peaks = {kind: max(size, now[kind]) for kind, size in self.peaks.items()}
            self.samples += 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # gone between the listing and the look
        return ""


def _anonymous(process: Path) -> float:
    """Bytes."""
    for line in _text(process / "status").splitlines():
        if line.startswith("RssAnon:"):
            return 1024.0 * int(line.split()[1])
    return 0.0


@benchmark(
    "memory",
    "peak memory of driver and actor while writing 1,000,000 rows of soft targets, against 100,000",
    "MB",
    "at most",
    1.5,
)
def memory(quick: bool) -> Measured:
    """Each size runs the whole stage in a fresh process; 3 tiny teachers, 64 numbers a row."""
    sizes = (20_000, 200_000) if quick else (100_000, 1_000_000)
    found = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder, fresh_processes(1) as pool:
            found.append(pool.submit(_write_store, folder, rows, 3).result())
        say(f"{rows} rows: {found[-1]['driver and actors'] / 1e6:.0f} MB in {found[-1]['seconds']:.0f} s")
    detail: dict[str, Any] = {"rows": sizes[1], "reference_rows": sizes[0], "features": FEATURES}
    for key in ("driver", "actors"):
        detail[f"{key} (MB)"] = rounded([run[key] / 1e6 for run in found], 1)
    detail["seconds"] = rounded([run["seconds"] for run in found], 1)
    detail["samples"] = [int(run["samples"]) for run in found]
    problem = None if min(run["actors"] for run in found) > 0 else "no actor was seen"
    key = "driver and actors"
    return Measured(found[1][key] / 1e6, found[0][key] / 1e6, detail, problem)
