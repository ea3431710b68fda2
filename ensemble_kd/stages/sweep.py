"""The sweep: which temperature, alpha and other settings of the student are best on validation rows?

A trial costs its students alone: teachers are not read, only their stored soft targets. Each configuration
leaves one file under `trials/`, so a killed sweep goes on with what is finished; its students are members
like all others, and those of the winner become the student stage's without being trained again.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_kd import space as spaces
from ensemble_kd.artifacts import Manifest, read_json, write_json
from ensemble_kd.config import (
    Config,
    StudentConfig,
    SweepConfig,
    corner_problems,
    cross_field_problems,
    num_teachers,
    settled,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.proposals import Proposals
from ensemble_kd.stages import phase_training, student_checks, student_tasks
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages.base import Artifact, DataFound, Done, Stage
from ensemble_kd.stages.chain import CHAINED
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import adopt, kept_weights, members_folder
from ensemble_kd.stages.start import basis_of
from ensemble_kd.stages.training_data import arrays_and_loader, bytes_in_memory, states_layout
from ensemble_kd.stages.trial_book import TrialBook, sign
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.stages.vectors import make_vectors
from ensemble_kd.train.task import MemberTask
from ensemble_kd.trial_runs import concurrency, run_trials
from ensemble_kd.trial_steps import TrialWork

FUSED_AT_MOST = 64
"""Students stacked in one process, where `fuse` is to be measured."""
EPOCHS_FOR_ASHA = 12
ROUNDS = 2
"""Packets of each process that TPE's trials are spread over, at first: from one packet it learns nothing."""
SOFT = {"temperature", "alpha", "pseudo", "objective", "mean", "weights", "targets"}
"""Fields that a student on hard labels does not read."""
FUSE = "fuse.json"
NOT_IN_FINGERPRINT = {"trials", "concurrent_trials", "fuse", "max_failed", "refit"}
"""Settings of the sweep that change nothing about what a trial finds; with more `trials` a sweep goes on."""


def plan(config: Config, run: Path, data: str, store: str, combined: str | None = None) -> StagePlan:
    assert config.sweep is not None
    settings = dict(student_stage.plan(config, run, data, store, combined).config)
    searched = SOFT & spaces.parse_space(config.sweep.space).keys()
    for name in {"seeds", "refit", *CHAINED, *searched} & settings.keys():
        settings.pop(name)  # a trial has its own, or none, and the baseline none
    settings |= {"sweep": config.sweep.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT)}
    settings["sweep"]["space"] = {
        path: spaces.to_text(dimension) for path, dimension in spaces.parse_space(config.sweep.space).items()
    }
    inputs = {"data": data, "soft_targets": store}
    return StagePlan.of(
        run, "sweep", settings, {**inputs, "combined_targets": combined} if combined else inputs
    )


def intact(plan: StagePlan, context: Context) -> Manifest | None:
    """The finished sweep, if it has as many trials as are asked for."""
    manifest = plan.checked(context.console)
    assert context.config.sweep is not None
    return manifest if manifest is not None and enough(context.config.sweep, manifest) else None


def enough(sweep: SweepConfig, manifest: Manifest) -> bool:
    """Whether a finished sweep has the trials that are asked for, or all that there can be."""
    tried = sum(trial["kind"] == "searched" for trial in manifest.summary["trials"])
    return bool(manifest.summary["exhausted"]) or tried >= sweep.trials


def with_winner(config: Config, manifest: Manifest) -> Config:
    """The configuration whose student is the sweep's winner."""
    assert config.sweep is not None
    own = {
        "seeds": max(config.student.seeds, config.sweep.num_seeds),
        "replicas_per_member": config.student.replicas_per_member,
        **{name: getattr(config.student, name) for name in CHAINED},
    }
    later = dict.fromkeys(config.choosing or (), "auto")  # what it did not search is chosen next
    student = StudentConfig.model_validate({**manifest.summary["student"], **own, **later})
    return config.model_copy(update={"student": student})


