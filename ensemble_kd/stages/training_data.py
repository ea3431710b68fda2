"""How a worker group gets its data: arrays shared through the object store, or a stream of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import Config, num_teachers
from ensemble_kd.data.records import Arrays, in_order, load_split, load_weights, shard_paths
from ensemble_kd.data.store import StoreLayout, load_columns
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.streaming import open_stream
from ensemble_kd.train.blocks import Block
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.stored import StoredLogits
from ensemble_kd.train.stored_states import KeptStates

GB = 1e9
CORPUS = "corpus/"
WEIGHTS = "weights"


def input_bytes(info: dict[str, Any]) -> int:
    """Bytes of one example's input in memory."""
    return int(np.prod(info["input_shape"])) * {"image": 1, "numeric": 4, "text": 4}[info["kind"]]


def bytes_in_memory(info: dict[str, Any], *layouts: StoreLayout) -> int:
    """Bytes of the transfer set and its soft targets when held as arrays."""
    per_row = input_bytes(info) + 8 + sum(layout.bytes_per_row for layout in layouts)
    return int(info["counts"]["transfer"] * per_row)


def mixing_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether inputs are to be mixed with others that are not in memory; `info` describes the data."""
    name = next((name for name in ("mixup", "munge") if getattr(config.data.augment, name)), None)
    if name is None:
        return []
    needed = bytes_in_memory(info, layout_of(config, info, num_teachers(config)))
    if needed <= config.compute.memory_budget * GB:
        return []
    return [
        f"data.augment.{name}: mixes rows of the transfer set that are in memory, and this one is streamed "
        f"({needed / GB:.1f} GB with its soft targets); raise compute.memory_budget "
        f"({config.compute.memory_budget:g}), or set it to 0"
    ]


Store = tuple[Path, Manifest]
"""Folder and manifest of soft targets."""


def states_fit(info: dict[str, Any], budget: float, *layouts: StoreLayout) -> bool:
    """Whether there are hidden states or attention in a store, and room for them beside all the rest."""
    return any(layout.kept for layout in layouts) and bytes_in_memory(info, *layouts) <= budget * GB


def states_layout(
    info: dict[str, Any], budget: float, ensemble: Manifest, combination: Store | None = None
) -> StoreLayout | None:
    """The layout of the members' store, where what it keeps beside logits can be held in memory."""
    layout = StoreLayout(**ensemble.summary["layout"])
    beside = [] if combination is None else [StoreLayout(**combination[1].summary["layout"])]
    return layout if states_fit(info, budget, layout, *beside) else None


def arrays_and_loader(
    data: Path,
    info: dict[str, Any],
    budget: float,
    ensemble: Store | None = None,
    specialists: Store | None = None,
    *,
    run: Path | None = None,
    corpora: Callable[[], dict[str, np.ndarray]] = dict,
    states: bool = False,
) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], TrainingData], bool]:
    """What `train_members` takes: the arrays to share, the function that reads them, whether it streams.

    `ensemble` are the members' soft targets, absent for teachers; `specialists` those combined with them.
    `run` is the folder in which members start from others', `corpora` gives texts by fingerprint. `states`:
    whether the hidden states and attention of the ensemble's store are wanted (see `states_layout`).
    """
    named = {"ensemble": ensemble, "specialists": specialists}
    stores = {name: store for name, store in named.items() if store is not None}
    layouts = {name: StoreLayout(**manifest.summary["layout"]) for name, (_, manifest) in stores.items()}
    if not states:
        layouts = {name: layout.logits_alone for name, layout in layouts.items()}
    streams = bytes_in_memory(info, *layouts.values()) > budget * GB
    assert not (states and streams), "states are asked for only where there is room"
    splits = ["validation", "test"] + ([] if streams else ["transfer"])

    def arrays() -> dict[str, Any]:
        shared: dict[str, Any] = {}
        for split in splits:
            loaded = load_split(data, split)
            # Ids stay in the files: training does not need them, and strings would be large.
            shared |= {f"{split}/inputs": loaded.inputs, f"{split}/labels": loaded.labels}
        for name, (folder, manifest) in stores.items() if not streams else []:
            rows = info["counts"]["transfer"]
            held = load_columns(folder, shards_of(manifest), layouts[name], rows)
            shared |= {f"{name}/{column}": values for column, values in held.items()}
        if (weights := load_weights(data)) is not None:  # four bytes a row, where shards are streamed too
            shared[WEIGHTS] = weights
        return shared | {f"{CORPUS}{name}": texts for name, texts in corpora().items()}

    shards = [str(path) for path in shard_paths(data, "transfer")] if streams else []
    parts = {
        name: [str(folder / part) for part in shards_of(manifest)] if streams else []
        for name, (folder, manifest) in stores.items()
    }
    folder = None if run is None else str(run.resolve())
    members = [] if ensemble is None else [v for k, v in ensemble[1].inputs.items() if k != "data"]
    load = partial(
        load_training_data,
        info=info,
        layouts=layouts,
        shards=shards,
        parts=parts,
        run=folder,
        members=members,
    )
    return arrays, load, streams


def shards_of(manifest: Manifest) -> list[str]:
    """The names of a store's shards, in order."""
    return sorted((name for name in manifest.files if name.endswith(".parquet")), key=in_order)


def load_training_data(
    arrays: dict[str, Any],
    *,
    info: dict[str, Any],
    layouts: dict[str, StoreLayout],
    shards: list[str],
    parts: dict[str, list[str]],
    run: str | None = None,
    members: Sequence[str] = (),
) -> TrainingData:
    """In the worker: give the shared arrays their meaning; `members` are the ensemble's fingerprints."""

    def split(name: str) -> Arrays:
        inputs, labels = arrays[f"{name}/inputs"], arrays[f"{name}/labels"]
        return Arrays(inputs, labels, np.arange(len(labels)))

    def columns(name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}

    def stored(name: str) -> StoredLogits | None:
        return StoredLogits(columns(name), layouts[name]) if name in layouts else None

    data = TrainingData(info, split("validation"), split("test"))
    data.run = None if run is None else Path(run)
    data.weights = arrays.get(WEIGHTS)
    data.corpora = {
        name.removeprefix(CORPUS): array for name, array in arrays.items() if name.startswith(CORPUS)
    }
    if "transfer/inputs" in arrays:
        data.transfer = split("transfer")
        data.teacher, data.combined = stored("ensemble"), stored("specialists")
        if data.teacher is not None and layouts["ensemble"].kept is not None:
            data.states = KeptStates(columns("ensemble"), layouts["ensemble"], members, data.teacher)
    else:
        read = {None: [], "both": ["ensemble", "specialists"]}

        def stream(
            targets: str | None, seed: int, views: int, here: bool = False
        ) -> Callable[[int], Iterator[Block]]:
            chosen = [(parts[name], layouts[name]) for name in read.get(targets, [str(targets)])]
            return partial(open_stream, shards, chosen, info, seed, views, here=here)

        data.stream = stream
    return data


def with_generalists(
    arrays: dict[str, Any], *, load: Callable[[dict[str, Any]], TrainingData], generalists: str
) -> TrainingData:
    """In the worker: what `load` makes, and the folder of the trained members that specialists start from."""
    data = load(arrays)
    data.generalists = Path(generalists)
    return data
