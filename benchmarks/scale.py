"""scale: a thousandth of 1,000,000,000 examples x 10 teachers x 1,000 classes, with what all of it takes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import generated
from benchmarks.harness import Measured, benchmark, fresh_processes, say
from benchmarks.soft_targets import MemoryWatch
from benchmarks.specialists import _peak

MEMBERS, CLASSES, KEPT, FEATURES = 10, 1000, 20, 64
STREAMED = 16
"""Shards that the student reads."""


def _config(source: Path) -> Any:
    return generated.config(
        data={
            "source": "files",
            "path": str(source),
            "kind": "numeric",
            "columns": {"input": "x", "label": "y"},
            "validation_fraction": 0.01,
            "test_fraction": 0.01,
        },
        soft_targets={"top_k": KEPT, "num_actors": 2},
        compute=generated.on_cpu(2),
    )


def _context(folder: Path) -> Any:
    from ensemble_kd.runtime import Runtime
    from ensemble_kd.stages.context import Context
    from ensemble_kd.tracking import Tracker

    config = _config(folder / "source")
    tracker = Tracker(config.tracking, folder, config.name, say)
    return Context(config, folder / "run", Runtime(config.compute), tracker)


def _write_source(folder: Path, rows: int) -> int:
    """Files of random numbers as a user would have them; bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for begin in range(0, rows, 100_000):
        count = min(100_000, rows - begin)
        generator = np.random.default_rng(begin)
        numbers = pa.array(generator.normal(size=count * FEATURES).astype(np.float32))
        labels = generator.permutation(count) % CLASSES
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(numbers, FEATURES), "y": pa.array(labels)})
        pq.write_table(table, folder / f"{begin:09d}.parquet", row_group_size=8192)
    return sum(path.stat().st_size for path in folder.iterdir())


def _prepare(name: str) -> dict[str, Any]:
    """The data stage in this process."""
    from ensemble_kd.stages import data as stage

    context, before = _context(Path(name)), _peak()
    began = time.perf_counter()
    plan = stage.plan(context.config, context.folder)
    planned, cpu = time.perf_counter(), time.process_time()
    manifest = stage.run(context, plan)
    return {
        "fingerprint (s)": planned - began,
        "seconds": time.perf_counter() - planned,
        "cpu_seconds": time.process_time() - cpu,
        "memory (MB)": (_peak() - before) / 1e6,
        "folder": str(plan.folder),
        "info": manifest.summary["info"],
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
    }


