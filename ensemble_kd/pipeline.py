"""The way from a data set to a student, stage by stage.

(augment,) data, teachers, soft targets, (clusters, specialists, combined targets,) (sweep,) (choose,)
student, (export,) report. A stage whose result stands already under the fingerprint of its settings and
inputs is skipped; of another it is said why it runs. Stages hand over manifests and folders, never live
objects.

`run` and `check` walk over the same stages; `ensemble_kd.stage_list` has their order.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ensemble_kd import __version__, home
from ensemble_kd.artifacts import Manifest, read_manifest, size_on_disk, write_json
from ensemble_kd.config import Config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.early import check_early, class_problems, too_large
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.model_folder import EXPORT
from ensemble_kd.pipeline_step import tracked
from ensemble_kd.redact import redacted
from ensemble_kd.run_folder import opened
from ensemble_kd.runtime import Runtime
from ensemble_kd.stage_list import STAGES, entry_of, stages_of
from ensemble_kd.stages import report as report_stage
from ensemble_kd.stages.base import Artifact, DataFound, Done, NotDone, Stage
from ensemble_kd.stages.context import Console, Context, StagePlan
from ensemble_kd.stages.members import pace
from ensemble_kd.stages.mlflow_models import with_models
from ensemble_kd.targets import target_in
from ensemble_kd.termination import Termination
from ensemble_kd.tracking import Tracker

RECIPE = "recipe.yaml"
"""In the run folder: the configuration that was chosen for the data, with comments; `run` takes it."""


def stage(name: str) -> Stage:
    """The stage of that name."""
    entry = entry_of(name)
    found: Stage = import_module(entry.module).STAGE if entry.make is None else entry.make()
    return found


def run(
    config: Config,
    folder: Path | str,
    *,
    until: str = "report",
    address: str | None = None,
    fresh: Collection[str] = (),
    require_gap: bool = False,
    verbose: bool = False,
    console: Console | None = None,
    recipe: str | None = None,
) -> dict[str, Any]:
    """Run every stage up to and including `until`, skipping what is done; returns the manifests by stage.

    `folder` is one that all nodes see, or a URL in a store (s3://...): see `ensemble_kd.mirror`.
    Stages named in `fresh` are redone even so. With `require_gap` the run ends before the soft targets, with
    NoGapError, where the ensemble is not shown to know more than the student on hard labels. `recipe` is the
    configuration as text, kept in the folder.
    Raises ConfigError or InputError before any Ray process starts, as far as they can be known by then,
    and ExportError at the very end: the report is there then, without the forms.
    """
    console = console or Console()
    home.provide(console.warning)
    check_early(config, address)
    check_objective(config)
    if until not in config.stages:
        needed, remedy = entry_of(until).block, entry_of(until).remedy
        if remedy is not None:
            raise ConfigError(f"{remedy.split('=')[0]}: nothing is to be done by {until}; --set {remedy}")
        raise ConfigError(
            f"{needed}: this configuration has none; add a `{needed}` block, "
            f"--set {needed}={{}} for the defaults"
        )
    order = stages_of(config)
    if require_gap and ("gap" not in order or order.index(until) < order.index("gap")):
        why = f"this run ends with {until}" if "gap" in order else "no teacher has outputs on validation rows"
        raise ConfigError(f"--require-gap: nothing is compared, since {why}; leave it out")
    termination = Termination()
    with termination.handled(), opened(config, folder, console, termination) as folder:
        write_json(folder / "resolved.json", redacted(config.model_dump(mode="json")))
        if recipe is not None:
            (folder / RECIPE).write_text(recipe, encoding="utf-8")
        tracker = Tracker(config.tracking, folder.parent, config.name, console.warning, folder)
        here = config.compute.executor == "local"
        runtime = Runtime(
            config.compute, address, verbose, here, termination=termination, warn=console.warning
        )
        context = Context(config, folder, runtime, tracker, console)
        tracker.start("", config.model_dump(mode="json"), {"version": __version__, "folder": str(folder)})
        good = False
        try:
            with runtime:
                manifests = walk(context, until, fresh, require_gap)
            good = True
            return manifests
        finally:
            tracker.end("", good)
            tracker.close()


def walk(
    context: Context, until: str, fresh: Collection[str], require_gap: bool = False
) -> dict[str, Manifest]:
    """Bring every stage up to `until` to its end, in order; returns their manifests by name."""
    context = replace(context, config=with_models(context.config, context.folder))
    done, failure = Done(), None
    for current in map(stage, stages_of(context.config)):
        if _not_needed(current, until, asked=require_gap):
            continue
        plan = current.plan(context.config, context.folder, done)
        if plan.done() is None:
            current.prepare(context.config, done)
        try:
            with tracked(context, current, plan, fresh) as step:
                step.manifest = step.kept(current.intact(context, plan)) or current.run(context, plan, done)
        except current.postponed as error:
            if until == current.name:
                raise
            failure = error
            continue
        artifact = Artifact(current.name, plan, step.result)
        done.add(artifact)
        for line in artifact.summary.get("warnings", []) if step.skipped else ():
            context.console.warning(line)  # told again: what is odd about it has not gone away
        if require_gap:
            current.demand(artifact.summary)
        if until == current.name:
            break
        _verify(current, context.config, artifact, done, context.runtime.address)
        context = replace(context, config=current.rewrite(context.config, artifact))
    if until == STAGES[-1]:
        _track_outcome(context, done)
    if failure is not None:
        raise failure
    return done.manifests


def _not_needed(current: Stage, until: str, asked: bool) -> bool:
    """Whether a run up to `until` ends before the stage that this one serves; `asked`: it is wanted."""
    if current.serves is None or asked or until == current.name:
        return False
    return STAGES.index(until) < STAGES.index(current.serves)


def _verify(
    current: Stage, config: Config, artifact: Artifact, done: Done, address: str | None = None
) -> None:
    """What a result tells about the stages that follow. Raises what is wrong."""
    current.verify(config, artifact, done)
    if current.name == "data":
        check_sizes(config, artifact.summary["info"], artifact.folder, address)


def _track_outcome(context: Context, done: Done) -> None:
    """Lineage and figures on the parent run, and lineage on the shipped student's run."""
    student, lineage = done["student"].manifest, done.lineage()
    report = json.loads((context.folder / report_stage.JSON).read_text())
    flat = {f"lineage.{k}": v for k, v in lineage.items() if isinstance(v, str)}
    flat |= {f"lineage.teachers.{name}": v for name, v in lineage["teachers"].items()}
    tracker = context.tracker
    tracker.tags("", {**flat, "verdict": report["verdict"]["text"][:4000]})
    for entry in student.summary["members"]:
        # Where the student stage was skipped, its members have no runs of this session.
        if f"student/{entry['name']}" in tracker.asked:
            tracker.tags(
                f"student/{entry['name']}", {**flat, "shipped": str(entry["name"] == report["shipped"])}
            )
    key = target_in(report).measures.headline
    metrics = {f"{role}.{key}": values[key]["mean"] for role, values in report["summary"].items()}
    if report["gap_recovered"]["value"] is not None:
        metrics["gap_recovered"] = report["gap_recovered"]["value"]
    tracker.metrics("", metrics)
    for name in (report_stage.JSON, report_stage.PAGE):
        tracker.file("", context.folder / name)
    export = context.config.export
    model = context.folder / report_stage.MODEL / EXPORT / "mlflow"
    if export is not None and export.register_as and (made := read_manifest(model)) is not None:
        tracker.register("", model, export.register_as, {**flat, "fingerprint": made.fingerprint})


def check_objective(config: Config) -> None:
    """Raises ConfigError with what is wrong with the settings of each stage before anything is read."""
    problems = [line for name in stages_of(config) for line in stage(name).settings_problems(config)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def check_sizes(
    config: Config, info: dict[str, Any], data: Path | None = None, address: str | None = None
) -> None:
    """Raises ConfigError with what can be held against the settings only once the data is known.

    `data` is its folder, whose tokenizer cuts the texts of the phases; without it they are not counted.
    `address` is that of the Ray cluster.
    """
    if problems := too_large(config, info, address):
        raise ConfigError(problems)  # what follows builds some of them
    found = DataFound(info, data)
    problems = class_problems(config, info["num_classes"])
    problems += [line for name in stages_of(config) for line in stage(name).problems(config, found)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan that `check` prints."""

    name: str
    state: str
    """`done`, `to do: why`, or `to do: follows` the stage that has to run first."""
    size: int
    """Bytes on disk now."""
    expected: int | None = None
    """Bytes it will take, where that can be told."""
    work: str = ""
    """What it has to train, and how long one worker takes where an earlier member tells its pace."""


def check(config: Config, folder: Path, console: Console | None = None) -> list[PlannedStage]:
    """Validate everything that can be, and say what a run would do. Starts no Ray and writes nothing.

    `console` takes what is odd about the data, but no reason to stop.
    Raises ConfigError or InputError with all problems.
    """
    check_early(config)
    check_objective(config)
    config = with_models(config, None)
    if problems := inspect_source(config, (console or Console()).warning):
        raise InputError(problems)
    done, found, first = Done(), [], ""
    for current in map(stage, stages_of(config)):
        if not first:
            try:
                plan = current.plan(config, folder, done)
                manifest = current.complete(config, plan)
                if manifest is None:
                    current.prepare(config, done)
                preview = {} if manifest else current.preview(config, plan, done)
                artifact = Artifact(current.name, plan, manifest, preview)
                done.add(artifact)
                found.append(_line(current, config, artifact, done))
                if manifest is not None:
                    _verify(current, config, artifact, done)
                    config = current.rewrite(config, artifact)
                elif current.decides:
                    first = current.name
                continue
            except NotDone as missing:
                waits = missing.name
                first = current.name if current.decides else ""
        else:
            waits = first
        note = current.note(config, done) if "data" in done and done["data"].made else ""
        state = f"to do: follows {waits}" + (f"; {note}" if note else "")
        found.append(PlannedStage(current.name, state, 0))
    return found


def _line(current: Stage, config: Config, artifact: Artifact, done: Done) -> PlannedStage:
    plan = artifact.plan
    size = size_on_disk(plan.folder)
    size += size_on_disk(plan.folder.parent / "members") if current.has_members else 0
    if artifact.made is not None:
        return PlannedStage(current.name, f"done [{plan.fingerprint}]", size)
    note = current.note(config, done)
    state = f"to do: {plan.why()}" + (f"; {note}" if note else "")
    return PlannedStage(
        current.name, state, size, current.expected(config, done), _work(current, config, plan, done)
    )


def _work(current: Stage, config: Config, plan: StagePlan, done: Done) -> str:
    if current.decides or (work := current.work(config, done)) is None:
        return ""
    speed = pace(plan.folder.parent / "members")
    return str(work) + (
        f", {work.examples / speed:,.0f} s of a worker at the pace of before" if speed else ""
    )
