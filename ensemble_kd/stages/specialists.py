"""The specialists: one per cluster and generalist, all in one Ray Train worker group."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import (
    Config,
    ModelConfig,
    SpecialistsConfig,
    TrainingConfig,
    member_settings,
    num_teachers,
    specialist_training,
)
from ensemble_kd.data.records import load_labels
from ensemble_kd.errors import InputError, TrainingError
from ensemble_kd.models.build import Network, build, made_up_inputs
from ensemble_kd.models.specialist import specialise
from ensemble_kd.models.transplant import resolve
from ensemble_kd.stages.base import DataFound, Done, Stage, Work
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.fit import teacher_model
from ensemble_kd.stages.members import (
    STREAM_OF_SPECIALISTS,
    best,
    member_summary,
    members_folder,
    members_intact,
    train_and_follow,
)
from ensemble_kd.stages.training_data import arrays_and_loader, with_generalists
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.task import MemberTask


def problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Teachers that specialists cannot start from; models are built and tried on two made-up rows."""
    assert config.specialists is not None
    every = (teacher_model(config, i) for i in range(num_teachers(config)))
    models = {str(model): (model, path) for model, path in every}
    found = []
    for model, path in models.values():
        name = getattr(model, "callable", model.name)
        settings: Any = TypeAdapter(ModelConfig).validate_python(resolve(model, path=path)[0])
        reason = _cannot_start(build(settings, info).eval(), info, config.specialists)
        if reason:
            found.append(f"specialists: they start from the teacher's output layer; model {name!r} {reason}")
    return found


@torch.no_grad()
def _cannot_start(network: Network, info: dict[str, Any], settings: SpecialistsConfig) -> str:
    """Why a specialist of the first two classes cannot start from this network; empty where it can."""
    remedy = (
        "give its module, as the last one registered, a torch.nn.Linear with one output for each class and "
        "nothing after it, or leave the specialists out"
    )
    head = network.head
    if head is None:
        return f"shows none; {remedy}"
    if settings.output == "full":
        if head.bias is None and settings.correction != "none":
            return "has none with a bias, which output 'full' is corrected by; use 'aggregate'"
        return ""
    if info["num_classes"] < 3:
        return ""  # told by the clusters' own check
    inputs = made_up_inputs(info["kind"], info["input_shape"])
    try:
        logits = specialise(network, [0, 1], settings.output)(inputs).logits
        good = torch.allclose(logits[:, :2], network(inputs).logits[:, :2], atol=1e-4)
    except Exception as error:  # the user's code may raise anything
        return f"does not end in it ({type(error).__name__}: {error}); {remedy}"
    return "" if good and logits.shape == (2, 3) else f"does not end in it; {remedy}"


def generalists(config: Config, teachers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of the teachers' manifest that get specialists."""
    assert config.specialists is not None
    if config.specialists.generalists == "all":
        return teachers
    return [best(teachers)]


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
        model, path = teacher_model(config, index)
        architecture, _ = resolve(model, path=path)  # its weights come from the generalist's folder
        teacher = member_settings(config.teachers, index)[1]
        for k, cluster in enumerate(clusters):
            classes = cluster["classes"]
            rows = int(counts[classes].sum())
            examples = round(rows / settings.special_fraction)
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
                    model=architecture,
                    training=_training(config, teacher, examples),
                    inputs={
                        "data": inputs["data"],
                        "generalist": entry["fingerprint"],
                        **({"soft_targets": inputs["soft_targets"]} if full else {}),
                    },
                    examples_per_epoch=examples,
                    augment=_augment(config),
                    specialist=specialty,
                    **(soft if full else {}),
                )
            )
    return found


def _training(config: Config, teacher: TrainingConfig, examples: int) -> dict[str, Any]:
    """A specialist's training, regularised as its teacher where the user says nothing else."""
    settings = config.specialists
    assert settings is not None
    training = specialist_training(config, examples).model_dump(mode="json")
    for name in ("weight_decay", "max_norm", "label_smoothing"):
        soft = name == "label_smoothing" and settings.output == "full"
        if name not in settings.training.model_fields_set and not soft:
            training[name] = getattr(teacher, name)
    return training


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


def run(context: Context, plan: StagePlan, above: Upstream, clusters: Manifest) -> Manifest:
    """Train what is missing.

    A specialist whose loss was not finite is left out, as a member is with teachers.on_failure=exclude.
    Raises InputError for clusters without labelled rows, before any training.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    config = context.config
    assert config.specialists is not None
    data, info = above.data, above.info
    found, entries = clusters.summary["clusters"], above.teachers.summary["members"]
    labels = load_labels(data, "transfer")
    labels = labels[labels >= 0]
    check_labels(found, labels, info["class_names"])
    wanted = tasks(config, plan.inputs, found, entries, labels)
    teachers_members = members_folder(context.folder, "teachers")
    small = [task.name for task in wanted if task.examples_per_epoch < task.training["batch_size"]]
    if small:
        context.console.warning(
            f"specialists.training.batch_size: {config.specialists.training.batch_size} is more than an "
            f"epoch of {len(small)} specialists, who see rows twice in one step; lower it"
        )
    full = config.specialists.output == "full"
    arrays, load, _ = arrays_and_loader(
        data, info, config.compute.memory_budget, above.store if full else None
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
    chosen = generalists(config, entries)
    summary = {
        "members": [
            {
                **member_summary(task, members),
                "cluster": place % len(found),
                "generalist": chosen[place // len(found)]["name"],
                "classes": found[place % len(found)]["classes"],
            }
            for place, task in enumerate(wanted)  # generalist by generalist, as `tasks` made them
            if task in good
        ],
        "excluded": lost,
        "class_names": info["class_names"],
        "seconds": time.perf_counter() - began,
    }
    return plan.finish([], summary)


class Specialists(Stage):
    name = "specialists"
    has_members = True

    def problems(self, config: Config, found: DataFound) -> list[str]:
        return problems(config, found.info)

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        data, clusters, store = (done[name].fingerprint for name in ("data", "clusters", "soft-targets"))
        return plan(config, run, data, clusters, store, done["teachers"].summary["members"])

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, Upstream.of(done), done["clusters"].manifest)

    def work(self, config: Config, done: Done) -> Work | None:
        """Each sees as many rows of its own classes as of all others."""
        if "clusters" not in done or done["clusters"].made is None:
            return None
        found = done["clusters"].summary["clusters"]
        members = len(found) * len(generalists(config, done["teachers"].summary["members"]))
        assert config.specialists is not None
        counts, classes = done.info["counts"], sum(len(cluster["classes"]) for cluster in found)
        share = classes / len(found) / done.info["num_classes"]
        rows = round(counts["labelled"] * share / config.specialists.special_fraction)
        return Work(members, rows, specialist_training(config, rows).num_epochs)

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        return members_intact(plan, context)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        known = [m for m in summary["members"] if m["conditional_accuracy"] is not None]
        text = f"{len(summary['members'])} members"
        if known:
            before, after = (
                100 * sum(m[key] for m in known) / len(known)
                for key in ("conditional_accuracy_before", "conditional_accuracy")
            )
            text += f", validation accuracy among their classes {before:.2f} -> {after:.2f}%"
        return text


STAGE = Specialists()
