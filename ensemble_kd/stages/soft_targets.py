"""Stage 3: every teacher over the transfer set, once, by Ray Data, into the store of float16 logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd import disk
from ensemble_kd.artifacts import Manifest, size_on_disk
from ensemble_kd.config import AugmentConfig, Config, PredictionsConfig, num_teachers
from ensemble_kd.data.mixing import Pool
from ensemble_kd.data.munge import neighbourhood
from ensemble_kd.data.predictions import align
from ensemble_kd.data.records import Arrays, DataInfo, load_split, read_shard
from ensemble_kd.data.store import Kept, ShardWriter, StoreLayout
from ensemble_kd.data.versions import Others, version
from ensemble_kd.disk import writing
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.models.outputs import state_name
from ensemble_kd.stages.base import Artifact, DataFound, Done, Stage
from ensemble_kd.stages.class_order import orders_of
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.given_teachers import predictions_of
from ensemble_kd.stages.kept import kept_problems
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import trained
from ensemble_kd.stages.shards import Item, encode, fill, in_actors, num_rows, work_items
from ensemble_kd.train.batches import VIEW_SEED
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.device import autocast
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict, text_batches

BYTES_AT_ONCE = 2**27
"""Of states and scores in memory, before they are written."""
STATES_AT_ONCE = {"cpu": 512, "cuda": 4096}
"""Tokens of a forward pass that returns states and scores of all layers, by kind of device."""


def plan(config: Config, run: Path, data: str, teachers: dict[str, str]) -> StagePlan:
    """`teachers` are the members' fingerprints by name, in order."""
    settings: dict[str, Any] = {"views": config.soft_targets.views, "top_k": config.soft_targets.top_k}
    if config.soft_targets.views > 1:
        settings["augment"] = config.data.augment.model_dump(mode="json")
    if config.soft_targets.keep:
        settings["keep"] = sorted(config.soft_targets.keep)
        for name in ("keep_layers", "keep_positions", "keep_dtype"):
            settings[name] = getattr(config.soft_targets, name)
    return StagePlan.of(run, "soft_targets", settings, {"data": data, **teachers})


def room_problems(config: Config, info: dict[str, Any], run: Path, members: int) -> list[str]:
    """Whether the stores that are to be made fit the disk, beside what is there of them already."""
    layout, rows = layout_of(config, info, members), info["counts"]["transfer"]
    lacks = [(layout, "soft_targets")]
    if config.specialists is not None:
        lacks.append((layout.logits_alone, "combined_targets"))
    needed = 0
    for each, stage in lacks:
        there = max((size_on_disk(folder) for folder in (run / stage).glob("*")), default=0)
        needed += max(0, each.bytes_per_row * rows - there)
    if needed <= (free := disk.free(run)):
        return []
    kept = f"top {layout.top_k} of {layout.classes}" if layout.top_k else f"{layout.classes}"
    twice = ", and as much for them combined with the specialists" if len(lacks) > 1 else ""
    return [
        f"soft_targets: {disk.size(needed)} are to be written ({rows:,} rows x {layout.members} members x "
        f"{kept} classes x {layout.views} views, {layout.bytes_per_row:,} bytes a row{twice}), but "
        f"{disk.mount_of(run)} has {disk.size(free)} free; make room there, choose another --run-dir, lower "
        "soft_targets.views, or set soft_targets.top_k"
    ]