def _fill(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The store in this process and its Ray, and then what a run that finds it whole takes to see that."""
    from ensemble_kd.artifacts import MANIFEST
    from ensemble_kd.stages import soft_targets as stage

    folder = Path(name)
    model = {"name": "mlp", "hidden": [16]}
    teachers = generated.write_teachers(folder / "teachers", MEMBERS, model, data["info"])
    context = _context(folder)
    names = {f"teacher-{member:03d}": f"{member}" for member in range(MEMBERS)}
    plan = stage.plan(context.config, context.folder, "data", names)
    with context.runtime:
        context.runtime.start()
        with MemoryWatch() as watch:
            manifest = stage.run(context, plan, Path(data["folder"]), data["info"], teachers)
    began = time.perf_counter()
    assert plan.checked(context.console) is not None
    return {
        "seconds": manifest.summary["seconds"],
        "check (s)": time.perf_counter() - began,
        "driver (MB)": watch.peaks["driver"] / 1e6,
        "actors (MB)": watch.peaks["actors"] / 1e6,
        "folder": str(plan.folder),
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "predicted": stage.layout_of(context.config, data["info"], MEMBERS).bytes_per_row,
        "shards": len(manifest.files),
        "manifest (bytes)": (plan.folder / MANIFEST).stat().st_size,
        "bound": manifest.summary["error_bound_at_temperature_1"],
    }


def _stream(data: dict[str, Any], store: dict[str, Any], shards: int) -> dict[str, Any]:
    """What a student's worker reads: shards with their soft targets, restored to all classes."""
    import ray

    from ensemble_kd.artifacts import read_manifest
    from ensemble_kd.data.records import shard_paths
    from ensemble_kd.data.store import StoreLayout
    from ensemble_kd.stages.training_data import shards_of
    from ensemble_kd.streaming import open_stream

    manifest = read_manifest(Path(store["folder"]))
    assert manifest is not None
    layout = StoreLayout(**manifest.summary["layout"])
    paths = [str(path) for path in shard_paths(Path(data["folder"]), "transfer")][:shards]
    parts = [str(Path(store["folder"]) / part) for part in shards_of(manifest)][:shards]
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    import ray.data

    before = _peak()
    blocks, rows, began = 0, 0, time.perf_counter()
    for block in open_stream(paths, [(parts, layout)], data["info"], 0, 1, 0):
        assert block.member_logits is not None
        for first in range(0, len(block.rows), 1024):  # as a student's worker does, a part at a time
            part = block.member_logits[first : first + 1024].logits()
            assert part.shape[1:] == (MEMBERS, CLASSES)
        blocks, rows = blocks + 1, rows + len(block.rows)
    seconds = time.perf_counter() - began
    ray.shutdown()
    read = sum(Path(path).stat().st_size for path in paths + parts)
    return {"rows": rows, "seconds": seconds, "memory (MB)": (_peak() - before) / 1e6, "bytes": read}


def _parts(name: str) -> dict[str, float]:
    """CPU seconds that a million examples take on one core, step by step, without Ray."""
    import torch

    from ensemble_kd.artifacts import checksum
    from ensemble_kd.data.store import ShardWriter, StoreLayout, read_shard
    from ensemble_kd.ensemble.combine import mean_logits
    from ensemble_kd.ensemble.top_k import TopK, restore
    from ensemble_kd.stages.shards import encode

    torch.set_num_threads(1)
    layout, path, size = StoreLayout(1, MEMBERS, CLASSES, KEPT), Path(name) / "one.parquet", 1024
    logits = torch.randn(size, 1, MEMBERS, CLASSES) * 4
    found: dict[str, float] = {}

    def timed(part: str, rows: int, call: Any) -> Any:
        call()  # the first is warm-up
        began = time.process_time()
        result = call()
        found[part] = (time.process_time() - began) / rows * 1e6
        return result

    columns, _ = timed("top_k", size, lambda: encode(logits, layout))
    writer = ShardWriter(path, layout)
    for first in range(0, 8 * size, size):
        writer.write(np.arange(first, first + size), **columns)
    writer.close()
    timed("checksum", 8 * size, lambda: checksum(path))
    _, held = timed("read", 8 * size, lambda: read_shard(path, layout))
    kept = TopK(*(torch.from_numpy(held[key][:, 0].copy()) for key in ("values", "indices", "rest")))
    dense = timed("restore", 8 * size, lambda: restore(kept, CLASSES))
    timed("average", size, lambda: mean_logits(dense[:size], 4.0, "arithmetic", None))
    return found


def _window(replicas: int) -> dict[str, float]:
    """What a replica of a student does with a window of shards: mix it, restore and average its share.

    CPU seconds for a million rows of all replicas together.
    """
    import torch

    from ensemble_kd.config import AugmentConfig
    from ensemble_kd.data.store import StoreLayout
    from ensemble_kd.streaming import WINDOW, _blocks, mixed_rows
    from ensemble_kd.train.batches import Batches, Targets
    from ensemble_kd.train.blocks import Block, StreamSource

    torch.set_num_threads(1)
    layout, size, generator = StoreLayout(1, MEMBERS, CLASSES, KEPT), 8192, np.random.default_rng(0)
    numbers = np.arange(size)
    shard = {"rows": numbers, "labels": numbers, "views": numbers}
    shard["inputs"] = np.zeros((size, FEATURES), np.float32)
    for name, (shape, kind) in layout.columns().items():
        shard[f"store0/{name}"] = generator.integers(0, CLASSES, (size, *shape[1:])).astype(kind)

    def stream(epoch: int) -> Iterator[Block]:
        yield from _blocks(mixed_rows([shard] * WINDOW, 0), [layout])

    rows, batch_size = WINDOW * size, 1024
    targets = Targets(temperature=4.0, soft=True)
    batches = Batches(
        StreamSource(stream), batch_size, rows // batch_size, targets, AugmentConfig(), replicas=replicas
    )
    before, began = _peak(), time.process_time()
    seen = sum(len(batch.labels) for batch in batches.epoch(0))
    seconds = time.process_time() - began
    assert seen == rows // replicas
    return {"seconds": 1e6 * seconds / rows, "memory (MB)": (_peak() - before) / 1e6}


class _Idle:
    """An actor whose shards cost nothing: what is left is what the stage and Ray Data take for each."""

    def __init__(self, use_gpu: bool) -> None:
        pass

    def make(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"bytes": 0, "sha256": "0" * 64, "rows": 8192, "bound": 0.0}


def _overhead(name: str, items: int) -> dict[str, Any]:
    """`in_actors` with nothing to do, and the receipts that the driver writes."""
    from benchmarks.soft_targets import _anonymous
    from ensemble_kd.artifacts import write_json
    from ensemble_kd.stages.shards import in_actors, receipt_path

    folder = Path(name) / "idle"
    folder.mkdir()
    work = [
        {"source": "x" * 100, "target": str(folder / f"part-{i:05d}.parquet"), "first": 0, "beside": []}
        for i in range(items)
    ]
    context = _context(Path(name))
    entries = []
    with context.runtime:
        context.runtime.start()
        list(in_actors(context, work[:10], _Idle, {}))  # the actors' start is not asked
        before, began = _anonymous(Path("/proc/self")), time.perf_counter()
        for target, entry in in_actors(context, work, _Idle, {}):
            entries.append((target, entry))
        seconds = time.perf_counter() - began
        grown = _anonymous(Path("/proc/self")) - before
    began = time.perf_counter()
    for target, entry in entries:
        write_json(receipt_path(target), entry)
    return {
        "items": items,
        "ms_an_item": 1e3 * seconds / items,
        "driver_bytes_an_item": grown / items,
        "ms_a_receipt": 1e3 * (time.perf_counter() - began) / items,
    }


@benchmark(
    "scale",
    "bytes of a store of 1,000,000 examples x 10 teachers x 1,000 classes, top 20, against the arithmetic",
    "bytes/example",
    "at most",
    1.1,
)
def scale(quick: bool) -> Measured:
    """Data stage, store, and a student's stream, each in a fresh process; teachers are tiny.

    What they take is in `detail`, and docs/scale.md multiplies it.
    """
    rows, items = (20_000, 200) if quick else (1_000_000, 5000)
    with tempfile.TemporaryDirectory() as name:
        source = _write_source(Path(name) / "source", rows)

        def apart(call: Any, *arguments: Any) -> dict[str, Any]:
            with fresh_processes(1) as pool:
                found: dict[str, Any] = pool.submit(call, *arguments).result()
            told = {key: value for key, value in found.items() if key not in ("folder", "info")}
            say(f"{call.__name__}: {told}")
            return found

        data = apart(_prepare, name)
        store = apart(_fill, name, data)
        stream = apart(_stream, data, store, STREAMED)
        parts, windows = apart(_parts, name), {f"window, {n} replicas": apart(_window, n) for n in (1, 16)}
        idle = apart(_overhead, name, items)
        free = shutil.disk_usage(name).free
    measured = {
        "data": data,
        "store": store,
        "stream": stream,
        "parts": parts,
        **windows,
        "items": idle,
    }
    detail: dict[str, Any] = {
        "rows": rows,
        "members": MEMBERS,
        "classes": CLASSES,
        "top_k": KEPT,
        "features": FEATURES,
        "source (bytes)": source,
        "free_disk (GB)": round(free / 1e9),
        "load_after": round(os.getloadavg()[0], 2),
    }
    for part, found in measured.items():
        detail[part] = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in found.items()
            if key not in ("folder", "info")
        }
    held = data["info"]["counts"]["transfer"]
    detail["transfer"] = held
    return Measured(store["bytes"] / held, store["predicted"], detail)
