"""The specialists: one per cluster and generalist, all in one Ray Train worker group."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest, finish
from ensemble_kd.config import Config, member_settings, num_teachers
from ensemble_kd.data.prepared import load_labels
from ensemble_kd.errors import InputError, TrainingError
from ensemble_kd.models.build import build
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.members import (
    STREAM_OF_SPECIALISTS,
    member_summary,
    members_folder,
    train_and_follow,
)
from ensemble_kd.stages.training_data import arrays_and_loader, with_generalists
from ensemble_kd.train.batches import mix
from ensemble_kd.train.member import MemberTask


def problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Teachers that specialists cannot start from."""
    found = []
    models = {
        str(m): m for m in (member_settings(config.teachers, i)[0] for i in range(num_teachers(config)))
    }
    assert config.specialists is not None
    for model in models.values():
        head, name = build(model, info).head, getattr(model, "callable", model.name)
        corrected = config.specialists.output == "full" and config.specialists.correction != "none"
        if head is not None and head.bias is None and corrected:
            found.append(
                f"specialists.output: 'full' is corrected by the bias of the output layer, and that of "
                f"model {name!r} has none; use 'aggregate', or specialists.correction=none"
            )
        if head is None:
            found.append(
                f"specialists: they start from the teacher's output layer, and model {name!r} shows none; "
                "give its module a last torch.nn.Linear with one output for each class, or leave the "
                "specialists out"
            )
    return found


