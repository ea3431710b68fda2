"""T, alpha and pseudo where they are `auto`: chosen on validation rows from a small grid, before students are
trained.

Students that stack are tried in full, all of them together, and those of the choice are the student stage's.
Others are tried one by one on a third of the steps or less: all of it costs no more than the students.
What is tried depends on settings and data alone, not on the machine or its load.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import Config, Point, balanced_weights, points, settled
from ensemble_kd.data.records import load_labels
from ensemble_kd.errors import TrainingError
from ensemble_kd.objectives.base import OBJECTIVES
from ensemble_kd.proposals import Proposals
from ensemble_kd.stages import phase_training, student_tasks
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages.base import Artifact, DataFound, Done, Stage
from ensemble_kd.stages.chain import CHAINED
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.members import members_folder
from ensemble_kd.stages.stacking import stackable
from ensemble_kd.stages.start import basis_of
from ensemble_kd.stages.training_data import arrays_and_loader, states_layout
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.stages.vectors import make_vectors
from ensemble_kd.targets import target_in
from ensemble_kd.train.choosing import Scores, compared, decide, scores_of_classes, scores_of_values
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.trials import Entry, Trial
from ensemble_kd.trial_runs import concurrency, run_trials
from ensemble_kd.trial_steps import TrialWork

GRID = 3
"""Number of the grid and the rule, in the fingerprint: raised when either changes."""
MOST_SEEDS = 3
"""Students of each candidate, where they are stacked and the student stage has as many."""
SHARE = 1 / 3
"""Of a student's steps, for candidates that are trained one by one; less where there are few students."""
WITHIN = 0.9
"""Of the students' own steps, for all candidates together."""


def plan(config: Config, run: Path, data: str, store: str, combined: str | None = None) -> StagePlan:
    settings = dict(student_stage.plan(config, run, data, store, combined).config)
    for name in ("refit", *CHAINED):
        settings.pop(name, None)
    settings |= {"seeds": min(config.student.seeds, MOST_SEEDS), "choose": GRID}
    inputs = {"data": data, "soft_targets": store}
    return StagePlan.of(
        run, "choose", settings, {**inputs, "combined_targets": combined} if combined else inputs
    )


def shortened(task: MemberTask, share: float) -> MemberTask:
    """The same student with that share of its steps: fewer epochs and, where these are few, shorter ones."""
    epochs = math.ceil(share * task.training["epochs"])
    rows = round(task.examples_per_epoch * share * task.training["epochs"] / epochs)
    rows = max(task.training["batch_size"], min(task.examples_per_epoch, rows))
    return replace(task, training={**task.training, "epochs": epochs}, examples_per_epoch=rows)


def with_point(config: Config, point: Point) -> Config:
    student = config.student.model_copy(update=point._asdict())
    return config.model_copy(update={"student": student})


def softened(config: Config) -> bool:
    """Whether the soft loss has a temperature."""
    objective = config.student.objective_fields
    assert objective is not None, "checked with the configuration"
    return "temperature" in {field.name for field in fields(OBJECTIVES[objective["name"]])}


