"""The whole way, in order.

(augment,) data, teachers, soft targets, (clusters, specialists,) (sweep,) student, report.

Each stage looks whether its result stands already under the fingerprint of its settings and inputs; if so
it is skipped, if not it says why and runs. Stages hand over manifests and folders, never live objects.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ensemble_kd import __version__, home
from ensemble_kd.artifacts import Manifest, read_manifest, size_on_disk, write_json
from ensemble_kd.config import Config, CustomModelConfig, corner_problems, num_teachers
from ensemble_kd.data.prepared import inspect_source
from ensemble_kd.early import check_early, class_problems, too_large
from ensemble_kd.errors import ConfigError, ExportError, InputError
from ensemble_kd.lease import leased, locked
from ensemble_kd.mirror import Mirror, attach, attached, is_remote
from ensemble_kd.model_folder import EXPORT
from ensemble_kd.models.build import build
from ensemble_kd.redact import redacted
from ensemble_kd.runtime import Runtime
from ensemble_kd.stages import augment as augment_stage
from ensemble_kd.stages import clusters as clusters_stage
from ensemble_kd.stages import combined_targets as combined_stage
from ensemble_kd.stages import data as data_stage
from ensemble_kd.stages import export as export_stage
from ensemble_kd.stages import report as report_stage
from ensemble_kd.stages import soft_targets as soft_targets_stage
from ensemble_kd.stages import specialists as specialists_stage
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages import sweep as sweep_stage
from ensemble_kd.stages import teachers as teachers_stage
from ensemble_kd.stages.context import Console, Context, StagePlan
from ensemble_kd.stages.given_teachers import predictions_of
from ensemble_kd.stages.kept import kept_problems
from ensemble_kd.stages.members import intact, members_folder, prefixed
from ensemble_kd.stages.mlflow_models import with_models
from ensemble_kd.stages.start import (
    corpus_size_problems,
    phase_size_problems,
    student_problems,
    teacher_problems,
)
from ensemble_kd.stages.training_data import bytes_in_memory, states_fit
from ensemble_kd.termination import Termination
from ensemble_kd.tracking import Tracker
from ensemble_kd.train.measures import measures_of
from ensemble_kd.train.member import PREDICTIONS


def run(
    config: Config,
    folder: Path | str,
    *,
    until: str = "report",
    address: str | None = None,
    fresh: Collection[str] = (),
    verbose: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run every stage up to and including `until`, skipping what is done; returns the manifests by stage.

    `folder` is one that all nodes see, or a URL in a store (s3://...): see `ensemble_kd.mirror`.
    Stages named in `fresh` are redone even so.
    Raises ConfigError or InputError before any Ray process starts, as far as they can be known by then,
    and ExportError at the very end: the report is there then, without the forms.
    """
    console = console or Console()
    home.provide(console.warning)
    check_early(config, address)
    check_objective(config)
    if until not in config.stages:
        blocks = {"sweep": "sweep", "augment": "data.text_augment", "export": "export"}
        needed = blocks.get(until, "specialists")
        raise ConfigError(
            f"{needed}: this configuration has none; add a `{needed}` block, "
            f"--set {needed}={{}} for the defaults"
        )
    termination = Termination()
    with termination.handled(), opened(config, folder, console, termination) as folder:
        write_json(folder / "resolved.json", redacted(config.model_dump(mode="json")))
        tracker = Tracker(config.tracking, folder.parent, config.name, console.warning, folder)
        runtime = Runtime(config.compute, address, verbose, termination=termination, warn=console.warning)
        context = Context(config, folder, runtime, tracker, console)
        tracker.start("", config.model_dump(mode="json"), {"version": __version__, "folder": str(folder)})
        good = False
        try:
            with runtime:
                manifests = _stages(context, until, fresh)
            good = True
            return manifests
        finally:
            tracker.end("", good)
            tracker.close()


def copied(config: Config, folder: Path | str) -> Path:
    """A folder to look into: of a run in a store, this node's copy, brought up to date."""
    if not is_remote(folder):
        return Path(folder)
    mirror = Mirror.of(str(folder), config.compute.scratch)
    mirror.pull()
    return mirror.root


