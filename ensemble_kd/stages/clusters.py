"""Which classes do the teachers confuse? Clusters of the columns of their predictions' covariance.

The store of soft targets is read once. A large one is read in parts by Ray tasks, whose sums are merged; a
dense matrix of very many classes is summed up here alone, so that it is held once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ensemble_kd.artifacts import Manifest, write_json
from ensemble_kd.config import ClustersConfig, Config
from ensemble_kd.data.records import load_split
from ensemble_kd.data.store import StoreLayout, read_shard
from ensemble_kd.ensemble import top_k
from ensemble_kd.ensemble.assign import assign_classes
from ensemble_kd.ensemble.clusters import cluster_columns
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.covariance import (
    StreamingCovariance,
    confusion_affinity,
    confusion_captured,
    confusion_mass,
)
from ensemble_kd.ensemble.store_covariance import Moments, SparseMoments, softened
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.stages.base import DataFound, Done, Stage
from ensemble_kd.stages.calibrated import calibrates, calibration_of
from ensemble_kd.stages.context import MATRIX, Context, StagePlan
from ensemble_kd.stages.members import teachers_predictions
from ensemble_kd.stages.training_data import shards_of
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.targets.metrics import confusion_matrix
from ensemble_kd.train.blocks import as_tensor, mix

CLUSTERS = "clusters.json"
STREAM_OF_CLUSTERS = 303
BATCH = 4096
"""Rows whose predictions are restored at once."""
SPREAD_FROM = 4e11
"""Multiplications of the pass from which it is spread over the cluster: some ten seconds of one core."""
HELD_ONCE_FROM = 4096
"""Classes from which a dense matrix is not held by each of several workers."""
MANY_CLASSES = 50
"""Classes from which `clusters.centre: auto` subtracts the means."""
KEPT_UP_TO = 2048
"""Classes up to which the matrix is kept for the report."""


def plan(config: Config, run: Path, data: str, store: str) -> StagePlan:
    settings = {**config.clusters.model_dump(mode="json"), "seed": config.seed}
    if calibrates(config):
        settings["calibrate"] = True
    return StagePlan.of(run, "clusters", settings, {"data": data, "soft_targets": store})


def problems(config: Config, num_classes: int) -> list[str]:
    """What cannot be with so many classes."""
    clusters, found = config.clusters, []
    if num_classes < 3:
        found.append(
            f"specialists: the data has {num_classes} classes; a specialist needs two to tell apart and one "
            "to leave out, so leave the specialists out (specialists: null)"
        )
    if clusters.num_clusters != "auto" and clusters.num_clusters > num_classes:
        found.append(
            f"clusters.num_clusters: {clusters.num_clusters} clusters of {num_classes} classes; "
            f"ask for at most {max(num_classes // 2, 1)}, or auto"
        )
    for name in ("classes_per_specialist", "min_size"):
        size = getattr(clusters, name)
        if size is not None and size >= num_classes >= 3:
            found.append(
                f"clusters.{name}: {size} of {num_classes} classes; at most {num_classes - 1}, so that there "
                "is something to leave out"
            )
    return found


def run(context: Context, plan: StagePlan, above: Upstream) -> Manifest:
    """Find the clusters in what the teachers say.

    Raises InputError where the clustering collapses or nothing is confused, with the remedy.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    settings, data, info, teachers = context.config.clusters, above.data, above.info, above.teachers
    calibration = calibration_of(context.config, context.folder, data, teachers)
    if settings.source == "confusion":
        matrix = _confusion(data, info, teachers_predictions(context.folder, teachers), calibration)
    else:
        matrix = predictions_matrix(context, *above.store, settings, calibration)
    seconds = time.perf_counter() - began
    context.console.progress("clusters", 0, 1, "clustering")
    try:
        found = cluster_columns(
            matrix,
            method=settings.method,
            num_clusters=settings.num_clusters,
            seed=mix(context.config.seed, STREAM_OF_CLUSTERS),
            normalise=settings.normalise,
        )
        sets = assign_classes(
            matrix,
            found,
            classes_per_specialist=settings.classes_per_specialist,
            overlap=settings.overlap,
            min_size=settings.min_size,
            max_size=settings.max_size,
        )
    finally:
        context.console.progress("clusters", 0, 0, "")
    total = float(confusion_mass(matrix).sum())
    names = info["class_names"]
    clusters: list[dict[str, Any]] = [
        {
            "classes": list(map(int, members)),
            "names": [names[c] for c in members],
            "confusion_captured": confusion_captured(matrix, members, total),
        }
        for members in sets
    ]
    covered = {c for cluster in clusters for c in cluster["classes"]}
    outside = [c for c in range(len(names)) if c not in covered]
    write_json(
        plan.folder / CLUSTERS,
        {"clusters": clusters, "without": outside, "without_names": [names[c] for c in outside]},
    )
    files = [CLUSTERS]
    if len(names) <= KEPT_UP_TO:
        save_file({"matrix": np.ascontiguousarray(matrix, np.float32)}, plan.folder / MATRIX)
        files.append(MATRIX)
    summary = {
        "clusters": clusters,
        "without": outside,
        "confusion_captured": _captured(matrix, sets, total),
        "matrix_seconds": seconds,
        "seconds": time.perf_counter() - began,
    }
    return plan.finish(files, summary)


def _captured(matrix: np.ndarray, sets: list[tuple[int, ...]], total: float) -> float:
    """Share of the confusion between two classes that some specialist knows both of."""
    pairs: dict[int, set[int]] = {}
    for members in sets:
        for c in members:
            pairs.setdefault(c, set()).update(members)
    mass = 0.0
    for c, known in pairs.items():
        others = np.array(sorted(known - {c}))
        mass += float(np.maximum(matrix[c, others], 0).sum(dtype=np.float64))
    return mass / total if total > 0 else 0.0