def run(context: Context, plan: StagePlan, above: Upstream) -> Manifest:
    """Train the candidates and choose. Raises TrainingError where none of them finished."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    asked, context = context.config, replace(context, config=settled(context.config))
    weights, above = student_stage.usable(context, above)
    config, data, info = context.config, above.data, above.info
    counts, budget = info["counts"], config.compute.memory_budget
    layout = states_layout(info, budget, above.store[1], above.combination)
    basis = basis_of(config, context.folder, data, above.teachers, layout)
    sources = above.sources(plan, basis, weights)

    def task(point: Point, seed: int) -> MemberTask:
        alone = with_point(config, point)
        role = "distilled" if alone.student.distils else "hard"
        return student_tasks.task(alone, role, seed, sources)

    unlabelled = counts["transfer"] > counts["labelled"] and config.data.predicts.classified
    together = stackable(task(Point(1, 1, 0), 0), config, info)
    made_up = config.data.augment.munge > 0
    grid = points(asked.student, unlabelled, not together, softened(config), made_up)
    seeds, share = plan.config["seeds"] if together else 1, 1.0
    if not together:
        trained = len(student_tasks.roles(config, counts, bool(sources.combined)))
        share = min(SHARE, WITHIN * trained / len(grid))
    make_vectors(basis.vectors, context.folder, data, context.console)
    phase_training.train_phases(context, above, sources, seeds)
    trials = []
    for number, point in enumerate(grid):
        name, made = f"candidate-{number:02d}", [task(point, seed) for seed in range(seeds)]
        made = made if together else [shortened(one, share) for one in made]
        made = [replace(one, name=f"{name}-seed-{seed}") for seed, one in enumerate(made)]
        trials.append(Trial(name, "searched", point._asdict(), made))
    states = any(student_tasks.reads_states(trial.tasks[0]) for trial in trials)
    arrays, load, _ = arrays_and_loader(
        data, info, budget, above.store, above.combination, run=context.folder, states=states
    )
    members = members_folder(context.folder, "choose")
    if len(grid) > 1:
        _train(context, plan.folder, members, trials, together, arrays=arrays, load=load)
    even = config.student.training.class_weights is not None
    summary = _decided(data, info, grid, trials, members, even) if len(grid) > 1 else _only(grid[0], info)
    summary |= {"fields": list(asked.choosing or ()), "seeds": seeds, "stacked": together, "steps": share}
    summary["seconds"] = time.perf_counter() - began
    shutil.rmtree(plan.folder / "fused", ignore_errors=True)
    return plan.finish([], summary)


def _train(
    context: Context,
    folder: Path,
    members: Path,
    trials: list[Trial],
    together: bool,
    *,
    arrays: Callable[[], dict[str, Any]],
    load: Any,
) -> None:
    """Bring every candidate to its end; `reason` and `state` of each say how it went."""
    if all(finished(task, members) for trial in trials for task in trial.tasks):
        return
    config = context.config
    concurrent = concurrency(context.runtime, "auto", config.student.replicas_per_member)
    concurrent = min(concurrent, len(trials))
    fuse = 1
    if together:  # one packet for each process, the same ones after a kill
        each = -(-len(trials) // concurrent)
        fuse = each * len(trials[0].tasks)
        for number, trial in enumerate(trials):
            trial.packet = 1 + number // each

    def on_change(trial: Trial) -> None:
        context.console.progress("choose", sum(t.over for t in trials), len(trials), trial.name)

    def on_epoch(trial: Trial, entry: Entry) -> None:
        done = sum(t.epochs for t in trials) / max(1, trial.tasks[0].training["epochs"])
        context.console.progress("choose", done, len(trials), f"{trial.name}: epoch {entry['epoch']:.0f}")

    def proposals(fuse: int) -> Proposals:
        return Proposals(
            trials,
            lambda: None,
            list,
            on_change,
            on_epoch,
            fuse=fuse,
            concurrent=concurrent,
            left=lambda: 0,
            too_many_failed=lambda: False,
            max_failures=config.compute.max_failures,
            offset=0.0,
            packets=len(trials),
        )

    context.console.progress("choose", 0, len(trials), "starting workers")
    try:
        work = TrialWork(
            proposals=proposals,
            folder=folder,
            members=members,
            load_data=load,
            arrays=arrays,
            example=trials[0],
            metric="validation_loss",
            sign=-1,
            fuse=fuse,
            fuse_limit=fuse,
            replicas=config.student.replicas_per_member,
            epochs=trials[0].tasks[0].training["epochs"],
            asha=None,
            warn=context.console.warning,
        )
        run_trials(context.runtime, work)
    finally:
        context.console.progress("choose", 0, 0, "")


def _shown(point: Point, info: dict[str, Any]) -> str:
    """Values have no temperature."""
    plain = not target_in(info).classified and point.alpha > 0
    return f"alpha = {point.alpha:g}" if plain else str(point)


def _only(point: Point, info: dict[str, Any]) -> dict[str, Any]:
    text = f"{_shown(point, info)}, the only choice that makes a difference here"
    return {"chosen": point._asdict(), "by": "default", "rows": 0, "candidates": [], "text": text}


def _decided(
    data: Path,
    info: dict[str, Any],
    grid: Sequence[Point],
    trials: Sequence[Trial],
    members: Path,
    even: bool,
) -> dict[str, Any]:
    """What the manifest says: the choice, each candidate against it, and how sure that is.

    `even`: every class counts alike, however many rows it has, as in a student's loss with class weights.
    """
    labels, target = load_labels(data, "validation"), target_in(info)
    by_row = None
    if even and target.classified:
        by_row = np.array(balanced_weights(np.bincount(labels).tolist()))[labels]
    scores: dict[int, Scores] = {}
    for number, trial in enumerate(trials):
        if not all(finished(task, members) for task in trial.tasks):
            continue
        logits = [load_logits(task.folder(members), "validation").numpy() for task in trial.tasks]
        scores[number] = (
            scores_of_classes(logits, labels, by_row)
            if target.classified
            else scores_of_values([-target.losses(one, labels) for one in logits])
        )
    if not scores:
        raise TrainingError(
            f"choose: no candidate finished ({trials[0].reason or 'unknown'}); lower "
            "student.training.learning_rate, or give numbers in place of auto"
        )
    numbers = list(scores)  # the default first, unless it failed
    decision = decide([scores[number] for number in numbers])
    chosen = numbers[decision.chosen]
    candidates = [
        {
            **grid[number]._asdict(),
            "name": _shown(grid[number], info),
            "accuracy": scores[number].accuracy if number in scores else None,
            "loss": scores[number].loss if number in scores else None,
            **(compared(scores[chosen], scores[number]) if number in scores else {}),
        }
        for number in range(len(grid))
    ]
    others = [number for number in numbers if number != chosen]
    second = min(others, key=lambda number: _rank(number, decision.close, numbers, scores), default=None)
    found = {
        "chosen": grid[chosen]._asdict(),
        "by": decision.by,
        "rows": len(labels),
        "candidates": candidates,
        "default": numbers[0],
        "choice": chosen,
        "runner_up": second,
    }
    return {**found, "text": told(found)}


def _rank(number: int, close: list[int], numbers: list[int], scores: dict[int, Scores]) -> tuple[bool, float]:
    """Those not told apart by accuracy first, then by likelihood."""
    return numbers.index(number) not in close, scores[number].loss


def told(found: dict[str, Any]) -> str:
    """The choice in a sentence or two: what, among how many, by what, and how sure."""
    candidates, rows = found["candidates"], found["rows"]
    why = {
        "default": "none is better by more than noise",
        "accuracy": "by accuracy",
        "likelihood": "by likelihood, since accuracies differ by no more than noise",
        "loss": "by its loss",
    }[found["by"]]
    text = f"{candidates[found['choice']]['name']}, of {len(candidates)} on {rows:,} validation rows, {why}"
    beside = {"the runner-up": found["runner_up"], "the default": found["default"]}
    for what, number in beside.items():
        if number is None or number == found["choice"]:
            continue
        other = candidates[number]
        text += f"; against {what}, {other['name']}: "
        if "accuracy_gain" in other:
            gain, error = 100 * other["accuracy_gain"], 100 * other["accuracy_gain_error"]
            text += f"{gain:+.2f} ± {error:.2f} points, "
        text += f"{other['likelihood_gain']:+.4f} ± {other['likelihood_gain_error']:.4f} "
        text += "nats" if "accuracy_gain" in other else "of loss"
    return text


class Choose(Stage):
    name = "choose"
    has_members = True
    decides = True

    def problems(self, config: Config, found: DataFound) -> list[str]:
        if found.counts["validation"]:
            return []
        return [
            f"student.{name}: 'auto' is chosen on validation rows, and there are none; raise "
            "data.validation_fraction, give a validation split, or give a number"
            for name in config.choosing or ()
        ]

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        return plan(config, run, *student_stage.inputs_of(config, done))

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        return run(context, plan, Upstream.of(done))

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        chosen = {name: artifact.summary["chosen"][name] for name in artifact.summary["fields"]}
        return config.model_copy(update={"student": config.student.model_copy(update=chosen)})

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return str(summary["text"])


STAGE = Choose()
