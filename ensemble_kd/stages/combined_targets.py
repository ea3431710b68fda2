"""The teachers combined with their specialists: weights chosen on validation rows, then one pass.

The result lies in a store of its own, shaped as the members': log q of each teacher with its specialists. So
the ensemble, the specialists, or both remain a choice of the student's, at any temperature.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ensemble_kd.artifacts import Manifest, finish, read_manifest
from ensemble_kd.config import AugmentConfig, Config
from ensemble_kd.data.prepared import Arrays, DataInfo, load_labels, read_shard
from ensemble_kd.data.store import ShardWriter, StoreLayout
from ensemble_kd.data.store import read_shard as read_targets
from ensemble_kd.ensemble.choice import Choice, Cluster, choose, with_specialists
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.stages.context import COMBINED, Context, StagePlan
from ensemble_kd.stages.members import kept_weights, members_folder
from ensemble_kd.stages.shards import Item, encode, fill, in_actors, network_logits, work_items
from ensemble_kd.train.batches import as_tensor
from ensemble_kd.train.member import PREDICTIONS, load_network
from ensemble_kd.train.specialist import Specialty
from ensemble_kd.train.stored import restore

Group = dict[str, Any]
"""The specialists of one cluster: `classes`, and `members`, the fingerprint of each one by its teacher."""


def plan(config: Config, run: Path, data: str, store: str, specialists: str) -> StagePlan:
    assert config.specialists is not None
    settings: dict[str, Any] = {
        "weight": config.specialists.weight,
        "mean": config.student.mean,  # of these two the choice of weights depends
        "weights": config.student.weights,
    }
    return StagePlan.of(
        run,
        "combined_targets",
        settings,
        {"data": data, "soft_targets": store, "specialists": specialists},
    )


def groups_of(specialists: Manifest, teachers: list[str]) -> list[Group]:
    """The specialists by cluster, with the position of each one's teacher; clusters without any left out."""
    found: dict[int, Group] = {}
    for entry in specialists.summary["members"]:
        if entry["generalist"] in teachers:
            group = found.setdefault(entry["cluster"], {"classes": entry["classes"], "members": {}})
            group["members"][teachers.index(entry["generalist"])] = entry["fingerprint"]
    return [found[k] for k in sorted(found)]


