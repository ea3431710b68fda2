"""The teachers combined with their specialists: weights chosen on validation rows, then one pass.

The result lies in a store of its own, shaped as the members': log q of each teacher with its specialists. So
the ensemble, the specialists, or both remain a choice of the student's, at any temperature.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ensemble_kd.artifacts import Manifest, fingerprint, read_json, read_manifest, write_json
from ensemble_kd.config import AugmentConfig, Config
from ensemble_kd.data.augment import view
from ensemble_kd.data.records import Arrays, DataInfo, load_labels, read_shard
from ensemble_kd.data.store import ShardWriter, StoreLayout
from ensemble_kd.data.store import read_shard as read_targets
from ensemble_kd.ensemble.choice import Choice, Cluster, choose, own_distribution, with_specialists
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.specialists import active_specialists
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network
from ensemble_kd.stages.base import Done, Stage
from ensemble_kd.stages.calibrated import calibrates, calibration_of
from ensemble_kd.stages.context import COMBINED, Context, StagePlan
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import best, kept_weights, members_folder
from ensemble_kd.stages.shards import Item, encode, fill, in_actors, work_items
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.train.batches import VIEW_SEED
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.device import autocast
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.specialist import Specialty
from ensemble_kd.train.stored import restore

Group = dict[str, Any]
"""The specialists of one cluster: `classes`, and `members`, the fingerprint of each one by its teacher."""

KEPT = 1_000_000_000
"""Bytes of specialists' weights that an actor keeps."""
Answer = tuple[Tensor, Tensor]
"""Places (n,) in the shard, ascending, and a specialist's logits (n, |S| + 1) there."""


def plan(config: Config, run: Path, data: str, store: str, specialists: Manifest) -> StagePlan:
    """The input is which specialists there are: one whose loss was not finite may be there another time."""
    assert config.specialists is not None
    settings: dict[str, Any] = {
        "weight": config.specialists.weight,
        "mean": config.student.mean,  # of these two the choice of weights depends
        "weights": config.student.weights,
    }
    if calibrates(config):
        settings["calibrate"] = True
    return StagePlan.of(
        run,
        "combined_targets",
        settings,
        {
            "data": data,
            "soft_targets": store,
            "specialists": fingerprint(
                specialists.fingerprint, *(m["fingerprint"] for m in specialists.summary["members"])
            ),
        },
    )


def check_classes(specialists: Manifest, store: Manifest, class_names: list[str]) -> None:
    """A specialist's class 3 must be the store's and the data's class 3."""
    for what, manifest in (("specialists", specialists), ("soft targets", store)):
        names = manifest.summary.get("class_names")
        if names != class_names:
            raise ArtifactError(
                f"the {what} are of the classes {names}, the data has {class_names}; run their stage again"
            )


def groups_of(specialists: Manifest, teachers: list[str]) -> list[Group]:
    """The specialists by cluster, with the position of each one's teacher; clusters without any left out."""
    found: dict[int, Group] = {}
    for entry in specialists.summary["members"]:
        if entry["generalist"] in teachers:
            new = {"cluster": entry["cluster"], "classes": entry["classes"], "members": {}}
            group = found.setdefault(entry["cluster"], new)
            group["members"][teachers.index(entry["generalist"])] = entry["fingerprint"]
    return [found[k] for k in sorted(found)]


def run(context: Context, plan: StagePlan, above: Upstream, specialists: Manifest) -> Manifest:
    """Choose the weights, and fill the store where any specialist is on.

    Raises ArtifactError for specialists whose classes are in another order than the store's.
    """
    data, info, teachers = above.data, above.info, above.teachers
    check_classes(specialists, above.store[1], info["class_names"])
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    config = context.config
    assert config.specialists is not None
    entries = teachers.summary["members"]
    names = [entry["name"] for entry in entries]
    weights = kept_weights(config.student.weights, names)
    labels = torch.from_numpy(load_labels(data, "validation"))
    folder = members_folder(context.folder, "teachers")
    folders = [folder / entry["fingerprint"] for entry in entries]
    groups = groups_of(specialists, names)
    calibration = calibration_of(config, context.folder, data, teachers) or [1.0] * len(names)
    own_scale = list(zip(folders, calibration, strict=True))
    ensemble, choice = _combined(context, plan, System("ensemble", own_scale, groups, weights), labels)
    # One generalist with its own specialists, for the report: the paper's system.
    there = {entry["generalist"] for entry in specialists.summary["members"]}
    single = best([entry for entry in entries if entry["name"] in there])["name"]
    own, own_groups = [own_scale[names.index(single)]], groups_of(specialists, [single])
    alone, alone_choice = _combined(context, plan, System("generalist", own, own_groups), labels)
    results = {f"ensemble/{split}": log_q for split, log_q in ensemble.items()}
    results |= {f"generalist/{split}": log_q for split, log_q in alone.items()}
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, plan.folder / COMBINED)
    summary = {
        "on": choice.on,
        "text": choice.text,
        "choice": {**asdict(choice), "clusters": [group["cluster"] for group in groups]},
        "generalist": single,
        "generalist_choice": {**asdict(alone_choice), "clusters": [g["cluster"] for g in own_groups]},
        "class_names": info["class_names"],
    }
    if not choice.on:  # the combination is the ensemble: nothing to compute
        summary["seconds"] = time.perf_counter() - began
        return plan.finish([COMBINED], summary)
    layout = StoreLayout(**above.store[1].summary["layout"]).logits_alone
    summary["layout"] = layout.to_dict()
    arguments = {
        "info": info,
        "layout": layout,
        "clusters": _networks(context, groups, choice),
        "top_n": config.specialists.top_n,
        "calibration": calibration,
        "augment": config.data.augment.model_dump(mode="json"),
        "batch_size": config.soft_targets.batch_size,
    }

    def make(todo: list[Item]) -> Iterator[tuple[Path, dict[str, Any]]]:
        return in_actors(context, todo, Combiner, arguments)

    work = work_items(plan.folder, data, above.store[0])
    rows = info["counts"]["transfer"]
    return fill(context, plan, "combined targets", work, make, rows=rows, summary=summary, others=[COMBINED])


