"""What the stages that train members share: progress, tracking, and looking after finished members."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ensemble_kd.artifacts import MANIFEST, Manifest, damage, read_manifest
from ensemble_kd.attached import attached, forget
from ensemble_kd.errors import ArtifactError, ConfigError, TrainingError
from ensemble_kd.member_loop import members_before
from ensemble_kd.stages.context import Console, Context, StagePlan
from ensemble_kd.train.finishing import FAILED, PREDICTIONS, load_logits
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.workers import LoadData, train_members

STREAM_OF_TEACHERS, STREAM_OF_STUDENTS, STREAM_OF_SPECIALISTS = 101, 202, 404
"""Keep the seeds of teachers, students and specialists apart."""


def members_folder(run: Path, stage: str) -> Path:
    """Members of a stage by fingerprint; one that stays the same is never trained again."""
    return run / stage / "members"


def kept_weights(weights: list[float] | None, names: Iterable[str]) -> list[float] | None:
    """`student.weights` without those of teachers that were left out; `names` are the teachers there are.

    Raises ConfigError where only weights of 0 remain.
    """
    if weights is None:
        return None
    there = set(names)
    kept = [weight for i, weight in enumerate(weights) if f"teacher-{i:03d}" in there]
    if not sum(kept) > 0:
        raise ConfigError(
            f"student.weights: only teachers of weight 0 remain ({', '.join(sorted(there))}); "
            "raise one of their weights"
        )
    return kept


def best(teachers: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of the teacher with the least validation loss."""
    return min(teachers, key=lambda entry: entry["validation_loss"])


def member_summary(task: MemberTask, members: Path) -> dict[str, Any]:
    """What the stage's manifest says of a finished member: everything but its history."""
    manifest = finished(task, members)
    assert manifest is not None
    kept = {key: value for key, value in manifest.summary.items() if key != "history"}
    return {**kept, "name": task.name, "role": task.role, "fingerprint": task.fingerprint}


def all_intact(folders: list[Path], console: Console) -> bool:
    """Compare every member's files with their checksums; a damaged member is named and removed."""
    good = True
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            problems = (
                [f"{folder}: missing"] if manifest is None else list(map(str, damage(folder, manifest)))
            )
        except ArtifactError as error:
            problems = [str(error)]
        if problems:
            good = False
            for problem in problems:
                console.warning(f"{problem}; this member is trained again")
            if (folder / MANIFEST).exists():  # without one it is unfinished, and its checkpoint is of use
                shutil.rmtree(folder, ignore_errors=True)
                forget(folder)
    return good


def drop_damaged(tasks: list[MemberTask], members: Path, console: Console) -> None:
    """Before training: remove finished members whose files are damaged; they are trained again."""
    folders = [task.folder(members) for task in tasks]
    all_intact([folder for folder in folders if (folder / MANIFEST).exists()], console)


def _drop_failures(tasks: list[MemberTask], members: Path) -> None:
    """Those of an earlier run: its members are tried again."""
    for failure in [task.folder(members) / FAILED for task in tasks]:
        if failure.exists():
            failure.unlink()
            forget(failure)


def adopt(tasks: list[MemberTask], members: Path, ready: Path, console: Console) -> None:
    """Copy finished members from `ready`, whole or not at all, instead of training them again."""
    for task in tasks:
        source, target = task.folder(ready), task.folder(members)
        if finished(task, members) is not None or finished(task, ready) is None:
            continue
        if all_intact([source], console):
            new = target.with_name(f".{target.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(source, new)
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)


def follow(
    context: Context, stage: str, tasks: list[MemberTask], members: Path
) -> tuple[Callable[[MemberTask, dict[str, Any]], None], Callable[[], None]]:
    """Turn the workers' events into a progress bar and MLflow runs; the second function ends both."""
    total = sum(task.training["epochs"] for task in tasks)
    kept = [task for task in tasks if finished(task, members) is not None]
    standing = {task.name: task.training["epochs"] for task in kept}
    opened: set[str] = set()
    context.console.progress(stage, sum(standing.values()), total, "starting workers")

    def open_run(task: MemberTask) -> str:
        key = f"{stage}/{task.name}"
        if key not in opened:
            opened.add(key)
            tags = {"role": task.role, "fingerprint": task.fingerprint, **prefixed(task.inputs)}
            context.tracker.start(
                key, {"seed": task.seed, "model": task.model, "training": task.training}, tags
            )
        return key

    def on_event(task: MemberTask, event: dict[str, Any]) -> None:
        key = open_run(task)
        if event["kind"] == "epoch":
            entry = event["entry"]
            standing[task.name] = int(entry["epoch"])
            context.tracker.metrics(key, entry, int(entry["epoch"]))
            note = f"{task.name}: loss {entry['train_loss']:.4f}"
            if "validation_accuracy" in entry:
                note += f", validation {100 * entry['validation_accuracy']:.2f}%"
            elif "validation_loss" in entry:
                note += f", validation {entry['validation_loss']:.4f}"
            context.console.progress(stage, sum(standing.values()), total, note)
        elif event["kind"] == "warning":
            context.console.warning(f"{task.name}: {event['text']}")
        elif event["kind"] in ("done", "failed"):
            standing[task.name] = task.training["epochs"]
            context.tracker.end(key, event["kind"] == "done")

    def close() -> None:
        context.console.progress(stage, 0, 0, "")
        for task in tasks:
            manifest = finished(task, members)
            if manifest is None:
                continue
            key = f"{stage}/{task.name}"
            if key not in opened:  # trained by an earlier run: its history is on disk
                context.tracker.history(open_run(task), manifest.summary["history"])
                context.tracker.end(key)
            judged = ("validation_", "conditional_accuracy", "dustbin_")
            final = {k: v for k, v in manifest.summary.items() if k.startswith(judged) and v is not None}
            context.tracker.metrics(key, {f"final_{k}": v for k, v in final.items()})

    return on_event, close