@contextmanager
def opened(config: Config, folder: Path | str, console: Console, termination: Termination) -> Iterator[Path]:
    """The run folder, locked against a second run; for one in a store, this node's copy of it."""
    if not is_remote(folder):
        folder = Path(folder).absolute()  # workers run in folders of their own
        prepare_folder(folder)
        attach(None)
        with locked(folder):
            yield folder
        return
    mirror = Mirror.of(str(folder), config.compute.scratch)
    mirror.warn = console.warning
    prepare_folder(mirror.root)

    def lost() -> None:
        termination.reason = f"another run, which took over {mirror.shown}"
        os.kill(os.getpid(), signal.SIGTERM)

    with locked(mirror.root), leased(mirror, lost):
        attach(mirror)
        try:
            mirror.pull()
            console.line(f"{mirror.shown}: copied to and from {mirror.root}")
            with mirror.kept_sent():
                yield mirror.root
        finally:
            attach(None)


def _stages(context: Context, until: str, fresh: Collection[str]) -> dict[str, Any]:
    config, folder = context.config, context.folder
    done: dict[str, Any] = {}

    # Models in MLflow: fetched, so that what they are is known.
    config = with_models(config, folder)
    context = replace(context, config=config)

    # Augment: texts made from train texts, which are the unlabelled ones from here on.
    if config.data.text_augment is not None:
        plan = augment_stage.plan(config, folder)
        with stage(context, "augment", plan, fresh) as step:
            step.manifest = step.kept(plan.checked(context.console)) or augment_stage.run(context, plan)
        done["augment"] = step.result
        if until == "augment":
            return done
        config = augment_stage.with_texts(config, plan)
        context = replace(context, config=config)

    # Data: arrays on disk, checked; no Ray yet, so that bad input is told before anything starts.
    plan = data_stage.plan(config, folder)
    with stage(context, "data", plan, fresh) as step:
        step.manifest = step.kept(plan.checked(context.console)) or data_stage.run(context, plan)
    data, info = plan, step.result.summary["info"]
    done["data"] = step.result
    if until == "data":
        return done

    # Teachers: every member in one worker group.
    check_sizes(config, info, data.folder, context.runtime.address)
    plan = teachers_stage.plan(config, folder, data.fingerprint)
    if plan.done() is None:
        check_custom(config, info)
    with stage(context, "teachers", plan, fresh) as step:
        step.manifest = step.kept(intact(plan, context)) or teachers_stage.run(
            context, plan, data.folder, info
        )
    teachers, teachers_plan = step.result, plan
    done["teachers"] = teachers
    if until == "teachers":
        return done

    # Soft targets: every teacher over the transfer set, once.
    given = predictions_of(config, plan.folder, info, teachers.summary["source"])
    members = {entry["name"]: entry["fingerprint"] for entry in teachers.summary["members"]}
    plan = soft_targets_stage.plan(config, folder, data.fingerprint, members)
    with stage(context, "soft-targets", plan, fresh) as step:
        step.manifest = step.kept(plan.checked(context.console)) or soft_targets_stage.run(
            context, plan, data.folder, info, _trained(folder, members) if given is None else [], given
        )
    store, store_plan = step.result, plan
    done["soft-targets"] = store
    if until == "soft-targets":
        return done
    soft_targets_stage.check_store(
        store,
        store_plan.folder,
        {"data": data.fingerprint, **members},
        info["class_names"],
        info["counts"]["transfer"],
    )

    clusters = specialists = combined = None
    if config.specialists is not None:
        # Clusters: which classes do the teachers confuse?
        plan = clusters_stage.plan(config, folder, data.fingerprint, store_plan.fingerprint)
        with stage(context, "clusters", plan, fresh) as step:
            step.manifest = step.kept(plan.checked(context.console)) or clusters_stage.run(
                context, plan, data.folder, info, store_plan.folder, store, _predictions(folder, teachers)
            )
        clusters, clusters_plan = step.result, plan
        done["clusters"] = clusters
        if until == "clusters":
            return done

        # Specialists: experts on each cluster, all in one worker group.
        plan = specialists_stage.plan(
            config,
            folder,
            data.fingerprint,
            clusters_plan.fingerprint,
            store_plan.fingerprint,
            teachers.summary["members"],
        )
        with stage(context, "specialists", plan, fresh) as step:
            step.manifest = step.kept(intact(plan, context)) or specialists_stage.run(
                context, plan, data.folder, info, clusters, teachers, store_plan.folder, store
            )
        specialists, specialists_plan = step.result, plan
        done["specialists"] = specialists
        if until == "specialists":
            return done

        # Combined targets: the ensemble with its specialists, over the transfer set, where it is better so.
        plan = combined_stage.plan(config, folder, data.fingerprint, store_plan.fingerprint, specialists)
        with stage(context, "combined-targets", plan, fresh) as step:
            step.manifest = step.kept(plan.checked(context.console)) or combined_stage.run(
                context, plan, data.folder, info, teachers, store_plan.folder, store, specialists
            )
        combined, combined_plan = step.result, plan
        done["combined-targets"] = combined
        if until == "combined-targets":
            return done

    # Sweep: which settings of the student? From here on those of the winner.
    beside = (combined_plan.folder, combined) if combined is not None else None
    fingerprints = (data.fingerprint, store_plan.fingerprint, beside[0].name if beside else None)
    sweep = ready = None
    if config.sweep is not None:
        plan = sweep_stage.plan(config, folder, *fingerprints)
        with stage(context, "sweep", plan, fresh) as step:
            step.manifest = step.kept(sweep_stage.intact(plan, context)) or sweep_stage.run(
                context, plan, data.folder, info, store_plan.folder, store, teachers, beside
            )
        sweep, ready = step.result, members_folder(folder, "sweep")
        sweep_plan = plan
        done["sweep"] = sweep
        if until == "sweep":
            return done
        config = sweep_stage.with_winner(config, sweep)
        context = replace(context, config=config)

    # Student: distilled, and on hard labels alone, in one worker group.
    plan = student_stage.plan(config, folder, *fingerprints)
    with stage(context, "student", plan, fresh) as step:
        step.manifest = step.kept(intact(plan, context)) or student_stage.run(
            context, plan, data.folder, info, store_plan.folder, store, teachers, beside, ready
        )
    student, student_plan = step.result, plan
    done["student"] = student
    if until == "student":
        return done

    lineage = {
        "data": data.fingerprint,
        "teachers": members,
        "soft_targets": store_plan.fingerprint,
        "student": student_plan.fingerprint,
    }
    if clusters is not None:
        lineage |= {"clusters": clusters_plan.fingerprint, "specialists": specialists_plan.fingerprint}
        lineage["combined_targets"] = combined_plan.fingerprint
    if sweep is not None:
        lineage["sweep"] = sweep_plan.fingerprint

    # Export: the student in the forms that others run. Where one fails, the report comes without them.
    forms = failure = None
    if config.export is not None:
        plan = export_stage.plan(
            config, folder, data.fingerprint, teachers_plan.fingerprint, student_plan.fingerprint
        )
        try:
            with stage(context, "export", plan, fresh) as step:
                step.manifest = step.kept(plan.checked(context.console)) or export_stage.run(
                    context, plan, data.folder, info, teachers, student, lineage
                )
            forms = (plan.folder, step.result)
            done["export"] = step.result
        except ExportError as error:
            if until == "export":
                raise
            failure = error
        if until == "export":
            return done

    # Report: did it help? And the one model to deploy.
    swept = sweep_stage.result_of(sweep) if sweep is not None else None
    plan = report_stage.plan(
        config,
        folder,
        teachers_plan.fingerprint,
        student_plan.fingerprint,
        swept,
        forms[0].name if forms else None,
    )
    with stage(context, "report", plan, fresh) as step:
        special = None
        if clusters is not None and specialists is not None and beside is not None:
            special = (clusters_plan.folder, clusters, specialists, *beside)
        step.manifest = step.kept(report_stage.intact(plan, context)) or report_stage.run(
            context,
            plan,
            data.folder,
            info,
            teachers,
            teachers_plan.folder,
            student,
            lineage,
            special,
            sweep,
            forms,
        )
    done["report"] = step.result
    _track_outcome(context, student, lineage)
    if failure is not None:
        raise failure
    return done