def run(
    context: Context,
    plan: StagePlan,
    data: Path,
    info: dict[str, Any],
    teachers: Manifest,
    store: Path,
    receipt: Manifest,
    specialists: Manifest,
) -> Manifest:
    """Choose the weights, and fill the store where any specialist is on."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    config = context.config
    assert config.specialists is not None
    entries = teachers.summary["members"]
    names = [entry["name"] for entry in entries]
    weights = kept_weights(config.student.weights, names)
    labels = torch.from_numpy(load_labels(data, "validation"))
    folder = members_folder(context.folder, "teachers")
    logits = [load_file(folder / entry["fingerprint"] / PREDICTIONS) for entry in entries]
    groups = groups_of(specialists, names)
    ensemble, choice = _combined(context, logits, weights, groups, labels)
    # One generalist with its own specialists, for the report: the paper's system.
    single = _generalist(specialists, entries)
    own = [logits[names.index(single)]]
    alone, alone_choice = _combined(context, own, None, groups_of(specialists, [single]), labels)
    results = {f"ensemble/{split}": log_q for split, log_q in ensemble.items()}
    results |= {f"generalist/{split}": log_q for split, log_q in alone.items()}
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, plan.folder / COMBINED)
    summary = {
        "on": choice.on,
        "text": choice.text,
        "choice": asdict(choice),
        "generalist": single,
        "generalist_choice": asdict(alone_choice),
        "class_names": info["class_names"],
    }
    if not choice.on:  # the combination is the ensemble: nothing to compute
        summary["seconds"] = time.perf_counter() - began
        return finish(
            plan.folder, plan.stage, plan.fingerprint, plan.config, plan.inputs, [COMBINED], summary
        )
    layout = StoreLayout(**receipt.summary["layout"])
    summary["layout"] = layout.__dict__
    arguments = {
        "info": info,
        "layout": layout,
        "clusters": _networks(context, groups, choice),
        "top_n": config.specialists.top_n,
        "augment": config.data.augment.model_dump(mode="json"),
        "batch_size": config.soft_targets.batch_size,
    }

    def make(todo: list[Item]) -> Iterator[tuple[Path, dict[str, Any]]]:
        return in_actors(context, todo, Combiner, arguments)

    work = work_items(plan.folder, data, store)
    rows = info["counts"]["transfer"]
    return fill(context, plan, "combined targets", work, make, rows, summary, [COMBINED])


def _combined(
    context: Context,
    logits: list[dict[str, Tensor]],
    weights: list[float] | None,
    groups: list[Group],
    labels: Tensor,
) -> tuple[dict[str, Tensor], Choice]:
    """Mean log q (N, C) of validation and test rows, and the choice that validation rows led to."""
    config = context.config
    assert config.specialists is not None
    folder = members_folder(context.folder, "specialists")
    outputs = [
        {i: load_file(folder / name / PREDICTIONS) for i, name in group["members"].items()}
        for group in groups
    ]
    mean, top_n = config.student.mean, config.specialists.top_n
    members = {split: torch.stack([part[split] for part in logits], 1) for split in ("validation", "test")}

    def of(split: str) -> list[Cluster]:
        return [
            (group["classes"], {i: part[split] for i, part in parts.items()})
            for group, parts in zip(groups, outputs, strict=True)
        ]

    choice = choose(
        members["validation"],
        of("validation"),
        labels,
        mean=mean,
        weights=weights,
        top_n=top_n,
        weight=config.specialists.weight,
    )
    found = {
        split: mean_logits(with_specialists(part, of(split), choice.weights, top_n), 1.0, mean, weights)
        for split, part in members.items()
    }
    return found, choice


def _generalist(specialists: Manifest, teachers: list[dict[str, Any]]) -> str:
    """The best teacher on validation rows, of those that have specialists."""
    there = {entry["generalist"] for entry in specialists.summary["members"]}
    chosen = [entry for entry in teachers if entry["name"] in there]
    return str(min(chosen, key=lambda entry: entry["validation_loss"])["name"])


def _networks(context: Context, groups: list[Group], choice: Choice) -> list[dict[str, Any]]:
    """What an actor needs of the clusters that are on: classes, weight, settings and folders by member."""
    folder = members_folder(context.folder, "specialists")
    found = []
    for group, weight in zip(groups, choice.weights, strict=True):
        if not weight > 0:
            continue
        members = {}
        for i, name in group["members"].items():
            manifest = read_manifest(folder / name)
            if manifest is None:
                raise ArtifactError(f"{folder / name}: missing; run the specialists stage again")
            members[i] = (manifest.config, str((folder / name).resolve()))
        found.append({"classes": group["classes"], "weight": weight, "members": members})
    return found


class Combiner:
    """Runs the specialists over shards and combines them with the members' stored logits."""

    def __init__(
        self,
        info: dict[str, Any],
        layout: StoreLayout,
        clusters: list[dict[str, Any]],
        top_n: int,
        augment: dict[str, Any],
        batch_size: int,
        use_gpu: bool = False,
    ) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.info, self.layout, self.top_n, self.batch_size = info, layout, top_n, batch_size
        self.augment = AugmentConfig.model_validate(augment)
        self.classes = [cluster["classes"] for cluster in clusters]
        self.weights = [cluster["weight"] for cluster in clusters]
        self.networks: list[tuple[Network, str]] = []
        self.places: list[tuple[int, int, Specialty]] = []
        """Cluster, member and specialty of each network."""
        for number, cluster in enumerate(clusters):
            for i, (settings, folder) in cluster["members"].items():
                network = load_network(settings, info, Path(folder)).to(self.device)
                self.networks.append((network, settings.get("training", {}).get("precision", "auto")))
                self.places.append((number, int(i), Specialty(**settings["specialist"])))

    def make(self, item: Item) -> dict[str, Any]:
        """Write one shard; returns its manifest entry, with the error bound of top_k.

        Raises ArtifactError where the members' shard holds other rows.
        """
        arrays: Arrays = read_shard(Path(item["source"]), DataInfo.from_dict(self.info))
        beside = item["beside"][0]
        numbers, columns = read_targets(Path(beside), self.layout)
        first, bound = item["first"], 0.0
        if not np.array_equal(numbers, np.arange(first, first + len(arrays.labels))):
            raise ArtifactError(f"{beside}: other rows than {item['source']}; run soft-targets again")
        stored = {name: as_tensor(column) for name, column in columns.items()}
        writer = ShardWriter(Path(item["target"]), self.layout)
        try:
            for begin in range(0, len(arrays.labels), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                inputs = as_tensor(arrays.inputs[part])
                rows = torch.arange(first + begin, first + begin + len(inputs))
                log_q = self.combined(inputs, rows, {name: c[part] for name, c in stored.items()})
                written, batch_bound = encode(log_q, self.layout)
                bound = max(bound, batch_bound)
                writer.write(rows.numpy(), **written)
        except BaseException:
            writer.abort()
            raise
        return {**writer.close(), "bound": bound}

    def combined(self, inputs: Tensor, rows: Tensor, stored: dict[str, Tensor]) -> Tensor:
        """(B, V, M, C) log q of all views of these examples; `stored` are the members' columns."""
        layout = self.layout
        found = torch.empty(len(inputs), layout.views, layout.members, layout.classes)
        outputs: list[dict[int, Tensor]] = [{} for _ in self.classes]
        views = network_logits(self.networks, inputs, rows, layout.views, self.augment, self.device)
        for v, number, logits in views:
            cluster, member, specialty = self.places[number]
            outputs[cluster][member] = specialty.logits(logits)
            if number + 1 == len(self.networks):  # the last one of this view
                members = restore({name: column[:, v] for name, column in stored.items()}, layout)
                clusters = list(zip(self.classes, outputs, strict=True))
                found[:, v] = with_specialists(members, clusters, self.weights, self.top_n)
        return found
