"""Stage 3: every teacher over the transfer set, once, by Ray Data, into the store of float16 logits.

One item of the Ray dataset is one shard; an actor of the pool holds all teachers, reads the shard's inputs,
runs every view through every teacher and writes the shard of soft targets under its final name only when
it is whole. What a killed run finished is kept, and memory is bounded by a batch, whatever the set's size.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Manifest, checksum, finish, read_json, write_json
from ensemble_kd.config import AugmentConfig, Config
from ensemble_kd.data.augment import view
from ensemble_kd.data.predictions import align
from ensemble_kd.data.prepared import Arrays, DataInfo, load_split, read_shard, shard_paths
from ensemble_kd.data.store import ShardWriter, StoreLayout, shard_name
from ensemble_kd.ensemble.top_k import compress, error_bound
from ensemble_kd.errors import ArtifactError, ConfigError, InputError
from ensemble_kd.models.build import Network
from ensemble_kd.stages.context import DAMAGED, Context, StagePlan
from ensemble_kd.train.batches import VIEW_SEED, as_tensor
from ensemble_kd.train.device import autocast
from ensemble_kd.train.member import load_network

FLOAT16_LIMIT = 65504.0


def plan(config: Config, run: Path, data: str, teachers: dict[str, str]) -> StagePlan:
    """`teachers` are the members' fingerprints by name, in order."""
    settings: dict[str, Any] = {"views": config.soft_targets.views, "top_k": config.soft_targets.top_k}
    if config.soft_targets.views > 1:
        settings["augment"] = config.data.augment.model_dump(mode="json")
    return StagePlan.of(run, "soft_targets", settings, {"data": data, **teachers})


def layout_of(config: Config, info: dict[str, Any], members: int) -> StoreLayout:
    """Raises ConfigError where top_k keeps as much as there is."""
    top_k = config.soft_targets.top_k
    if top_k is not None and top_k >= info["num_classes"]:
        raise ConfigError(
            f"soft_targets.top_k: {top_k} of {info['num_classes']} classes saves nothing; "
            "lower it, or set it to null"
        )
    return StoreLayout(config.soft_targets.views, members, info["num_classes"], top_k)


class Labeller:
    """Runs all teachers over shards; Ray Data keeps one of these per actor."""

    def __init__(
        self,
        info: dict[str, Any],
        layout: StoreLayout,
        teachers: list[tuple[dict[str, Any], str]],
        augment: dict[str, Any],
        batch_size: int,
        use_gpu: bool = False,
    ) -> None:
        """`teachers` are (settings, folder) of the members, in order."""
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.info, self.layout, self.batch_size = info, layout, batch_size
        self.augment = AugmentConfig.model_validate(augment)
        self.networks: list[Network] = [
            load_network(settings, info, Path(folder)).to(self.device) for settings, folder in teachers
        ]
        self.precisions = [s.get("training", {}).get("precision", "auto") for s, _ in teachers]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        entries = [
            json.dumps(self.label(Path(source), Path(target), int(first)))
            for source, target, first in zip(batch["source"], batch["target"], batch["first"], strict=True)
        ]
        return {"target": batch["target"], "entry": np.array(entries, dtype=object)}

    def label(self, source: Path, target: Path, first: int) -> dict[str, Any]:
        """Write one shard; returns its manifest entry, with the error bound of top_k."""
        arrays: Arrays = read_shard(source, DataInfo.from_dict(self.info))
        writer = ShardWriter(target, self.layout)
        bound = 0.0
        try:
            for begin in range(0, len(arrays.labels), self.batch_size):
                inputs = as_tensor(arrays.inputs[begin : begin + self.batch_size])
                rows = torch.arange(first + begin, first + begin + len(inputs))
                logits = self.logits(inputs, rows)  # (B, V, M, C) float32
                columns, batch_bound = encode(logits, self.layout)
                bound = max(bound, batch_bound)
                writer.write(rows.numpy(), **columns)
        except BaseException:
            writer.abort()
            raise
        return {**writer.close(), "bound": bound}

    @torch.inference_mode()
    def logits(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B, V, M, C) float32 logits of all members for all views of these examples."""
        inputs, rows = inputs.to(self.device), rows.to(self.device)
        out = torch.empty(len(inputs), self.layout.views, self.layout.members, self.layout.classes)
        for v in range(self.layout.views):
            seen = view(inputs, rows, v, VIEW_SEED, self.augment) if v else inputs
            for m, network in enumerate(self.networks):
                with autocast(self.device, self.precisions[m]):
                    out[:, v, m] = network(seen).logits.float().cpu()
        return out


def encode(logits: torch.Tensor, layout: StoreLayout) -> tuple[dict[str, np.ndarray], float]:
    """Columns of the store from (B, V, M, C) logits, and the largest error bound at T = 1.

    Raises InputError for logits that float16 cannot hold.
    """
    if not torch.isfinite(logits).all():
        raise InputError("a teacher's logits are not finite; train it again with a lower learning rate")
    # Only differences matter to a softmax: the largest logit at 0 uses float16 where it is finest.
    logits = (logits - logits.amax(-1, keepdim=True)).clamp(min=-FLOAT16_LIMIT)
    if layout.top_k is None:
        return {"logits": logits.half().numpy()}, 0.0
    flat = logits.flatten(0, 1)  # (B V, M, C)
    kept = compress(flat, layout.top_k)
    bound = float(error_bound(kept, layout.classes, 1.0).max())
    shape = logits.shape[:3]
    return {
        "values": kept.values.reshape(*shape, -1).numpy(),
        "indices": kept.indices.reshape(*shape, -1).numpy().astype(layout.index_type),
        "rest": kept.rest.reshape(shape).numpy(),
    }, bound


def run(
    context: Context,
    plan: StagePlan,
    data: Path,
    info: dict[str, Any],
    teachers: list[tuple[dict[str, Any], str]],
    given: bool = False,
) -> Manifest:
    """Fill the store. `teachers` are (settings, folder) of the trained members; `given` reads predictions."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    for stale in plan.folder.glob(".*.tmp"):  # what a killed run was writing
        stale.unlink()
    began = time.perf_counter()
    members = len(plan.inputs) - 1
    layout = layout_of(context.config, info, members)
    shards = shard_paths(data, "transfer")
    firsts = np.cumsum([0, *(_rows(path) for path in shards)])
    work: list[dict[str, Any]] = [
        {
            "source": str(shards[i].resolve()),
            "target": str((plan.folder / shard_name(i)).resolve()),
            "first": int(firsts[i]),
        }
        for i in range(len(shards))
    ]
    entries: dict[str, dict[str, Any]] = {}
    for item in work:
        receipt = receipt_of(Path(item["target"]))
        if receipt is not None:
            entries[Path(item["target"]).name] = receipt
    todo = [item for item in work if Path(item["target"]).name not in entries]
    context.console.progress("soft targets", len(entries), len(work), "starting actors" if todo else "")
    finished = (
        _from_files(context, todo, data, info, layout)
        if given
        else _from_teachers(context, todo, info, layout, teachers)
    )
    try:
        for target, entry in finished:
            write_json(receipt_path(target), entry)
            entries[target.name] = entry
            context.console.progress("soft targets", len(entries), len(work), f"{entry['rows']} rows")
    finally:
        context.console.progress("soft targets", 0, 0, "")
    summary = {
        "layout": layout.__dict__,
        "class_names": info["class_names"],
        "rows": info["counts"]["transfer"],
        "error_bound_at_temperature_1": max((e.get("bound", 0.0) for e in entries.values()), default=0.0),
        "seconds": time.perf_counter() - began,
    }
    rows = sum(entry["rows"] for entry in entries.values())
    if rows != summary["rows"]:
        raise ArtifactError(
            f"{plan.folder}: {rows} rows of soft targets for {summary['rows']} of the transfer set"
        )
    manifest = finish(
        plan.folder,
        "soft_targets",
        plan.fingerprint,
        plan.config,
        plan.inputs,
        entries,
        summary,
        known=entries,
    )
    for item in work:
        receipt_path(Path(item["target"])).unlink(missing_ok=True)
    (plan.folder / DAMAGED).unlink(missing_ok=True)
    return manifest