def _confusion(
    data: Path, info: dict[str, Any], validation: list[Path], calibration: list[float] | None
) -> np.ndarray:
    """`validation` are files with the teachers' validation logits, one a member."""
    if not validation:
        raise ConfigError(
            "clusters.source: 'confusion' needs predictions for the validation rows, and there are none "
            "(teachers.predictions.validation); use 'covariance'"
        )
    logits = np.stack([load_file(path)["validation"] for path in validation], 1)
    predicted = mean_logits(torch.from_numpy(logits), 1.0, calibration=calibration).argmax(1).numpy()
    counts = confusion_matrix(predicted, load_split(data, "validation").labels, info["num_classes"])
    if not (counts - np.diag(np.diagonal(counts))).any():
        raise InputError(
            "clusters.source: the teachers make no mistake on the validation rows, so there is no confusion "
            "to cluster; use 'covariance'"
        )
    return confusion_affinity(counts)


def predictions_matrix(
    context: Context,
    store: Path,
    receipt: Manifest,
    settings: ClustersConfig,
    calibration: list[float] | None = None,
) -> np.ndarray:
    """(C, C) covariance, or E[p p^T], of the members' mean prediction on the transfer rows as they are."""
    moments = moments_of(context, store, receipt, settings.temperature, calibration)
    matrix = moments.covariance()
    centre = len(matrix) >= MANY_CLASSES if settings.centre == "auto" else settings.centre
    if not centre:
        mean = np.asarray(moments.mean)
        for i, row in enumerate(matrix):  # in place: the matrix is held once
            row += (mean[i] * mean).astype(matrix.dtype)
    return matrix


def moments_of(
    context: Context,
    store: Path,
    receipt: Manifest,
    temperature: float,
    calibration: list[float] | None = None,
) -> Moments:
    """Sums over the store, view 0, at T."""
    layout = StoreLayout(**receipt.summary["layout"]).logits_alone
    shards = [str((store / name).resolve()) for name in shards_of(receipt)]
    rows = receipt.summary["rows"]
    # Multiplications a row, roughly: of the products, and of restoring and softening dense logits.
    if layout.top_k is None:
        cost = layout.classes**2 + 20 * layout.members * layout.classes
    else:
        cost = 10 * (layout.members * layout.top_k) ** 2
    alone = layout.top_k is None and layout.classes > HELD_ONCE_FROM
    moments: Moments
    if alone or rows * cost < SPREAD_FROM or len(shards) < 2 or context.runtime.local:
        moments = empty(layout)
        for i, shard in enumerate(shards):
            context.console.progress("clusters", i, len(shards), "reading soft targets")
            add_shard(moments, shard, layout, temperature, calibration)
        context.console.progress("clusters", 0, 0, "")
        return moments
    workers = max(1, min(context.runtime.capacity(), len(shards)))
    import ray

    claim = context.config.compute.cpus_per_worker
    task = ray.remote(num_cpus=claim)(part_of)
    waiting = [task.remote(shards[i::workers], layout, temperature, calibration) for i in range(workers)]
    parts = len(waiting)
    moments = empty(layout)
    while waiting:  # merged as they come, so that few parts are held at once
        ready, waiting = ray.wait(waiting)
        moments.merge(ray.get(ready[0]))
        context.console.progress("clusters", parts - len(waiting), parts, "merging parts of the covariance")
    context.console.progress("clusters", 0, 0, "")
    return moments


def empty(layout: StoreLayout) -> Moments:
    return SparseMoments(layout.classes) if layout.top_k is not None else StreamingCovariance(layout.classes)


def part_of(
    shards: list[str], layout: StoreLayout, temperature: float, calibration: list[float] | None = None
) -> Moments:
    """The sums over some shards; runs in a Ray task."""
    torch.set_num_threads(1)
    moments = empty(layout)
    for shard in shards:
        add_shard(moments, shard, layout, temperature, calibration)
    if isinstance(moments, SparseMoments):
        moments.settle()  # here, side by side, rather than where the parts are merged
    return moments


def add_shard(
    moments: Moments,
    shard: str,
    layout: StoreLayout,
    temperature: float,
    calibration: list[float] | None = None,
) -> None:
    """Add the rows of one shard, at bounded memory."""
    _, columns = read_shard(Path(shard), layout)
    first = {name: as_tensor(column)[:, 0] for name, column in columns.items()}  # view 0
    if isinstance(moments, SparseMoments):
        kept = top_k.TopK(first["values"], first["indices"], first["rest"])
        moments.update(kept, temperature, calibration)
        return
    rows = max(1, min(BATCH, 2**25 // (layout.members * layout.classes)))
    for part in first["logits"].split(rows):
        moments.update(softened(part, temperature, calibration))


class Clusters(Stage):
    name = "clusters"

    def problems(self, config: Config, found: DataFound) -> list[str]:
        return problems(config, found.info["num_classes"])

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, done["data"].fingerprint, done["soft-targets"].fingerprint)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, Upstream.of(done))

    def describe(self, summary: dict[str, Any], size: int) -> str:
        sizes = sorted(len(cluster["classes"]) for cluster in summary["clusters"])
        text = f"{len(sizes)} of {sizes[0]} to {sizes[-1]} classes, "
        text += f"{100 * summary['confusion_captured']:.0f}% of the confusion inside"
        if summary["without"]:
            text += f"; {len(summary['without'])} classes without"
        return text


STAGE = Clusters()
