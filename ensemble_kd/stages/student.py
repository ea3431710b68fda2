"""Stage 4: the students. Distilled ones and their baselines are members of one worker group."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import Config, num_teachers, settled
from ensemble_kd.errors import ArtifactError, TrainingError
from ensemble_kd.stages.base import DataFound, Done, Stage, Work
from ensemble_kd.stages.calibrated import calibrates
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.corpora import corpus_size_problems
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import (
    adopt,
    kept_weights,
    member_summary,
    members_folder,
    members_intact,
    train_and_follow,
)
from ensemble_kd.stages.phase_training import train_phases
from ensemble_kd.stages.pretrained_files import source_digests
from ensemble_kd.stages.refit import refit
from ensemble_kd.stages.stacking import stacks_of
from ensemble_kd.stages.start import basis_of
from ensemble_kd.stages.student_checks import data_problems, label_problems, objective_problems
from ensemble_kd.stages.student_tasks import reads_states, roles, tasks
from ensemble_kd.stages.training_data import arrays_and_loader, bytes_in_memory, states_fit, states_layout
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.stages.vectors import make_vectors
from ensemble_kd.train.task import finished
from ensemble_kd.train.validation import preference


def plan(config: Config, run: Path, data: str, store: str, combined: str | None = None) -> StagePlan:
    settings = config.student.model_dump(mode="json", exclude={"replicas_per_member"})
    if settings["quantization"] is None:
        settings.pop("quantization")
    if settings["pseudo"] == 0:
        settings.pop("pseudo")
    if calibrates(config):
        settings["calibrate"] = True
    settings |= {"seed": config.seed, "views": config.soft_targets.views, "targets": config.targets}
    if config.soft_targets.views > 1:
        settings["augment"] = config.data.augment.model_dump(mode="json")
    if digests := source_digests(config):
        settings["sources"] = digests
    if config.sweep is not None and config.sweep.refit != "none":
        settings["refit"] = config.sweep.refit
    inputs = {"data": data, "soft_targets": store}
    return StagePlan.of(
        run, "student", settings, {**inputs, "combined_targets": combined} if combined else inputs
    )


def usable(context: Context, above: Upstream) -> tuple[list[float] | None, Upstream]:
    """Weights of the teachers in the store, and what is left to learn from.

    A combination in which every specialist is off is the ensemble, and nothing is read of it.
    """
    weights = kept_weights(context.config.student.weights, above.store[1].inputs.keys() - {"data"})
    if above.combination is None:
        return weights, above
    folder, combined = above.combination
    if not combined.summary["on"]:
        asked = context.config.student.targets
        if asked in ("specialists", "both"):
            context.console.warning(
                f"student.targets: {asked!r}, but no specialist helped on the validation rows; students "
                "learn from the ensemble (specialists.weight=1 uses them all the same)"
            )
        return weights, replace(above, combination=None)
    if combined.summary["class_names"] != above.info["class_names"]:
        raise ArtifactError(
            f"{folder}: the combined targets are of the classes "
            f"{combined.summary['class_names']}, the data has {above.info['class_names']}; run "
            "combined-targets again"
        )
    return weights, above


def run(context: Context, plan: StagePlan, above: Upstream, ready: Sequence[Path] = ()) -> Manifest:
    """Train what is missing and choose the student to ship, on validation rows.

    `ready` hold members that other stages trained already: a sweep's, those that `auto` was chosen by.
    Raises TrainingError where a student's loss was not finite.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    members = members_folder(context.folder, "student")
    weights, above = usable(context, above)
    data, info, budget = above.data, above.info, context.config.compute.memory_budget
    layout = states_layout(info, budget, above.store[1], above.combination)
    basis = basis_of(context.config, context.folder, data, above.teachers, layout)
    make_vectors(basis.vectors, context.folder, data, context.console)
    sources = above.sources(plan, basis, weights)
    wanted = tasks(context.config, sources)
    seeds = context.config.student.seeds
    train_phases(context, above, sources, seeds)
    states = any(map(reads_states, wanted))
    arrays, load, streams = arrays_and_loader(
        data, info, budget, above.store, above.combination, run=context.folder, states=states
    )
    if context.config.soft_targets.keep and context.config.student.terms and not states:
        why = "do not fit into compute.memory_budget" if layout is None else "are not all that its terms read"
        context.console.warning(
            f"soft_targets.keep: the states in the store {why}; a teacher runs beside the student"
        )
    if streams:
        context.console.line("student: the transfer set is larger than compute.memory_budget and is streamed")
    for folder in ready:
        adopt(wanted, members, folder, context.console)
    replicas = context.config.student.replicas_per_member
    # Without those that other stages trained, whether they still lie there or were just copied.
    own = [task for task in wanted if all(finished(task, folder) is None for folder in ready)]
    stacks = stacks_of(own, context.config, info)
    good = train_and_follow(context, "student", wanted, load, arrays, replicas, stacks=stacks)
    lost = [task.name for task in wanted if task not in good]
    if lost:
        raise TrainingError(
            f"student: {', '.join(lost)}: the loss became NaN or infinite; lower "
            "student.training.learning_rate or set student.training.gradient_clip"
        )
    entries = [member_summary(task, members) for task in wanted]
    distilled = [entry for entry in entries if entry["role"] == "distilled"]
    shipped = min(distilled, key=preference)
    if context.config.sweep is not None and context.config.sweep.refit != "none":
        seed = distilled.index(shipped)
        entries.append(refit(context, wanted, seed, shipped["best_epoch"], above))
        shipped = entries[-1]
    summary = {"members": entries, "shipped": shipped["name"], "seconds": time.perf_counter() - began}
    return plan.finish([], summary)