@dataclass(frozen=True)
class System:
    """Teachers with their specialists, to be combined."""

    name: str
    teachers: list[tuple[Path, float]]
    """Folder and temperature of each. Specialists, which start from a teacher's weights and stay near its
    scale, are divided by the same: else calibrating would shift the balance between them."""
    groups: list[Group]
    weights: list[float] | None = None
    """Of the teachers; None for one each."""


def _combined(
    context: Context, plan: StagePlan, system: System, labels: Tensor
) -> tuple[dict[str, Tensor], Choice]:
    """Mean log q (N, C) of validation and test rows, and the choice that validation rows led to.

    The choice is written down before anything is made with it, so that a resumed run goes on with the same.
    """
    config = context.config
    assert config.specialists is not None
    folder = members_folder(context.folder, "specialists")
    mean, top_n = config.student.mean, config.specialists.top_n
    teachers, groups, weights = system.teachers, system.groups, system.weights
    written = plan.folder / f"choice-{system.name}.json"
    choice = Choice(**read_json(written)) if written.exists() else None
    found = {}
    for split in ("validation", "test"):  # one after the other: together they may be large
        members = torch.stack([load_logits(path, split) / scale for path, scale in teachers], 1)
        clusters: list[Cluster] = [
            (
                group["classes"],
                {i: load_logits(folder / n, split) / teachers[i][1] for i, n in group["members"].items()},
            )
            for group in groups
        ]
        if choice is None:
            choice = choose(
                members,
                clusters,
                labels,
                mean=mean,
                weights=weights,
                top_n=top_n,
                weight=config.specialists.weight,
            )
            write_json(written, asdict(choice))
        log_q = with_specialists(members, clusters, choice.weights, top_n)
        found[split] = mean_logits(log_q, 1.0, mean, weights)
    assert choice is not None
    return found, choice


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
    """Runs the specialists over shards and combines them with the members' stored logits.

    A specialist sees only the examples on which it is asked. There may be hundreds, each as large as a
    teacher: as many as fit `KEPT` bytes stay in memory, the others are read anew for each shard.
    """

    def __init__(
        self,
        info: dict[str, Any],
        layout: StoreLayout,
        clusters: list[dict[str, Any]],
        *,
        top_n: int,
        augment: dict[str, Any],
        batch_size: int,
        calibration: list[float],
        use_gpu: bool = False,
    ) -> None:
        """`clusters` have `classes`, `weight` and, by member, `members`: (settings, folder). `calibration`
        has each member's temperature, by which its specialists are divided too."""
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.info, self.layout, self.clusters = info, layout, clusters
        self.top_n, self.batch_size = top_n, batch_size
        self.calibration = torch.tensor(calibration)  # (M,)
        self.augment = AugmentConfig.model_validate(augment)
        self.kept: dict[str, Network] = {}
        self.kept_bytes = 0
        outputs = sum((len(c["classes"]) + 1) * len(c["members"]) for c in clusters)
        self.step = max(1, min(batch_size, 2**24 // max(1, outputs)))
        """Rows combined at once, so that all specialists' logits take at most 64 MB."""

    def make(self, item: Item) -> dict[str, Any]:
        """Write one shard; returns its manifest entry, with the error bound of top_k.

        Raises ArtifactError where the members' shard holds other rows.
        """
        arrays: Arrays = read_shard(Path(item["source"]), DataInfo.from_dict(self.info))
        beside = item["beside"][0]
        numbers, columns = read_targets(Path(beside), self.layout)
        first, count = item["first"], len(arrays.labels)
        rows = torch.arange(first, first + count)
        if not np.array_equal(numbers, rows.numpy()):
            raise ArtifactError(f"{beside}: other rows than {item['source']}; run soft-targets again")
        stored = {name: as_tensor(column) for name, column in columns.items()}
        parts = [slice(begin, begin + self.step) for begin in range(0, count, self.step)]
        asked = torch.cat([self.asked({name: c[part] for name, c in stored.items()}) for part in parts])
        answers = self.answers(as_tensor(arrays.inputs), rows, asked)
        writer, bound = ShardWriter(Path(item["target"]), self.layout), 0.0
        try:
            for part in parts:
                batch = {name: column[part] for name, column in stored.items()}
                written, batch_bound = encode(self.combined(batch, answers, part.start), self.layout)
                bound = max(bound, batch_bound)
                writer.write(rows[part].numpy(), **written)
        except BaseException:
            writer.abort()
            raise
        return {**writer.close(), "bound": bound}

    def members(self, stored: dict[str, Tensor], v: int) -> Tensor:
        """(B, M, C) calibrated logits of the members for view v, from their columns (B, V, ...)."""
        logits = restore({name: column[:, v] for name, column in stored.items()}, self.layout)
        return logits.float() / self.calibration[:, None]

    def asked(self, stored: dict[str, Tensor]) -> Tensor:
        """(B, V, M, K) bool: does the member's distribution ask its specialist of the cluster?"""
        classes = [cluster["classes"] for cluster in self.clusters]
        views = []
        for v in range(self.layout.views):
            members = self.members(stored, v)
            each = [
                active_specialists(own_distribution(members, i), classes, self.top_n)
                for i in range(self.layout.members)
            ]
            views.append(torch.stack(each, 1))
        return torch.stack(views, 1)

    def network(self, settings: dict[str, Any], folder: str) -> Network:
        """A specialist, from memory where it is there."""
        if folder in self.kept:
            return self.kept[folder]
        network = load_network(settings, self.info, Path(folder)).to(self.device)
        size = 4 * network.num_parameters
        if self.kept_bytes + size <= KEPT:
            self.kept[folder], self.kept_bytes = network, self.kept_bytes + size
        return network

    @torch.inference_mode()
    def answers(self, inputs: Tensor, rows: Tensor, asked: Tensor) -> dict[tuple[int, int, int], Answer]:
        """By cluster, member and view: the rows on which the specialist is asked, and its logits there."""
        found: dict[tuple[int, int, int], Answer] = {}
        for k, cluster in enumerate(self.clusters):
            for i, (settings, folder) in cluster["members"].items():
                if not bool(asked[:, :, i, k].any()):
                    nothing = torch.empty(0, dtype=torch.long), torch.empty(0, len(cluster["classes"]) + 1)
                    found |= {(k, i, v): nothing for v in range(self.layout.views)}
                    continue
                network = self.network(settings, folder)
                precision = settings.get("training", {}).get("precision", "auto")
                specialty = Specialty(**settings["specialist"])
                for v in range(self.layout.views):
                    places = asked[:, v, i, k].nonzero()[:, 0]
                    logits = [torch.empty(0, len(cluster["classes"]) + 1)]
                    for part in places.split(self.batch_size) if len(places) else []:
                        seen, numbers = inputs[part].to(self.device), rows[part].to(self.device)
                        seen = view(seen, numbers, v, VIEW_SEED, self.augment) if v else seen
                        with autocast(self.device, precision):
                            outputs = network(seen).logits
                        logits.append(specialty.logits(outputs.float().cpu()) / self.calibration[i])
                    found[k, i, v] = places, torch.cat(logits)
        return found

    def combined(
        self, stored: dict[str, Tensor], answers: dict[tuple[int, int, int], Answer], begin: int
    ) -> Tensor:
        """(B, V, M, C) log q of the rows from `begin` on; `stored` are the members' columns of these."""
        weights = [cluster["weight"] for cluster in self.clusters]
        count = len(next(iter(stored.values())))
        views = []
        for v in range(self.layout.views):
            clusters: list[Cluster] = []
            for k, cluster in enumerate(self.clusters):
                logits = {}
                for i in cluster["members"]:
                    places, known = answers[k, i, v]
                    first, last = torch.searchsorted(places, torch.tensor([begin, begin + count])).tolist()
                    logits[i] = torch.zeros(count, known.shape[1])  # where it is not asked, nobody looks
                    logits[i][places[first:last] - begin] = known[first:last]
                clusters.append((cluster["classes"], logits))
            views.append(with_specialists(self.members(stored, v), clusters, weights, self.top_n))
        return torch.stack(views, 1)


class CombinedTargets(Stage):
    name = "combined-targets"

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        above = (done["data"].fingerprint, done["soft-targets"].fingerprint)
        return plan(config, run, *above, done["specialists"].manifest)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, Upstream.of(done), done["specialists"].manifest)

    def expected(self, config: Config, done: Done) -> int:
        """As much as the teachers' logits."""
        layout = layout_of(config, done.info, len(done["teachers"].known("members"))).logits_alone
        return layout.bytes_per_row * int(done.info["counts"]["transfer"])

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return str(summary["text"])


STAGE = CombinedTargets()