def generalists(config: Config, teachers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of the teachers' manifest that get specialists."""
    assert config.specialists is not None
    if config.specialists.generalists == "all":
        return teachers
    return [best(teachers)]


def best(teachers: list[dict[str, Any]]) -> dict[str, Any]:
    """The teacher with the least validation loss."""
    return min(teachers, key=lambda entry: entry["validation_loss"])


def plan(config: Config, run: Path, data: str, clusters: str, store: str, teachers: list[Any]) -> StagePlan:
    assert config.specialists is not None
    settings = config.specialists.model_dump(
        mode="json", exclude={"weight", "replicas_per_member"}
    )  # the weight belongs to the combination
    settings |= {"seed": config.seed, "augment": _augment(config)}
    inputs = {"data": data, "clusters": clusters}
    inputs |= {entry["name"]: entry["fingerprint"] for entry in generalists(config, teachers)}
    if config.specialists.output == "full":
        inputs["soft_targets"] = store
        settings["views"] = config.soft_targets.views
    return StagePlan.of(run, "specialists", settings, inputs)


def _augment(config: Config) -> dict[str, Any]:
    """As the teachers; a full softmax learns from stored soft targets, and so from their views."""
    assert config.specialists is not None
    active = config.data.augment.active and config.teachers.augment
    if config.specialists.output == "full":
        active = config.data.augment.active and config.soft_targets.views > 1
    return config.data.augment.model_dump(mode="json") if active else {}


def tasks(
    config: Config,
    inputs: dict[str, str],
    clusters: list[dict[str, Any]],
    teachers: list[dict[str, Any]],
    labels: np.ndarray,
) -> list[MemberTask]:
    """One task per generalist and cluster; `labels` (N,) are those of the labelled transfer rows.

    Seed and settings follow from the classes, not from the cluster's number: a cluster that stays as it was
    keeps its specialists.
    """
    settings, found = config.specialists, []
    assert settings is not None
    counts = np.bincount(labels, minlength=1 + max(max(c["classes"]) for c in clusters))
    chosen = generalists(config, teachers)
    full = settings.output == "full"
    for entry in chosen:
        index = int(entry["name"].rsplit("-", 1)[1])
        position = [teacher["name"] for teacher in teachers].index(entry["name"])
        model, _ = member_settings(config.teachers, index)
        for k, cluster in enumerate(clusters):
            classes = cluster["classes"]
            rows = int(counts[classes].sum())
            specialty = {
                "classes": classes,
                "generalist": entry["fingerprint"],
                "natural_share": rows / len(labels),
                "output": settings.output,
                "train_outside": settings.train_outside,
                "special_fraction": settings.special_fraction,
                "correction": settings.correction,
                "top_n": settings.top_n,
            }
            soft: dict[str, Any] = {
                "alpha": 1.0,
                "objective": {"name": "kl"},
                "weights": [float(i == position) for i in range(len(teachers))],
                "views": config.soft_targets.views,
                "rows": {"labelled": False, "bootstrap": False, "fraction": 1.0},
            }
            found.append(
                MemberTask(
                    name=f"specialist-{k:03d}-of-{entry['name']}",
                    role="specialist",
                    seed=mix(config.seed, STREAM_OF_SPECIALISTS, index, *classes),
                    model=model.model_dump(mode="json"),
                    training=settings.training.model_dump(mode="json"),
                    inputs={
                        "data": inputs["data"],
                        "generalist": entry["fingerprint"],
                        **({"soft_targets": inputs["soft_targets"]} if full else {}),
                    },
                    examples_per_epoch=round(rows / settings.special_fraction),
                    augment=_augment(config),
                    specialist=specialty,
                    **(soft if full else {}),
                )
            )
    return found


def check_labels(clusters: list[dict[str, Any]], labels: np.ndarray, names: list[str]) -> None:
    """Raises InputError for clusters whose specialist would have nothing to learn from."""
    problems = []
    counts = np.bincount(labels, minlength=len(names))
    for k, cluster in enumerate(clusters):
        absent = [names[c] for c in cluster["classes"] if not counts[c]]
        if absent:
            problems.append(
                f"specialists: cluster {k} has classes without a labelled row: {', '.join(absent[:5])}; "
                "label some of them, raise data.label_fraction, or lower clusters.classes_per_specialist"
            )
        elif counts[cluster["classes"]].sum() == len(labels):
            problems.append(
                f"specialists: cluster {k} has every labelled row, so its dustbin would stay empty; raise "
                "clusters.num_clusters or lower clusters.classes_per_specialist"
            )
    if problems:
        raise InputError(problems)


def run(
    context: Context,
    plan: StagePlan,
    data: Path,
    info: dict[str, Any],
    clusters: Manifest,
    teachers: Manifest,
    store: Path,
    receipt: Manifest,
) -> Manifest:
    """Train what is missing.

    A specialist whose loss was not finite is left out, as a member is with teachers.on_failure=exclude.
    Raises InputError for clusters without labelled rows, before any training.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    config = context.config
    assert config.specialists is not None
    found, entries = clusters.summary["clusters"], teachers.summary["members"]
    labels = load_labels(data, "transfer")
    labels = labels[labels >= 0]
    check_labels(found, labels, info["class_names"])
    wanted = tasks(config, plan.inputs, found, entries, labels)
    teachers_members = members_folder(context.folder, "teachers")
    full = config.specialists.output == "full"
    arrays, load, _ = arrays_and_loader(
        data, info, config.compute.memory_budget, (store, receipt) if full else None
    )
    load = partial(with_generalists, load=load, generalists=str(teachers_members.resolve()))
    good = train_and_follow(
        context, "specialists", wanted, load, arrays, config.specialists.replicas_per_member
    )
    lost = [task.name for task in wanted if task not in good]
    if not good:
        raise TrainingError(
            "specialists: the loss of every one became NaN or infinite; lower "
            "specialists.training.learning_rate or set specialists.training.gradient_clip"
        )
    if lost:
        context.console.warning(f"specialists: {', '.join(lost)} left out: the loss became NaN or infinite")
    members = members_folder(context.folder, "specialists")
    summary = {
        "members": [
            {
                **member_summary(task, members),
                "cluster": wanted.index(task) % len(found),
                "generalist": generalists(config, entries)[wanted.index(task) // len(found)]["name"],
                "classes": found[wanted.index(task) % len(found)]["classes"],
            }
            for task in good
        ],
        "excluded": lost,
        "seconds": time.perf_counter() - began,
    }
    return finish(plan.folder, "specialists", plan.fingerprint, plan.config, plan.inputs, [], summary)