def inputs_of(config: Config, done: Done) -> tuple[str, str, str | None]:
    """Fingerprints of the data, the soft targets, and with specialists the combined targets."""
    combined = done["combined-targets"].fingerprint if config.specialists is not None else None
    return done["data"].fingerprint, done["soft-targets"].fingerprint, combined


class Student(Stage):
    name = "student"
    has_members = True

    def settings_problems(self, config: Config) -> list[str]:
        return objective_problems(settled(config))

    def problems(self, config: Config, found: DataFound) -> list[str]:
        problems = data_problems(settled(config), found) + label_problems(config, found.counts)
        return problems + (corpus_size_problems(config, found.folder) if found.folder else [])

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, *inputs_of(config, done))

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        ready = [members_folder(context.folder, name) for name in ("sweep", "choose") if name in done]
        return run(context, plan, Upstream.of(done), ready)

    def work(self, config: Config, done: Done) -> Work | None:
        counts, student = done.info["counts"], config.student
        found = roles(config, counts, config.specialists is not None)
        links = len(student.assistants) + student.generations - 1
        together = student.peers.count - 1 if student.peers is not None else 0
        networks = sum(1 + together * (role == "distilled" or role.startswith("from_")) for role in found)
        return Work(student.seeds * (networks + links), counts["transfer"], student.training.num_epochs)

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        return members_intact(plan, context)

    def note(self, config: Config, done: Done) -> str:
        info, budget = done.info, config.compute.memory_budget
        layout = layout_of(config, info, num_teachers(config))
        layouts = [layout, *([] if config.specialists is None else [layout.logits_alone])]
        if not states_fit(info, budget, *layouts):
            layouts = [each.logits_alone for each in layouts]
        held = bytes_in_memory(info, *layouts)
        how = "held in memory" if held <= budget * 1e9 else "streamed"
        return f"transfer set of {held / 1e6:.1f} MB {how}"

    def describe(self, summary: dict[str, Any], size: int) -> str:
        shipped = next(m for m in summary["members"] if m["name"] == summary["shipped"])
        return f"{len(summary['members'])} trained, {shipped['name']} is shipped"


STAGE = Student()
