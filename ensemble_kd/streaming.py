"""A transfer set larger than memory, streamed through Ray Data shard by shard.

A shard of inputs and the shard of soft targets with the same rows are read together by one task, so there
is no join. The order of shards changes from epoch to epoch, and a few neighbours are mixed. The tasks claim
no CPU because the workers that wait for them hold the cluster's CPUs: a full claim could never be
granted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from ensemble_kd.attached import attach, attached_spec
from ensemble_kd.data.records import DataInfo, read_shard
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.data.store import read_shard as read_targets
from ensemble_kd.errors import ArtifactError
from ensemble_kd.train.blocks import Block, mix
from ensemble_kd.train.stored import StoredPart

WINDOW = 4
"""Shards that are mixed with each other: rows of one class often lie together, so one shard is not enough."""

ROWS_AT_ONCE = WINDOW * 8192
"""Rows of a block: a window of shards of the default size."""

CLAIM = 0
"""CPUs that a reading task asks for: none are left to claim."""


def open_stream(
    shards: list[str],
    stores: list[tuple[list[str], StoreLayout]],
    info: dict[str, Any],
    seed: int,
    views: int,
    epoch: int,
    *,
    here: bool = False,
) -> Iterator[Block]:
    """The blocks of one epoch; equal for equal (seed, epoch). With `here` this process reads them.

    `stores` are the soft targets' shards, in the order of `shards`; the members of several stand in a row.
    """
    order = np.random.default_rng(mix(seed, epoch)).permutation(len(shards))
    items = [
        {
            "shard": shards[i],
            "parts": json.dumps([parts[i] for parts, _ in stores]),
            "seed": mix(seed, epoch, int(i)),
        }
        for i in order
    ]
    layouts = [layout for _, layout in stores]
    arguments: dict[str, Any] = {"info": info, "layouts": layouts, "views": views, "mirror": attached_spec()}
    batches = _in_order(items, arguments) if here else _in_tasks(items, arguments)
    window: list[dict[str, np.ndarray]] = []
    mixed = 0
    for batch in batches:
        window.append(batch)
        if len(window) == WINDOW:
            yield from _blocks(mixed_rows(window, mix(seed, epoch, mixed, 3)), layouts)
            window, mixed = [], mixed + 1
    if window:
        yield from _blocks(mixed_rows(window, mix(seed, epoch, mixed, 3)), layouts)


def _in_order(items: list[dict[str, Any]], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in items:
        yield _read({name: [value] for name, value in item.items()}, **arguments)


def _in_tasks(items: list[dict[str, Any]], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.data import DataContext, ExecutionOptions

    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().execution_options = ExecutionOptions(preserve_order=True)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read, batch_size=1, num_cpus=CLAIM, fn_kwargs=arguments
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)


def mixed_rows(window: list[dict[str, np.ndarray]], seed: int) -> dict[str, np.ndarray]:
    """The rows of several shards in one random order, as they are stored: restored, they may be fifty times
    as large."""
    longest = max(batch["inputs"].shape[1:] for batch in window)
    order = torch.randperm(
        sum(len(batch["rows"]) for batch in window), generator=torch.Generator().manual_seed(seed)
    ).numpy()
    whole = {}
    for name in window[0]:
        parts = [batch[name] for batch in window]
        if name == "inputs" and parts[0].ndim == 2:  # texts of a shard are padded to its longest
            parts = [np.pad(part, ((0, 0), (0, longest[0] - part.shape[1]))) for part in parts]
        whole[name] = np.concatenate(parts)[order]
    return whole


def _blocks(batch: dict[str, Any], layouts: list[StoreLayout]) -> Iterator[Block]:
    """Some thousand rows at a time, however many a shard has."""
    for begin in range(0, len(batch["rows"]), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        yield _block({name: column[part] for name, column in batch.items()}, layouts)


def _read(
    batch: dict[str, Any],
    info: dict[str, Any],
    layouts: list[StoreLayout],
    views: int,
    mirror: dict[str, Any] | None = None,
) -> dict[str, Any]:
    path = Path(batch["shard"][0])
    if (node := attach(mirror)) is not None:
        node.ensure_all([path, json.loads(batch["parts"][0])])
    arrays = read_shard(path, DataInfo.from_dict(info))
    generator = np.random.default_rng(int(batch["seed"][0]))
    order = generator.permutation(len(arrays.labels))
    numbers = pq.read_table(path, columns=["row"])["row"].to_numpy()
    out: dict[str, Any] = {
        "rows": numbers[order],
        "inputs": arrays.inputs[order],
        "labels": arrays.labels[order],
    }
    picked = generator.integers(views, size=len(order)) if views > 1 else np.zeros(len(order), np.int64)
    out["views"] = picked
    for number, (part, layout) in enumerate(zip(json.loads(batch["parts"][0]), layouts, strict=True)):
        rows, columns = read_targets(Path(part), layout)
        if not np.array_equal(rows, numbers):
            raise ArtifactError(f"{part}: other rows than {path}; delete it and run again")
        out |= {f"store{number}/{name}": column[order, picked] for name, column in columns.items()}
    return out


def _block(batch: dict[str, Any], layouts: list[StoreLayout]) -> Block:
    stores = []
    for number, layout in enumerate(layouts):
        prefix = f"store{number}/"
        names = [name for name in batch if name.startswith(prefix)]
        columns = {name.removeprefix(prefix): torch.from_numpy(batch[name]) for name in names}
        stores.append((columns, layout))
    return Block(
        torch.from_numpy(batch["rows"]),
        torch.from_numpy(batch["inputs"]),
        torch.from_numpy(batch["labels"]),
        StoredPart(stores) if stores else None,
        torch.from_numpy(batch["views"]),
    )
