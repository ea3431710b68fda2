"""How a worker group gets its data: arrays shared through the object store, or a stream of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest
from ensemble_kd.data.prepared import Arrays, load_split, shard_paths
from ensemble_kd.data.store import StoreLayout, load_columns
from ensemble_kd.streaming import open_stream
from ensemble_kd.train.batches import Block
from ensemble_kd.train.member import TrainingData
from ensemble_kd.train.stored import StoredLogits

GB = 1e9


def input_bytes(info: dict[str, Any]) -> int:
    """Bytes of one example's input in memory."""
    return int(np.prod(info["input_shape"])) * {"image": 1, "numeric": 4, "text": 4}[info["kind"]]


def bytes_in_memory(info: dict[str, Any], layout: StoreLayout | None) -> int:
    """Bytes of the transfer set and its soft targets when held as arrays."""
    per_row = input_bytes(info) + 8 + (layout.bytes_per_row if layout else 0)
    return int(info["counts"]["transfer"] * per_row)


def arrays_and_loader(
    data: Path,
    info: dict[str, Any],
    budget: float,
    store: Path | None = None,
    receipt: Manifest | None = None,
) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], TrainingData], bool]:
    """What `train_members` takes: the arrays to share, the function that reads them, whether it streams.

    `store` and `receipt` are the soft targets' folder and manifest, absent for teachers.
    """
    layout = StoreLayout(**receipt.summary["layout"]) if receipt else None
    streams = bytes_in_memory(info, layout) > budget * GB
    splits = ["validation", "test"] + ([] if streams else ["transfer"])

    def arrays() -> dict[str, Any]:
        shared: dict[str, Any] = {}
        for split in splits:
            loaded = load_split(data, split)
            # Ids stay in the files: training does not need them, and strings would be large.
            shared |= {f"{split}/inputs": loaded.inputs, f"{split}/labels": loaded.labels}
        if receipt and layout and store and not streams:
            columns = load_columns(store, sorted(receipt.files), layout, info["counts"]["transfer"])
            shared |= {f"store/{name}": column for name, column in columns.items()}
        return shared

    shards = [str(path) for path in shard_paths(data, "transfer")] if streams else []
    parts = [str(store / name) for name in sorted(receipt.files)] if streams and store and receipt else []
    return arrays, partial(load_training_data, info=info, layout=layout, shards=shards, parts=parts), streams


def load_training_data(
    arrays: dict[str, Any],
    *,
    info: dict[str, Any],
    layout: StoreLayout | None,
    shards: list[str],
    parts: list[str],
) -> TrainingData:
    """In the worker: give the shared arrays their meaning."""

    def split(name: str) -> Arrays:
        inputs, labels = arrays[f"{name}/inputs"], arrays[f"{name}/labels"]
        return Arrays(inputs, labels, np.arange(len(labels)))

    data = TrainingData(info, split("validation"), split("test"))
    if "transfer/inputs" in arrays:
        data.transfer = split("transfer")
        if layout is not None:
            columns = {key.removeprefix("store/"): a for key, a in arrays.items() if key.startswith("store/")}
            data.teacher = StoredLogits(columns, layout)
    else:

        def stream(with_targets: bool, seed: int, views: int) -> Callable[[int], Iterator[Block]]:
            chosen = parts if with_targets else []
            return partial(open_stream, shards, chosen, info, layout if with_targets else None, seed, views)

        data.stream = stream
    return data
