"""Stage 2: the ensemble, trained in one Ray Train worker group, or given.

A pretrained classifier is a member without a step of training. Files of predictions, and the answers of a
user's own models, are put in order and kept.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from ensemble_kd.artifacts import Manifest, fingerprint
from ensemble_kd.config import (
    Config,
    CustomModelConfig,
    TrainingConfig,
    member_settings,
    num_teachers,
    student_models,
    unresolved,
    variants,
)
from ensemble_kd.data.answers import values_problem
from ensemble_kd.data.predictions import align, predictions_fingerprint
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, TrainingError
from ensemble_kd.models.build import build
from ensemble_kd.models.foreign import called_by, taken_over
from ensemble_kd.models.transplant import resolve
from ensemble_kd.stages.base import Artifact, DataFound, Done, NotDone, Stage, Work
from ensemble_kd.stages.calibrated import calibrates, fit_teachers, weights_of_teachers
from ensemble_kd.stages.class_order import info_of, orders_of
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.fit import teacher_model, teacher_problems
from ensemble_kd.stages.given_teachers import ASKED, answer, as_predictions, digests
from ensemble_kd.stages.judged import Panel, labels_to_judge_by
from ensemble_kd.stages.members import (
    STREAM_OF_TEACHERS,
    member_summary,
    members_folder,
    members_intact,
    train_and_follow,
)
from ensemble_kd.stages.training_data import arrays_and_loader, mixing_problems
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.finishing import PREDICTIONS, load_logits
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.teacher_calibration import FEWEST


def tasks(
    config: Config, data: str, labelled: int = 0, info: dict[str, Any] | None = None
) -> list[MemberTask]:
    """One task per member; `data` is the data's fingerprint, `labelled` its number of labelled rows.

    `info` describes the data: in which order a given classifier's outputs stand depends on it.
    """
    teachers = config.teachers
    found = []
    orders = orders_of(config, info)
    for i in range(num_teachers(config)):
        model, path = teacher_model(config, i)
        training = member_settings(teachers, i)[1]
        if teachers.source == "pretrained":  # taken as it is: a member without a step of training
            training = TrainingConfig(epochs=0)
        if model.name == "trees":  # fitted without epochs: how networks are trained changes nothing
            training = TrainingConfig(epochs=0, class_weights=training.class_weights)
        architecture, initial = resolve(model, path=path)
        if teachers.source == "pretrained" and info is not None:
            assert initial is not None
            initial |= taken_over(model.source, info, orders[i], model.trust_remote_code)
        augment = config.data.augment.with_labels
        augmented = teachers.augment and augment.active and model.name != "trees"
        found.append(
            MemberTask(
                name=f"teacher-{i:03d}",
                role="teacher",
                seed=mix(config.seed, STREAM_OF_TEACHERS, i),
                model=architecture,
                initial=initial,
                training=training.model_dump(mode="json"),
                inputs={"data": data},
                rows={"labelled": True, "bootstrap": teachers.bootstrap, "fraction": teachers.fraction},
                examples_per_epoch=labelled,
                augment=augment.model_dump(mode="json") if augmented else {},
            )
        )
    return found


def plan(config: Config, run: Path, data: str) -> StagePlan:
    info = info_of(run, data)
    order: dict[str, Any] = {"class_order": orders} if any(orders := orders_of(config, info)) else {}
    weights = {} if config.teachers.weights == "equal" else {"weights": config.teachers.weights}
    if config.teachers.source == "predictions":
        assert config.teachers.predictions is not None
        settings = config.teachers.predictions.model_dump(
            mode="json", include={"id_column", "column", "values"}
        )
        settings |= order | weights
        files = predictions_fingerprint(config.teachers.predictions)
        return StagePlan.of(run, "teachers", settings, {"data": data, "predictions": files})
    if config.teachers.source in ASKED:
        settings = {"source": config.teachers.source, "values": config.teachers.values, **order, **weights}
        return StagePlan.of(run, "teachers", settings, {"data": data, **digests(config)})
    members = [task.fingerprint for task in tasks(config, data, info=info)]
    settings = {
        "num_members": num_teachers(config),
        "on_failure": config.teachers.on_failure,
        **{key: config.teachers.model_dump(mode="json")[key] for key in ("model", "training", "overrides")},
        "seed": config.seed,
        **weights,
    }
    if config.teachers.kinds:
        settings["kinds"] = [kind.model_dump(mode="json") for kind in config.teachers.kinds]
    return StagePlan.of(run, "teachers", settings, {"data": data, "members": fingerprint(*members)})


def run(context: Context, plan: StagePlan, data: Path, info: dict[str, Any]) -> Manifest:
    """Train what is missing. Raises TrainingError for a member whose loss was not finite."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    if context.config.teachers.source == "predictions":
        return _from_predictions(context, plan, data, info, [])
    if context.config.teachers.source in ASKED:
        files = answer(context, plan, data, info)
        return _from_predictions(as_predictions(context, plan, info), plan, data, info, files)
    began = time.perf_counter()
    members = members_folder(context.folder, "teachers")
    wanted = tasks(context.config, plan.inputs["data"], info["counts"]["labelled"], info)
    arrays, load, _ = arrays_and_loader(data, info, context.config.compute.memory_budget)
    good = train_and_follow(
        context, "teachers", wanted, load, arrays, context.config.teachers.replicas_per_member
    )
    lost = [task.name for task in wanted if task not in good]
    if lost and (context.config.teachers.on_failure == "stop" or not good):
        raise TrainingError(
            f"teachers: {', '.join(lost)}: the loss became NaN or infinite; the others are kept. Lower "
            "teachers.training.learning_rate or set teachers.training.gradient_clip, or set "
            "teachers.on_failure=exclude to go on without"
        )
    _judge(context, plan, good, members, data, info)
    if lost:
        context.console.warning(f"teachers: {', '.join(lost)} left out: the loss became NaN or infinite")
    entries = [member_summary(task, members) for task in good]
    summary = {
        "source": "train",
        "members": entries,
        **_calibrated(context, data, entries, plan.folder),
        "excluded": lost,
        "seconds": time.perf_counter() - began,
    }
    return plan.finish([], summary)


