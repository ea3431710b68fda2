"""A stage that fills a store, one file a shard of the transfer set: what is there is kept, the rest made.

One item of the Ray dataset is one shard; an actor of the pool holds the networks, reads the shard's inputs
and writes the shard of soft targets under its final name only when it is whole. What a killed run finished is
kept, and memory is bounded by a shard, whatever the set's size.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Manifest, checksum, read_json, write_json
from ensemble_kd.attached import attach, attached, attached_spec
from ensemble_kd.carried import Carried, held, hold
from ensemble_kd.data.records import shard_paths
from ensemble_kd.data.store import StoreLayout, shard_name
from ensemble_kd.ensemble.top_k import compress, error_bound
from ensemble_kd.errors import (
    ArtifactError,
    ConfigError,
    EnsembleKDError,
    InputError,
    StoppedError,
    TrainingError,
)
from ensemble_kd.failures import KEPT, keep, last_words, packed, raise_packed
from ensemble_kd.stages.context import DAMAGED, Context, StagePlan
from ensemble_kd.train.process import borrowed, prepare

FLOAT16_LIMIT = 65504.0

Item = dict[str, Any]
"""One shard of work: `source`, `target` and what else the actor needs, as paths and numbers."""


def work_items(folder: Path, data: Path, *beside: Path) -> list[Item]:
    """One item per shard of the transfer set; `beside` are stores whose shards hold the same rows."""
    shards = shard_paths(data, "transfer")
    firsts = np.cumsum([0, *(num_rows(path) for path in shards)])
    return [
        {
            "source": str(shards[i].resolve()),
            "target": str((folder / shard_name(i)).resolve()),
            "first": int(firsts[i]),
            "beside": [str((store / shard_name(i)).resolve()) for store in beside],
        }
        for i in range(len(shards))
    ]


def fill(
    context: Context,
    plan: StagePlan,
    title: str,
    work: list[Item],
    make: Callable[[list[Item]], Iterator[tuple[Path, dict[str, Any]]]],
    *,
    rows: int,
    summary: dict[str, Any],
    others: list[str] | None = None,
) -> Manifest:
    """Make the shards that are missing and write the manifest.

    `make` yields (path, entry) of finished shards; `others` are further files of the stage's folder.
    """
    began = time.perf_counter()
    for stale in plan.folder.glob(".*.tmp"):  # what a killed run was writing
        stale.unlink()
    entries: dict[str, dict[str, Any]] = {}
    for item in work:
        receipt = receipt_of(Path(item["target"]))
        if receipt is not None:
            entries[Path(item["target"]).name] = receipt
    todo = [item for item in work if Path(item["target"]).name not in entries]
    context.console.progress(title, len(entries), len(work), "starting actors" if todo else "")
    made = make(todo) if todo else iter(())
    try:
        for target, entry in made:
            if (mirror := attached()) is not None:
                mirror.ensure(target)  # made on another node
            write_json(receipt_path(target), entry)
            entries[target.name] = entry
            context.console.progress(title, len(entries), len(work), f"{entry['rows']} rows")
    finally:
        context.console.progress(title, 0, 0, "")
        if isinstance(made, Generator):
            made.close()
    found = sum(entry["rows"] for entry in entries.values())
    if found != rows:
        raise ArtifactError(f"{plan.folder}: {found} rows of soft targets for {rows} of the transfer set")
    summary = {
        **summary,
        "rows": rows,
        "error_bound_at_temperature_1": max((e.get("bound", 0.0) for e in entries.values()), default=0.0),
        "seconds": time.perf_counter() - began,
    }
    manifest = plan.finish([*entries, *(others or [])], summary, known=entries)
    for item in work:
        receipt_path(Path(item["target"])).unlink(missing_ok=True)
    (plan.folder / DAMAGED).unlink(missing_ok=True)
    return manifest


def in_actors(
    context: Context, todo: list[Item], actor: type, arguments: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give each item to one of a pool of actors; yields as shards are finished.

    `actor(use_gpu=..., **arguments)` makes one; `actor.make(item)` writes a shard and returns its entry.
    """
    runtime, config = context.runtime, context.config.soft_targets
    folder = Path(todo[0]["target"]).parent
    stage = folder.parent.name.replace("_", "-")
    gpus = runtime.gpus_per_worker()
    capacity = runtime.capacity()
    if not capacity:
        raise ConfigError(runtime.too_much())
    actors = capacity if config.num_actors == "auto" else config.num_actors
    if config.num_actors != "auto" and config.num_actors > capacity:
        raise ConfigError(
            f"soft_targets.num_actors: {config.num_actors}, but the cluster has room for {capacity}; "
            "lower it or use auto"
        )
    items = [{"item": json.dumps(item)} for item in todo]
    pool = {
        "actor": actor,
        "arguments": {**arguments, "use_gpu": gpus > 0},
        "mirror": attached_spec(),
        "carried": held(),
    }
    if runtime.local:
        rows = _here(items, pool)
    else:
        size = max(1, min(actors, len(items)))
        rows = _on_ray(items, pool, size, context.config.compute.cpus_per_worker, gpus)
    try:
        for row in rows:
            if row["failure"]:
                raise_packed(row["failure"], stage, folder)
            yield Path(row["target"]), json.loads(row["entry"])
    except EnsembleKDError:
        raise
    except Exception as error:  # whatever Ray Data raises where actors die
        raise TrainingError(
            f"{stage}: Ray Data failed: {last_words(str(error))}; {KEPT}"
            + keep("".join(traceback.format_exception(error)), folder)
        ) from error
    finally:
        rows.close()  # a thread of Ray Data's that outlives this would start Ray again