def run(context: Context, plan: StagePlan, above: Upstream) -> Manifest:
    """Search, and name the winner. Raises TrainingError where too many
    trials failed or none finished."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    context = replace(context, config=settled(context.config))
    config = context.config
    assert config.sweep is not None
    own, above = student_stage.usable(context, above)
    data, info = above.data, above.info
    if (
        above.combination is None
        and config.specialists is not None
        and "targets" in spaces.parse_space(config.sweep.space)
    ):
        context.console.warning(
            "sweep.space.targets: no specialist helped on validation rows, so all choices are the ensemble"
        )
    terms = config.student.terms or any(path.startswith("terms") for path in config.sweep.space)
    budget = config.compute.memory_budget
    layout = (
        states_layout(info, budget, above.store[1], above.combination)
        if terms or config.student.phases
        else None
    )
    basis = basis_of(config, context.folder, data, above.teachers, layout)
    sources = above.sources(plan, basis, own)
    make_vectors(basis.vectors, context.folder, data, context.console)
    phase_training.train_phases(context, above, sources, config.sweep.num_seeds)
    states = layout is not None and bool(terms)
    arrays, load, streams = arrays_and_loader(
        data, info, budget, above.store, above.combination, run=context.folder, states=states
    )
    if streams:
        context.console.line("sweep: the transfer set is larger than compute.memory_budget and is streamed")
    teachers = above.store[1].inputs.keys() - {"data"}

    def make(student: StudentConfig, role: str, seed: int) -> MemberTask:
        """Raises ConfigError where the student's settings do not go together."""
        alone = config.model_copy(update={"student": student, "sweep": None})
        if problems := cross_field_problems(alone):
            raise ConfigError(problems)
        weights = kept_weights(student.weights, teachers)
        found = basis
        if student.model != config.student.model:
            found = basis_of(alone, context.folder, data, above.teachers, layout)
            make_vectors(found.vectors, context.folder, data, context.console)
        return student_tasks.task(alone, role, seed, replace(sources, basis=found, weights=weights))

    sweep = TrialBook(context, plan.folder, make)
    for trial in sweep.waiting():  # the stage `gap` may have trained the baseline already
        adopt(trial.tasks, sweep.members, members_folder(context.folder, "student"), context.console)
    if sweep.unfinished():
        _train(context, sweep, arrays, load)
    sweep.close()
    summary = sweep.summary(data)
    summary["seconds"] = sweep.elapsed
    summary["seconds_with_start"] = time.perf_counter() - began
    shutil.rmtree(plan.folder / "fused", ignore_errors=True)
    return plan.finish([], summary)