def _calibrated(context: Context, data: Path, entries: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """For the manifest: `calibration`, where labels are classes, fitted whether it is used or not; and what
    members count in the mean, `weights`, where validation rows decide."""
    found = fit_teachers(context.config, context.folder, data, entries, folder)
    if found is not None and found["rows"] < FEWEST and calibrates(context.config):
        context.console.line(
            f"teachers.calibrate: {found['rows']} validation rows with a label, fewer than {FEWEST}: the "
            "members' logits are taken as they are"
        )
    kept: dict[str, Any] = {} if found is None else {"calibration": found}
    weights = weights_of_teachers(context.config, context.folder, data, entries, folder, found)
    if weights is None and context.config.teachers.weights != "equal" and len(entries) > 1:
        context.console.line(
            "teachers.weights: all count the same: validation rows do not tell (that takes at least "
            f"{FEWEST} with a label, and every member's answers)"
        )
    return kept if weights is None else {**kept, "weights": weights}


def _judge(
    context: Context,
    plan: StagePlan,
    good: list[MemberTask],
    members: Path,
    data: Path,
    info: dict[str, Any],
) -> None:
    """Hold the members against validation rows. Raises InputError for a given one that does not fit."""
    teachers, panel = context.config.teachers, Panel(context, info, plan.folder)
    split, labels = labels_to_judge_by(data, info, validation=True)
    if split != "validation":
        return
    for task in good:
        logits = load_logits(task.folder(members), "validation").numpy()
        index = int(task.name.rsplit("-", 1)[1])
        if teachers.source != "pretrained":
            panel.look(index, "teachers", logits, labels, split)
            continue
        where = f"teachers.given.{index}: {teachers.given[index]}"
        if (problem := values_problem(logits, "logits", "teachers.values")) is not None:
            panel.problems.append(f"{where}: gives {problem} and teachers.source=callable")
        called = called_by(teacher_model(context.config, index)[0])
        panel.look(
            index, where, logits, labels, split, applied=(task.initial or {}).get("classes"), called=called
        )
    panel.tell(given=teachers.source == "pretrained")


def _from_predictions(
    context: Context, plan: StagePlan, data: Path, info: dict[str, Any], made: list[str]
) -> Manifest:
    """Check the user's files against the rows and keep the logits of validation and test.

    `made` are those files that this stage wrote into its folder.
    """
    files = context.config.teachers.predictions
    assert files is not None
    names, entries = list(made), []
    teachers, panel = context.config.teachers, Panel(context, info, plan.folder)
    orders, setting = orders_of(context.config, info), f"teachers{'' if made else '.predictions'}.values"
    judged, labels = labels_to_judge_by(data, info, bool(files.validation))
    paths = {"validation": files.validation, "test": files.test, "transfer": files.train}
    ids = {split: load_split(data, split).ids for split in paths if paths[split]}
    for i in range(len(files.train)):
        splits = {
            split: align(paths[split][i], files, ids[split], info["num_classes"], orders[i], setting)
            for split in ids
        }
        where = (
            f"teachers.given.{i}: {teachers.given[i]}"
            if made
            else f"teachers.predictions: {paths[judged][i]}"
        )
        panel.look(i, where, splits[judged], labels, judged, applied=orders[i])
        splits.pop("transfer")
        name = f"teacher-{i:03d}.{PREDICTIONS}"
        save_file(splits, plan.folder / name)
        names.append(name)
        given = fingerprint(plan.fingerprint, i)  # covers the files and how they are read
        entries.append({"name": f"teacher-{i:03d}", "fingerprint": given, "predictions": name})
    panel.tell(given=True)
    summary = {"source": "predictions", "members": entries, "excluded": [], "seconds": 0.0}
    summary |= _calibrated(context, data, entries, plan.folder)
    return plan.finish(names, summary)


def check_custom(config: Config, info: dict[str, Any]) -> None:
    """Raises ConfigError where a user's network cannot be made for this data; each is made and run once."""
    models = student_models(config.student)
    if config.teachers.source == "train":
        models.append(("teachers.model", config.teachers.model))
        models += [
            (f"{path}.model", each.model)
            for path, each in variants(config.teachers)
            if each.model is not None
        ]
    problems: list[str] = []
    for path, model in models:
        if isinstance(model, CustomModelConfig):
            try:
                build(model, info)
            except ConfigError as error:
                problems += [f"{path}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)


class Teachers(Stage):
    name = "teachers"
    has_members = True

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        if unresolved(config):
            raise NotDone("data")
        return plan(config, run, done["data"].fingerprint)

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, done["data"].folder, done.info)

    def problems(self, config: Config, found: DataFound) -> list[str]:
        problems = []
        if config.teachers.source == "train":
            rows = round(found.counts["labelled"] * config.teachers.fraction)
            size = config.teachers.training.batch_size
            if rows < size:
                problems.append(
                    f"teachers.training.batch_size: {size}, but a member sees {rows} rows; lower it"
                )
        problems += mixing_problems(config, found.info)
        unfit = teacher_problems(config, found.info)
        if unfit:
            found.misfits.add(self.name)
        return problems + unfit

    def prepare(self, config: Config, done: Done) -> None:
        check_custom(config, done.info)

    def work(self, config: Config, done: Done) -> Work | None:
        if config.teachers.source != "train":
            return None
        rows = round(done.info["counts"]["labelled"] * config.teachers.fraction)
        return Work(num_teachers(config), rows, config.teachers.training.num_epochs)

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        return members_intact(plan, context)

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        """The students' `weights`, where validation rows decide; 0 of a member that was left out."""
        weights = artifact.summary.get("weights")
        if config.teachers.weights == "equal" or weights is None:
            return config
        names = [entry["name"] for entry in artifact.known("members")]
        found = dict(zip(names, weights, strict=True))
        every = [found.get(f"teacher-{i:03d}", 0.0) for i in range(num_teachers(config))]
        return config.model_copy(update={"student": config.student.model_copy(update={"weights": every})})

    def preview(self, config: Config, plan: StagePlan, done: Done) -> dict[str, Any]:
        if config.teachers.source in ("train", "pretrained"):
            labelled = done.info["counts"]["labelled"]
            wanted = tasks(config, done["data"].fingerprint, labelled, done.info)
            return {"members": [{"name": task.name, "fingerprint": task.fingerprint} for task in wanted]}
        names = (f"teacher-{i:03d}" for i in range(num_teachers(config)))
        return {"members": [{"name": name, "fingerprint": "to be read"} for name in names]}

    def describe(self, summary: dict[str, Any], size: int) -> str:
        accuracies = [m["validation_accuracy"] for m in summary["members"] if "validation_accuracy" in m]
        losses = [m["validation_loss"] for m in summary["members"] if "validation_pearson" in m]
        if losses:
            low, high = min(losses), max(losses)
            return f"{len(losses)} members, validation loss {low:.4f} to {high:.4f}"
        if not accuracies:
            return f"{len(summary['members'])} given"
        low, high = 100 * min(accuracies), 100 * max(accuracies)
        counts = ""
        if weights := summary.get("weights"):
            counts = f", counted {min(weights):.3f} to {max(weights):.3f}"
        return f"{len(accuracies)} members, validation {low:.2f} to {high:.2f}%{counts}"


STAGE = Teachers()