def _predictions(folder: Path, teachers: Manifest) -> list[Path]:
    """Files with each trained teacher's logits on validation and test rows."""
    members = members_folder(folder, "teachers")
    return [members / entry["fingerprint"] / PREDICTIONS for entry in teachers.summary["members"]]


def _trained(folder: Path, members: dict[str, str]) -> list[tuple[dict[str, Any], str]]:
    """Settings and folder of each trained teacher."""
    found = []
    for fingerprint in members.values():
        member = members_folder(folder, "teachers") / fingerprint
        manifest = read_manifest(member)
        assert manifest is not None, "the teachers stage has just looked after its members"
        found.append((manifest.config, str(member.resolve())))
    return found


def _track_outcome(context: Context, student: Manifest, lineage: dict[str, Any]) -> None:
    """Lineage and figures on the parent run, and lineage on the shipped student's run."""
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
    key = measures_of(report.get("target")).headline
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


# ---------------------------------------------------------------------------------------- around a stage


@dataclass
class Step:
    """One stage on its way: skipped or run."""

    fresh: bool
    context: Context
    plan: StagePlan
    name: str
    began: float = field(default_factory=time.perf_counter)
    skipped: bool = False
    manifest: Manifest | None = None

    def kept(self, manifest: Manifest | None) -> Manifest | None:
        """The finished result, or None where the stage has to run; says which and why."""
        if manifest is not None and not self.fresh:
            self.skipped = True
            return manifest
        reason = "--fresh" if self.fresh else self.plan.why()
        self.context.console.line(f"{self.name}: running ({reason})")
        return None

    @property
    def result(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest


@contextmanager
def stage(context: Context, name: str, plan: StagePlan, fresh: Collection[str]) -> Iterator[Step]:
    """Track the stage, time it, and say in one line how it ended."""
    step = Step(name in fresh, context, plan, name)
    key = name.replace("-", "_")
    context.tracker.start(key, plan.config, {"fingerprint": plan.fingerprint, **prefixed(plan.inputs)})
    good = False
    try:
        if step.fresh:
            discard(context, plan)
        yield step
        if (mirror := attached()) is not None and not step.skipped:
            mirror.push(context.folder, check=True)  # the next stage's workers read it from there
        good = True
    finally:
        context.tracker.end(key, good)
    how = "kept" if step.skipped else f"{time.perf_counter() - step.began:.1f} s"
    context.console.line(f"{name}: {describe(name, step.result)} [{plan.fingerprint}] ({how})")


def discard(context: Context, plan: StagePlan) -> None:
    """`--fresh`: put this stage's result, and the members behind it, aside.

    Nothing a user made is lost: the folder is renamed, and the newest such copy is kept.
    """
    import shutil

    parts = [plan.folder] + (
        [plan.folder.parent / "members"]
        if plan.stage in ("teachers", "specialists", "sweep", "student")
        else []
    )
    for part in parts:
        if part.exists():
            aside = part.with_name(f".before-fresh-{part.name}")
            shutil.rmtree(aside, ignore_errors=True)
            part.rename(aside)


def describe(name: str, manifest: Manifest) -> str:
    """A stage's result in a few words."""
    summary = manifest.summary
    if name == "augment":
        return f"{summary['texts']} texts from {summary['rows']} rows"
    if name == "data":
        info = summary["info"]
        counts = info["counts"]
        unlabelled = counts["transfer"] - counts["labelled"]
        extra = f" and {unlabelled} without" if unlabelled else ""
        return (
            f"{counts['labelled']} rows with label{extra}, {counts['validation']} validation, "
            f"{counts['test']} test, "
            + (f"{info['num_classes']} classes" if info.get("target") is None else "values")
        )
    if name == "teachers":
        accuracies = [m["validation_accuracy"] for m in summary["members"] if "validation_accuracy" in m]
        losses = [m["validation_loss"] for m in summary["members"] if "validation_pearson" in m]
        if losses:
            low, high = min(losses), max(losses)
            return f"{len(losses)} members, validation loss {low:.4f} to {high:.4f}"
        if not accuracies:
            return f"{len(summary['members'])} given"
        low, high = 100 * min(accuracies), 100 * max(accuracies)
        return f"{len(accuracies)} members, validation {low:.2f} to {high:.2f}%"
    if name == "clusters":
        sizes = sorted(len(cluster["classes"]) for cluster in summary["clusters"])
        text = f"{len(sizes)} of {sizes[0]} to {sizes[-1]} classes, "
        text += f"{100 * summary['confusion_captured']:.0f}% of the confusion inside"
        if summary["without"]:
            text += f"; {len(summary['without'])} classes without"
        return text
    if name == "specialists":
        known = [m for m in summary["members"] if m["conditional_accuracy"] is not None]
        text = f"{len(summary['members'])} members"
        if known:
            before, after = (
                100 * sum(m[key] for m in known) / len(known)
                for key in ("conditional_accuracy_before", "conditional_accuracy")
            )
            text += f", validation accuracy among their classes {before:.2f} -> {after:.2f}%"
        return text
    if name == "combined-targets":
        return str(summary["text"])
    if name == "soft-targets":
        layout = summary["layout"]
        size = sum(entry["bytes"] for entry in manifest.files.values())
        shape = f"{summary['rows']} rows x {layout['views']} views x {layout['members']} members"
        text = f"{shape}, {size / 1e6:.1f} MB"
        if layout["top_k"]:
            bound = summary["error_bound_at_temperature_1"]
            text += f", top {layout['top_k']}, error at most {bound:.3g} at T = 1"
        if kept := layout.get("kept"):
            text += "".join(
                f", {name} of {len(kept[name])} layers" for name in ("hidden", "attention") if kept[name]
            )
        return text
    if name == "sweep":
        trials = {trial["name"]: trial for trial in summary["trials"]}
        winner, baseline = (trials[summary[key]]["value"] for key in ("winner", "baseline"))
        states = Counter(trial["state"] for trial in summary["trials"])
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        chosen = ", ".join(f"{k}={_short(v)}" for k, v in trials[summary["winner"]]["parameters"].items())
        return (
            f"{len(trials)} trials ({told}); {summary['winner']} wins with {chosen}: "
            f"{summary['metric']} {winner:.4f}, on hard labels {baseline:.4f}"
        )
    if name == "student":
        shipped = next(m for m in summary["members"] if m["name"] == summary["shipped"])
        return f"{len(summary['members'])} trained, {shipped['name']} is shipped"
    if name == "export":
        return ", ".join(
            f"{form} {entry['model_bytes'] / 1e6:.2f} MB" for form, entry in summary["forms"].items()
        )
    return str(summary["verdict"]["text"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def prepare_folder(folder: Path) -> None:
    """Raises InputError where the run folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--run-dir: {folder} cannot be written ({error.strerror}); choose another"
        ) from error


# -------------------------------------------------------------------------------------------------- check


def check_objective(config: Config) -> None:
    problems = student_stage.objective_problems(config)
    if not problems:
        problems = corner_problems(config, student_stage.objective_problems)
    if problems:
        raise ConfigError(problems)


def check_sizes(
    config: Config, info: dict[str, Any], data: Path | None = None, address: str | None = None
) -> None:
    """What can be held against the settings only once the data is known.

    `data` is its folder, whose tokenizer cuts the texts of the phases; without it they are not counted.
    `address` is that of the Ray cluster.
    """
    if problems := too_large(config, info, address):
        raise ConfigError(problems)  # what follows builds some of them
    problems = _size_problems(config, info) + kept_problems(config, info)
    of_teachers = teacher_problems(config, info)  # once: no corner of a search space changes a teacher

    def of_student(config: Config) -> list[str]:
        return [] if of_teachers else student_problems(config, info)

    problems += of_teachers + of_student(config)
    if data is not None:
        problems += corpus_size_problems(config, data)
    if config.specialists is not None:  # builds teachers, and no field of the student matters to it
        problems += clusters_stage.problems(config, info["num_classes"])
        problems += specialists_stage.problems(config, info)
    if config.sweep is not None:
        if not info["counts"]["validation"]:
            problems.append(
                "sweep: trials are judged on validation rows, and there are none; raise "
                "data.validation_fraction, or give a validation split"
            )
        if config.sweep.refit != "none" and _streams(config, info):
            problems.append(
                "sweep.refit: the transfer set is larger than compute.memory_budget and streamed, which "
                "leaves the validation rows out; raise the budget, or set refit to none"
            )
        problems += corner_problems(config, lambda corner: _size_problems(corner, info) + of_student(corner))
    if problems:
        raise ConfigError(problems)


def check_custom(config: Config, info: dict[str, Any]) -> None:
    """Raises ConfigError where a user's network cannot be made for this data; each is made and run once."""
    models = [("student.model", config.student.model)]
    if config.teachers.source == "train":
        models.append(("teachers.model", config.teachers.model))
        models += [
            (f"teachers.overrides.{i}.model", override.model)
            for i, override in enumerate(config.teachers.overrides)
            if override.model is not None
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


def _streams(config: Config, info: dict[str, Any]) -> bool:
    """Whether transfer set and soft targets are larger than may be held in memory."""
    layout = soft_targets_stage.layout_of(config, info, num_teachers(config)).logits_alone
    return bytes_in_memory(info, layout) > config.compute.memory_budget * 1e9


def _size_problems(config: Config, info: dict[str, Any]) -> list[str]:
    problems = []
    counts = info["counts"]
    if config.teachers.source == "train":
        rows = round(counts["labelled"] * config.teachers.fraction)
        size = config.teachers.training.batch_size
        if rows < size:
            problems.append(f"teachers.training.batch_size: {size}, but a member sees {rows} rows; lower it")
    size, rows = config.student.training.batch_size, round(counts["transfer"] * config.student.fraction)
    if rows < size:
        problems.append(f"student.training.batch_size: {size}, but a student sees {rows} rows; lower it")
    problems += phase_size_problems(config, rows)
    if unknown := [c for c in config.student.without_classes if c >= info["num_classes"]]:
        problems.append(
            f"student.without_classes: {unknown}, but the classes are 0 to {info['num_classes'] - 1}"
        )
    problems += class_problems(config, info["num_classes"])
    problems += student_stage.bias_problems(config, info)
    problems += student_stage.quantization_problems(config, info)
    top_k = config.soft_targets.top_k
    if top_k is not None and top_k >= info["num_classes"]:
        problems.append(
            f"soft_targets.top_k: {top_k} of {info['num_classes']} classes saves nothing; "
            "lower it, or set it to null"
        )
    return problems


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan that `check` prints."""

    name: str
    state: str
    """`done`, `to do: why`, or `unknown until ... is done`."""
    size: int
    """Bytes on disk now."""
    expected: int | None = None
    """Bytes it will take, where that can be told."""


def check(config: Config, folder: Path) -> list[PlannedStage]:
    """Validate everything that can be, and say what a run would do. Starts no Ray and writes nothing.

    Raises ConfigError or InputError with all problems.
    """
    check_early(config)
    check_objective(config)
    config = with_models(config, None)
    if problems := inspect_source(config):
        raise InputError(problems)
    found: list[PlannedStage] = []
    if config.data.text_augment is not None:
        plan = augment_stage.plan(config, folder)
        manifest = plan.done()
        found.append(_line("augment", plan, manifest))
        if manifest is None:
            return found + [PlannedStage(name, "to do: follows augment", 0) for name in config.stages[1:]]
        config = augment_stage.with_texts(config, plan)
    plan = data_stage.plan(config, folder)
    manifest = plan.done()
    found.append(_line("data", plan, manifest))
    if manifest is None:
        later = [PlannedStage(name, "to do: follows data", 0) for name in config.stages[1:]]
        return found + later
    info = manifest.summary["info"]
    check_sizes(config, info, plan.folder)
    data = plan.fingerprint
    plan = teachers_stage.plan(config, folder, data)
    teachers_plan, teachers = plan, plan.done()
    if teachers is None:
        check_custom(config, info)
    found.append(_line("teachers", plan, teachers, extra=size_on_disk(plan.folder.parent / "members")))
    count = num_teachers(config)
    if teachers is not None:
        members = {entry["name"]: entry["fingerprint"] for entry in teachers.summary["members"]}
    elif config.teachers.source in ("train", "pretrained"):
        wanted = teachers_stage.tasks(config, data, info["counts"]["labelled"])
        members = {task.name: task.fingerprint for task in wanted}
    else:
        members = {f"teacher-{i:03d}": "to be read" for i in range(count)}
    plan = store_plan = soft_targets_stage.plan(config, folder, data, members)
    layout = soft_targets_stage.layout_of(config, info, len(members))
    expected = layout.bytes_per_row * info["counts"]["transfer"]
    found.append(_line("soft-targets", plan, plan.done(), expected=expected))
    combined = None
    if config.specialists is not None:
        plan = clusters_stage.plan(config, folder, data, store_plan.fingerprint)
        found.append(_line("clusters", plan, plan.done()))
        if teachers is None:  # which of them get specialists is not known yet
            found += [PlannedStage(name, "to do: follows teachers", 0) for name in config.stages[4:6]]
            combined = "to be made"
        else:
            plan = specialists_stage.plan(
                config, folder, data, plan.fingerprint, store_plan.fingerprint, teachers.summary["members"]
            )
            specialists = plan.done()
            size = size_on_disk(plan.folder.parent / "members")
            found.append(_line("specialists", plan, specialists, extra=size))
            combined = "to be made"
            if specialists is None:
                found.append(PlannedStage("combined-targets", "to do: follows specialists", 0))
            else:
                plan = combined_stage.plan(config, folder, data, store_plan.fingerprint, specialists)
                found.append(_line("combined-targets", plan, plan.done(), expected=expected))
                combined = plan.fingerprint
    sweep = None
    if config.sweep is not None:
        plan = sweep_stage.plan(config, folder, data, store_plan.fingerprint, combined)
        manifest = plan.done()
        if manifest is not None and not sweep_stage.enough(config.sweep, manifest):
            manifest = None
        found.append(_line("sweep", plan, manifest, extra=size_on_disk(plan.folder.parent / "members")))
        if manifest is None:
            rest = config.stages[config.stages.index("student") :]
            return found + [PlannedStage(name, "to do: follows sweep", 0) for name in rest]
        config, sweep = sweep_stage.with_winner(config, manifest), sweep_stage.result_of(manifest)
    plan = student_stage.plan(config, folder, data, store_plan.fingerprint, combined)
    student = plan.done()
    layouts = [layout, *([] if config.specialists is None else [layout.logits_alone])]
    if not states_fit(info, config.compute.memory_budget, *layouts):
        layouts = [each.logits_alone for each in layouts]
    held = bytes_in_memory(info, *layouts)
    line = _line("student", plan, student, extra=size_on_disk(plan.folder.parent / "members"))
    how = "held in memory" if held <= config.compute.memory_budget * 1e9 else "streamed"
    state = line.state if student else f"{line.state}; transfer set of {held / 1e6:.1f} MB {how}"
    found.append(PlannedStage(line.name, state, line.size))
    forms, student_fingerprint = None, plan.fingerprint
    if config.export is not None:
        plan = export_stage.plan(config, folder, data, teachers_plan.fingerprint, student_fingerprint)
        forms = plan.fingerprint
        found.append(_line("export", plan, plan.done()))
    plan = report_stage.plan(config, folder, teachers_plan.fingerprint, student_fingerprint, sweep, forms)
    found.append(_line("report", plan, plan.done()))
    return found


def _line(
    name: str, plan: StagePlan, manifest: Manifest | None, extra: int = 0, expected: int | None = None
) -> PlannedStage:
    state = f"done [{plan.fingerprint}]" if manifest else f"to do: {plan.why()}"
    return PlannedStage(name, state, size_on_disk(plan.folder) + extra, None if manifest else expected)