def _on_ray(
    items: list[Item], pool: dict[str, Any], size: int, cpus: float, gpus: float
) -> Generator[dict[str, Any], None, None]:
    import ray.data

    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Pool,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=cpus,
        num_gpus=gpus or None,
        fn_constructor_kwargs=pool,
    )
    yield from dataset.iter_rows()


def _here(items: list[Item], pool: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """One after the other in this process."""
    with borrowed(1):
        actor = _Pool(**pool)
        for item in items:
            row = actor({name: [value] for name, value in item.items()})
            yield {name: column[0] for name, column in row.items()}


class _Pool:
    """What Ray Data keeps one of per actor."""

    def __init__(
        self, actor: type, arguments: dict[str, Any], mirror: dict[str, Any] | None, carried: Carried
    ) -> None:
        hold(carried)
        prepare(1)
        self.mirror = attach(mirror)
        self.failure, self.actor = "", None
        try:
            if self.mirror is not None:
                self.mirror.ensure_all(arguments)
            self.actor = actor(**arguments)
        except StoppedError:
            raise
        except Exception as error:  # told with the first shard
            self.failure = packed(error, "starting an actor", Path.cwd())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row per shard: its target, its entry, and what failed."""
        items = [json.loads(text) for text in batch["item"]]
        targets = [item["target"] for item in items]
        entries, failure = [], self.failure
        if not failure:
            try:
                entries = self._made(items, targets)
            except StoppedError:  # asked to leave, in the driver's own process
                raise
            except Exception as error:
                failure = packed(error, Path(targets[0]).name, Path(targets[0]))
        return {
            "target": np.array(targets, dtype=object),
            "entry": np.array(entries or [""] * len(items), dtype=object),
            "failure": np.array([failure] * len(items), dtype=object),
        }

    def _made(self, items: list[Item], targets: list[str]) -> list[str]:
        assert self.actor is not None
        if self.mirror is not None:
            self.mirror.ensure_all([[item["source"], item["beside"]] for item in items])
            for target in targets:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
        entries = [json.dumps(self.actor.make(item)) for item in items]
        if self.mirror is not None:
            self.mirror.push(*map(Path, targets))
        return entries


def encode(logits: torch.Tensor, layout: StoreLayout) -> tuple[dict[str, np.ndarray], float]:
    """Columns of the store from (B, V, M, C) logits, and the largest error bound at T = 1.

    Raises InputError for logits that float16 cannot hold.
    """
    # A sum is twenty times as fast as looking at each, and finite only where all are.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise InputError("a teacher's logits are not finite; train it again with a lower learning rate")
    if layout.values:
        return {"logits": logits.float().numpy()}, 0.0
    if layout.top_k is None:
        # Only differences matter to a softmax: the largest logit at 0 uses float16 where it is finest.
        logits = (logits - logits.amax(-1, keepdim=True)).clamp(min=-FLOAT16_LIMIT)
        return {"logits": logits.half().numpy()}, 0.0
    kept = compress(logits.flatten(0, 1), layout.top_k)  # (B V, M, k); relative to the largest, too
    bound = float(error_bound(kept, layout.classes, 1.0).max())
    shape = logits.shape[:3]
    return {
        "values": kept.values.reshape(*shape, -1).numpy(),
        "indices": kept.indices.reshape(*shape, -1).numpy().astype(layout.index_type),
        "rest": kept.rest.reshape(shape).numpy(),
    }, bound


def num_rows(path: Path) -> int:
    """Rows of a Parquet file."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def receipt_path(shard: Path) -> Path:
    """Where a finished shard's entry waits until the manifest is written."""
    return shard.with_suffix(".json")


def receipt_of(shard: Path) -> dict[str, Any] | None:
    """The entry of a shard that an earlier run finished: an interrupted one, or one damaged elsewhere."""
    entry = None
    for path in (receipt_path(shard), shard.with_name(DAMAGED)):
        try:
            entry = read_json(path)
        except ArtifactError:
            continue
        if path.name == DAMAGED:
            entry = entry["files"].get(shard.name)
        break
    if entry is None:
        return None
    same = shard.exists() and shard.stat().st_size == entry["bytes"] and checksum(shard) == entry["sha256"]
    return entry if same else None