class Labeller:
    """Runs all teachers over shards, every view of every row."""

    def __init__(
        self,
        info: dict[str, Any],
        layout: StoreLayout,
        teachers: list[tuple[dict[str, Any], str]],
        augment: dict[str, Any],
        *,
        batch_size: int,
        use_gpu: bool = False,
        data: str | None = None,
    ) -> None:
        """`teachers` are (settings, folder) of the members, in order; `data` is the folder of the rows that
        inputs are mixed with, where `augment` says so."""
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.info, self.layout, self.batch_size = info, layout, batch_size
        self.augment = AugmentConfig.model_validate(augment)
        self.others: Others | None = None
        if (self.augment.mixup or self.augment.munge) and layout.views > 1:
            assert data is not None
            rows = load_split(Path(data), "transfer").inputs
            self.others = Pool(as_tensor(rows)) if self.augment.mixup else neighbourhood(rows, info)
        self.networks = [
            (
                load_network(settings, info, Path(folder)).to(self.device),
                settings.get("training", {}).get("precision", "auto"),
            )
            for settings, folder in teachers
        ]
        self.step = batch_size
        if layout.kept is not None:
            self.step = max(1, min(batch_size, BYTES_AT_ONCE // layout.bytes_per_row))

    def make(self, item: Item) -> dict[str, Any]:
        """Write one shard; returns its manifest entry, with the error bound of top_k."""
        arrays: Arrays = read_shard(Path(item["source"]), DataInfo.from_dict(self.info))
        with writing(Path(item["target"]), self.layout.bytes_per_row * len(arrays.labels)):
            return self._write(item, arrays)

    def _write(self, item: Item, arrays: Arrays) -> dict[str, Any]:
        writer = ShardWriter(Path(item["target"]), self.layout)
        first, bound = item["first"], 0.0
        try:
            for begin in range(0, len(arrays.labels), self.step):
                inputs = as_tensor(arrays.inputs[begin : begin + self.step])
                rows = torch.arange(first + begin, first + begin + len(inputs))
                kept: dict[str, torch.Tensor] = {}
                if self.layout.kept is None:
                    logits = self.logits(inputs, rows)  # (B, V, M, C) float32
                else:
                    logits, kept = self.states(inputs, self.layout.kept)
                columns, batch_bound = encode(logits, self.layout)
                bound = max(bound, batch_bound)
                writer.write(rows.numpy(), **columns, **{name: c.numpy() for name, c in kept.items()})
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
            seen = inputs
            if v:
                seen, _ = version(inputs, None, rows, v, VIEW_SEED, self.augment, others=self.others)
            for m, (network, precision) in enumerate(self.networks):
                out[:, v, m] = predict(network, seen, self.device, self.batch_size, precision)
        return out

    @torch.inference_mode()
    def states(self, inputs: torch.Tensor, kept: Kept) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As `logits`, and what is kept beside them by column, from one pass of each teacher.

        Raises InputError for numbers that `keep_dtype` cannot hold.
        """
        count, members = len(inputs), self.layout.members
        logits = torch.empty(count, 1, members, self.layout.classes)
        kind = getattr(torch, kept.dtype)
        columns = {
            name: torch.zeros(count, *shape, dtype=kind)
            for name, (shape, _) in kept.columns(1, members).items()
        }
        if kept.features:
            return logits, self._features(inputs, logits, columns["features"])
        wants = {name: True for name in columns}
        tokens = STATES_AT_ONCE["cpu" if self.device.type == "cpu" else "cuda"]
        for m, (network, precision) in enumerate(self.networks):
            for rows, part in text_batches(inputs, self.batch_size, tokens):
                with autocast(self.device, precision):
                    outputs = network(part.to(self.device), **wants)
                logits[rows, 0, m] = outputs.logits.float().cpu()
                absent = part == 0  # (B, L): what a network has there depends on its neighbours in the batch
                if kept.hidden:
                    end = 1 if kept.first_only else part.shape[1]
                    states = torch.stack([outputs.hidden[state_name(k)][:, :end] for k in kept.hidden], 1)
                    states = states.to("cpu", kind).masked_fill_(absent[:, None, :end, None], 0)
                    columns["hidden"][rows, 0, m, :, :end] = states  # (B, K, L, D)
                if kept.attention:
                    end = part.shape[1]
                    scores = torch.stack([outputs.attention[k - 1] for k in kept.attention], 1)
                    scores = scores.to("cpu", kind)  # (B, K, A, L, L)
                    scores.masked_fill_((absent[:, :, None] | absent[:, None])[:, None, None], 0)
                    columns["attention"][rows, 0, m, :, :, :end, :end] = scores
        _check_finite(columns)
        return logits, columns

    def _features(
        self, inputs: torch.Tensor, logits: torch.Tensor, features: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Fill `logits` (B, 1, M, C) and `features` (B, 1, M, D); returns the latter as a column."""
        for m, (network, precision) in enumerate(self.networks):
            network.eval()
            for begin in range(0, len(inputs), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                with autocast(self.device, precision):
                    outputs = network(inputs[part].to(self.device), hidden=True)
                logits[part, 0, m] = outputs.logits.float().cpu()
                assert outputs.hidden is not None, "checked with the configuration"
                features[part, 0, m] = list(outputs.hidden.values())[-1].to("cpu", features.dtype)
        _check_finite({"features": features})
        return {"features": features}


def _check_finite(columns: dict[str, torch.Tensor]) -> None:
    """Raises InputError for numbers that `keep_dtype` cannot hold."""
    for name, column in columns.items():
        if not torch.isfinite(column).all():
            kind = str(column.dtype).removeprefix("torch.")
            raise InputError(
                f"soft_targets.keep_dtype: {kind} cannot hold a teacher's {name} (beyond "
                f"{torch.finfo(column.dtype).max:g}, or not a number); set it to float32, or keep fewer "
                "layers"
            )


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
            return _from_files(given, todo, data, info, layout, orders_of(context.config, info))
        arguments = {
            "info": info,
            "layout": layout,
            "teachers": teachers,
            "augment": context.config.data.augment.model_dump(mode="json"),
            "batch_size": context.config.soft_targets.batch_size,
            "data": str(data.resolve()),
        }
        return in_actors(context, todo, Labeller, arguments)

    summary = {"layout": layout.to_dict(), "class_names": info["class_names"]}
    work = work_items(plan.folder, data)
    return fill(context, plan, "soft targets", work, make, rows=info["counts"]["transfer"], summary=summary)


def _from_files(
    files: PredictionsConfig,
    todo: list[Item],
    data: Path,
    info: dict[str, Any],
    layout: StoreLayout,
    orders: list[list[int] | None],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The same store from the user's own predictions; no model runs, so no Ray either."""
    transfer = load_split(data, "transfer")
    members = zip(files.train, orders, strict=True)
    logits = np.stack(
        [align(path, files, transfer.ids, info["num_classes"], order) for path, order in members], 1
    )
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


def members_of(done: Done) -> dict[str, str]:
    """Fingerprint of each teacher, by its name, in order."""
    return {entry["name"]: entry["fingerprint"] for entry in done["teachers"].known("members")}


class SoftTargets(Stage):
    name = "soft-targets"

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, done["data"].fingerprint, members_of(done))

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        teachers = done["teachers"]
        given = predictions_of(context.config, teachers.folder, done.info, teachers.summary["source"])
        networks = trained(context.folder, teachers.manifest) if given is None else []
        return run(context, plan, done["data"].folder, done.info, networks, given)

    def verify(self, config: Config, artifact: Artifact, done: Done) -> None:
        """Raises ArtifactError for a store that was made for something else."""
        check_store(
            artifact.manifest,
            artifact.folder,
            {"data": done["data"].fingerprint, **members_of(done)},
            done.info["class_names"],
            done.info["counts"]["transfer"],
        )

    def problems(self, config: Config, found: DataFound) -> list[str]:
        problems = kept_problems(config, found.info)
        top_k, classes = config.soft_targets.top_k, found.info["num_classes"]
        if top_k is not None and top_k >= classes:
            problems.append(
                f"soft_targets.top_k: {top_k} of {classes} classes saves nothing; lower it, or set it to null"
            )
        if not problems and found.folder is not None:
            problems += room_problems(config, found.info, found.folder.parents[1], num_teachers(config))
        return problems

    def expected(self, config: Config, done: Done) -> int:
        layout = layout_of(config, done.info, len(done["teachers"].known("members")))
        return layout.bytes_per_row * int(done.info["counts"]["transfer"])

    def describe(self, summary: dict[str, Any], size: int) -> str:
        layout = summary["layout"]
        shape = f"{summary['rows']} rows x {layout['views']} views x {layout['members']} members"
        text = f"{shape}, {size / 1e6:.1f} MB"
        if layout["top_k"]:
            bound = summary["error_bound_at_temperature_1"]
            text += f", top {layout['top_k']}, error at most {bound:.3g} at T = 1"
        if kept := layout.get("kept"):
            text += "".join(
                f", {name} of {len(kept[name])} layers" for name in ("hidden", "attention") if kept[name]
            )
        return text


STAGE = SoftTargets()