def _train(context: Context, sweep: TrialBook, arrays: Callable[[], dict[str, Any]], load: Any) -> None:
    config, settings = context.config, sweep.settings
    replicas = config.student.replicas_per_member
    concurrent = concurrency(context.runtime, settings.concurrent_trials, replicas)
    structural = [p for p in sweep.space if p.split(".")[0] in ("model", "targets") or p in UNFUSED]
    fuse: int | str = 1 if structural and settings.fuse == "auto" else settings.fuse
    if fuse == "auto" and (sweep.folder / FUSE).exists():  # stacks go on from common checkpoints
        fuse = int(read_json(sweep.folder / FUSE))

    epochs = max([config.student.training.num_epochs, *_ends(sweep.space.get("training.epochs"))])
    least = {"asha": 2, "auto": EPOCHS_FOR_ASHA, "none": math.inf}[settings.scheduler]
    grace = max(1, epochs // 4) if settings.grace_epochs == "auto" else settings.grace_epochs
    asha = (grace, settings.reduction_factor) if epochs >= max(least, grace + 1) else None

    def proposals(fuse: int) -> Proposals:
        sweep.open()
        write_json(sweep.folder / FUSE, fuse)
        stacked = f", up to {fuse} students stacked in each" if fuse > 1 else ""
        to_go = sweep.left() + len(sweep.waiting())
        context.console.line(f"sweep: {to_go} trials to go, {concurrent} at a time{stacked}")
        return Proposals(
            sweep.waiting(),
            sweep.propose,
            sweep.follow_up,
            sweep.on_change,
            sweep.on_epoch,
            fuse=fuse,
            concurrent=concurrent,
            left=sweep.left,
            too_many_failed=sweep.too_many_failed,
            max_failures=config.compute.max_failures,
            offset=sweep.elapsed,
            rounds=ROUNDS if settings.search == "tpe" else 1,
            apart=asha is not None,
            packets=max((trial.packet or 0 for trial in sweep.trials.values()), default=0),
        )

    share = max(1, -(-sweep.total * settings.num_seeds // concurrent))
    context.console.progress("sweep", 0, sweep.total, "starting workers")
    try:
        work = TrialWork(
            proposals=proposals,
            folder=sweep.folder,
            members=sweep.members,
            load_data=load,
            arrays=arrays,
            example=sweep.example(),
            metric=settings.metric,
            sign=sign(settings),
            fuse=fuse,
            fuse_limit=min(FUSED_AT_MOST, share),
            replicas=replicas,
            epochs=epochs,
            asha=asha,
            warn=context.console.warning,
        )
        run_trials(context.runtime, work)
    finally:
        context.console.progress("sweep", 0, 0, "")


UNFUSED = ("training.epochs", "training.batch_size", "training.optimizer", "training.max_norm")
"""With these in the space, few neighbours could be stacked."""


def _ends(dimension: spaces.Dimension | None) -> list[Any]:
    return [] if dimension is None else dimension.points(2)


class Sweep(Stage):
    name = "sweep"
    has_members = True
    decides = True

    def settings_problems(self, config: Config) -> list[str]:
        student, config = student_checks.objective_problems, settled(config)
        return [] if student(config) else corner_problems(config, student)

    def problems(self, config: Config, found: DataFound) -> list[str]:
        assert config.sweep is not None
        problems = []
        if not found.counts["validation"]:
            problems.append(
                "sweep: trials are judged on validation rows, and there are none; raise "
                "data.validation_fraction, or give a validation split"
            )
        if config.sweep.refit != "none" and _streams(config, found.info):
            problems.append(
                "sweep.refit: the transfer set is larger than compute.memory_budget and streamed, which "
                "leaves the validation rows out; raise the budget, or set refit to none"
            )
        corners = settled(config)
        return problems + corner_problems(corners, lambda c: student_checks.data_problems(c, found))

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, *student_stage.inputs_of(config, done))

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, Upstream.of(done))

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        return intact(plan, context)

    def complete(self, config: Config, plan: StagePlan) -> Manifest | None:
        manifest = plan.done()
        assert config.sweep is not None
        return manifest if manifest is not None and enough(config.sweep, manifest) else None

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        return with_winner(config, artifact.manifest)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        trials = {trial["name"]: trial for trial in summary["trials"]}
        winner, baseline = (trials[summary[key]]["value"] for key in ("winner", "baseline"))
        states = Counter(trial["state"] for trial in summary["trials"])
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        chosen = ", ".join(f"{k}={_short(v)}" for k, v in trials[summary["winner"]]["parameters"].items())
        return (
            f"{len(trials)} trials ({counted}); {summary['winner']} wins with {chosen}: "
            f"{summary['metric']} {winner:.4f}, on hard labels {baseline:.4f}"
        )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _streams(config: Config, info: dict[str, Any]) -> bool:
    """Whether transfer set and soft targets are larger than may be held in memory."""
    layout = layout_of(config, info, num_teachers(config)).logits_alone
    return bytes_in_memory(info, layout) > config.compute.memory_budget * 1e9


STAGE = Sweep()