def _rows(path: Path) -> int:
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


def _from_teachers(
    context: Context,
    todo: list[dict[str, Any]],
    info: dict[str, Any],
    layout: StoreLayout,
    teachers: list[tuple[dict[str, Any], str]],
) -> Any:
    """Yield (path, entry) as actors finish shards."""
    if not todo:
        return
    runtime, config = context.runtime, context.config.soft_targets
    gpus = runtime.gpus_per_worker()
    capacity = runtime.capacity()
    actors = capacity if config.num_actors == "auto" else config.num_actors
    if config.num_actors != "auto" and config.num_actors > capacity:
        raise ConfigError(
            f"soft_targets.num_actors: {config.num_actors}, but the cluster has room for {capacity}; "
            "lower it or use auto"
        )
    import ray.data

    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        Labeller,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(actors, len(todo)))),
        num_cpus=context.config.compute.cpus_per_worker,
        num_gpus=gpus or None,
        fn_constructor_kwargs={
            "info": info,
            "layout": layout,
            "teachers": teachers,
            "augment": context.config.data.augment.model_dump(mode="json"),
            "batch_size": config.batch_size,
            "use_gpu": gpus > 0,
        },
    )
    for row in dataset.iter_rows():
        yield Path(row["target"]), json.loads(row["entry"])


def _from_files(
    context: Context, todo: list[dict[str, Any]], data: Path, info: dict[str, Any], layout: StoreLayout
) -> Any:
    """The same store from the user's own predictions; no model runs, so no Ray either."""
    if not todo:
        return
    files = context.config.teachers.predictions
    assert files is not None
    transfer = load_split(data, "transfer")
    logits = np.stack([align(path, files, transfer.ids, info["num_classes"]) for path in files.train], 1)
    for item in todo:
        target, first = Path(item["target"]), item["first"]
        rows = np.arange(first, first + _rows(Path(item["source"])))
        columns, bound = encode(torch.from_numpy(logits[rows][:, None]), layout)
        writer = ShardWriter(target, layout)
        writer.write(rows, **columns)
        yield target, {**writer.close(), "bound": bound}


def check_store(
    manifest: Manifest, folder: Path, expected: dict[str, str], class_names: list[str], rows: int
) -> None:
    """Hold the store against what the student is about to use it for.

    Raises ArtifactError naming both sides where teachers, data, class order or count differ.
    """
    problems = []
    for name in sorted({*expected, *manifest.inputs}):
        here, there = expected.get(name, "absent"), manifest.inputs.get(name, "absent")
        if here != there:
            problems.append(f"{name}: the store was made from {there}, this run has {here}")
    if manifest.summary.get("class_names") != class_names:
        problems.append(
            f"classes: the store has {manifest.summary.get('class_names')}, the data {class_names}"
        )
    if manifest.summary.get("rows") != rows:
        problems.append(f"rows: the store has {manifest.summary.get('rows')}, the transfer set {rows}")
    if problems:
        raise ArtifactError(
            f"{folder}: the soft targets belong to something else: {'; '.join(problems)}. "
            "Run the soft-targets stage again"
        )