def train_and_follow(
    context: Context,
    stage: str,
    tasks: list[MemberTask],
    load: LoadData,
    arrays: Callable[[], dict[str, Any]],
    replicas: int,
    *,
    shown: str | None = None,
    stacks: Sequence[list[MemberTask]] = (),
) -> list[MemberTask]:
    """Train what is missing in one worker group, shown and tracked; returns the tasks that are finished.

    Those that are not had a loss that was not finite. Raises TrainingError for one that
    left nothing at all. Tasks that are one and the same (a distilled student with
    alpha = 0 is its own baseline) train once. `shown` is the stage that trains them, where they are members
    of another; `stacks` as in `train_members`.
    """
    members = members_folder(context.folder, stage)
    drop_damaged(tasks, members, context.console)
    _drop_failures(tasks, members)
    on_event, close = follow(context, shown or stage, tasks, members)
    try:
        train_members(
            context.runtime,
            list({task.fingerprint: task for task in reversed(tasks)}.values())[::-1],
            members,
            load,
            arrays,
            replicas=replicas,
            path=stage,
            on_event=on_event,
            stacks=stacks,
        )
    finally:
        if (mirror := attached()) is not None:
            mirror.pull(members)
        close()
    good = [task for task in tasks if finished(task, members) is not None]
    if silent := [task.name for task in tasks if task not in good and not _failed(task, tasks, members)]:
        raise TrainingError(
            f"{stage}: {', '.join(silent)}: neither weights nor a failure came back from the workers; "
            "every node must see the run folder (a shared file system, or a store such as s3://...); run "
            "again to go on"
        )
    return good


def _failed(task: MemberTask, tasks: list[MemberTask], members: Path) -> bool:
    """Whether its own loss was not finite, or that of one of the tasks that it starts or learns from."""
    if (task.folder(members) / FAILED).exists():
        return True
    before = members_before(task)
    return any(_failed(other, tasks, members) for other in tasks if other.fingerprint in before)


def members_intact(plan: StagePlan, context: Context) -> Manifest | None:
    """The finished stage, if the members behind it are intact; damaged ones are named and put aside."""
    manifest = plan.checked(context.console)
    if manifest is None or manifest.summary.get("source") == "predictions":
        return manifest
    members = members_folder(context.folder, plan.stage)
    folders = [members / member["fingerprint"] for member in manifest.summary["members"]]
    return manifest if all_intact(folders, context.console) else None


def prefixed(inputs: dict[str, str]) -> dict[str, str]:
    """Lineage as MLflow tags: `input.data` and so on."""
    return {f"input.{name}": value for name, value in inputs.items()}


def pace(members: Path) -> float | None:
    """Examples a second of the member of this stage that was finished last; None where there is none."""
    found = sorted(members.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        try:
            manifest = read_manifest(path.parent)
        except ArtifactError:
            continue
        history = manifest.summary.get("history") if manifest is not None else None
        if history:
            return statistics.median(entry["examples_per_second"] for entry in history)
    return None


def teachers_predictions(run: Path, teachers: Manifest) -> list[Path]:
    """Files with each trained teacher's logits on validation and test rows."""
    members = members_folder(run, "teachers")
    return [members / entry["fingerprint"] / PREDICTIONS for entry in teachers.summary["members"]]


def teacher_validation_logits(run: Path, folder: Path, entry: dict[str, Any]) -> np.ndarray | None:
    """(N, C) of one teacher on the validation rows; `entry` is its stage's of it, `folder` that stage's.

    None for a given one whose answers to these rows are not known.
    """
    if "predictions" in entry:
        found: np.ndarray | None = load_file(folder / entry["predictions"]).get("validation")
        return found
    return load_logits(members_folder(run, "teachers") / entry["fingerprint"], "validation").numpy()


def trained(run: Path, teachers: Manifest) -> list[tuple[dict[str, Any], str]]:
    """Settings and folder of each trained teacher."""
    found = []
    for entry in teachers.summary["members"]:
        member = members_folder(run, "teachers") / entry["fingerprint"]
        manifest = read_manifest(member)
        assert manifest is not None, "the teachers stage has just looked after its members"
        found.append((manifest.config, str(member.resolve())))
    return found
