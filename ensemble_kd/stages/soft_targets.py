"""Stage 3: every teacher over the transfer set, once, by Ray Data, into the store of float16 logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import AugmentConfig, Config, PredictionsConfig
from ensemble_kd.data.augment import view
from ensemble_kd.data.predictions import align
from ensemble_kd.data.prepared import Arrays, DataInfo, load_split, read_shard
from ensemble_kd.data.store import ShardWriter, StoreLayout
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.shards import Item, encode, fill, in_actors, num_rows, work_items
from ensemble_kd.train.batches import VIEW_SEED, as_tensor
from ensemble_kd.train.loop import predict
from ensemble_kd.train.member import load_network


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
    """Runs all teachers over shards, every view of every row."""

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
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.info, self.layout, self.batch_size = info, layout, batch_size
        self.augment = AugmentConfig.model_validate(augment)
        self.networks = [
            (
                load_network(settings, info, Path(folder)).to(self.device),
                settings.get("training", {}).get("precision", "auto"),
            )
            for settings, folder in teachers
        ]

    def make(self, item: Item) -> dict[str, Any]:
        """Write one shard; returns its manifest entry, with the error bound of top_k."""
        arrays: Arrays = read_shard(Path(item["source"]), DataInfo.from_dict(self.info))
        writer = ShardWriter(Path(item["target"]), self.layout)
        first, bound = item["first"], 0.0
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
            for m, (network, precision) in enumerate(self.networks):
                out[:, v, m] = predict(network, seen, self.device, self.batch_size, precision)
        return out


def run(
    context: Context,
    plan: StagePlan,
    data: Path,
    info: dict[str, Any],
    teachers: list[tuple[dict[str, Any], str]],
    given: PredictionsConfig | None = None,
) -> Manifest:
    """Fill the store. `teachers` are (settings, folder) of the trained members; `given` are files in their
    place."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    layout = layout_of(context.config, info, len(plan.inputs) - 1)

    def make(todo: list[Item]) -> Iterator[tuple[Path, dict[str, Any]]]:
        if given is not None:
            return _from_files(given, todo, data, info, layout)
        arguments = {
            "info": info,
            "layout": layout,
            "teachers": teachers,
            "augment": context.config.data.augment.model_dump(mode="json"),
            "batch_size": context.config.soft_targets.batch_size,
        }
        return in_actors(context, todo, Labeller, arguments)

    summary = {"layout": layout.__dict__, "class_names": info["class_names"]}
    work = work_items(plan.folder, data)
    return fill(context, plan, "soft targets", work, make, info["counts"]["transfer"], summary)


def _from_files(
    files: PredictionsConfig, todo: list[Item], data: Path, info: dict[str, Any], layout: StoreLayout
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The same store from the user's own predictions; no model runs, so no Ray either."""
    transfer = load_split(data, "transfer")
    logits = np.stack([align(path, files, transfer.ids, info["num_classes"]) for path in files.train], 1)
    for item in todo:
        target, first = Path(item["target"]), item["first"]
        rows = np.arange(first, first + num_rows(Path(item["source"])))
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
