"""Stage 4: the students. Distilled ones and their baselines are members of one worker group."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_kd.artifacts import Manifest, finish
from ensemble_kd.config import Config, num_teachers, settled, student_blocks
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ArtifactError, ConfigError, TrainingError
from ensemble_kd.models.build import build
from ensemble_kd.models.quantise import NO_LAYERS, layers
from ensemble_kd.objectives.base import build_objective, value_problems
from ensemble_kd.objectives.mixture import build_terms
from ensemble_kd.objectives.whole_batches import relation_problems
from ensemble_kd.stages.base import DataFound, Done, Stage, Work
from ensemble_kd.stages.calibrated import calibrates, of_targets
from ensemble_kd.stages.chain import DIRECT, chain, link_problems
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.layout import layout_of
from ensemble_kd.stages.members import (
    STREAM_OF_STUDENTS,
    adopt,
    kept_weights,
    member_summary,
    members_folder,
    members_intact,
    train_and_follow,
)
from ensemble_kd.stages.shards import encode
from ensemble_kd.stages.stacking import stacks_of
from ensemble_kd.stages.start import (
    Basis,
    basis_of,
    corpora,
    corpus_size_problems,
    online_of,
    phase_size_problems,
    phase_tasks,
    source_digests,
    source_problems,
    start_of,
    student_problems,
)
from ensemble_kd.stages.training_data import (
    Store,
    arrays_and_loader,
    bytes_in_memory,
    states_fit,
    states_layout,
)
from ensemble_kd.stages.vectors import make_vectors
from ensemble_kd.train.batches import mix
from ensemble_kd.train.branches import branched, gate_term
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.peers import mutual_term
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.validation import preference

STORED = frozenset({"logits"})
"""What the store can give to an objective."""


def objective_problems(config: Config) -> list[str]:
    """What is wrong with `student.objective`, `student.terms` and those of the phases, before anything
    runs."""
    problems = source_problems(config)
    for path, block in student_blocks(config):
        fields = block.objective_fields
        if fields is None:
            if path == "student" and block.alpha > 0 and not block.terms:
                problems.append(
                    "student.objective: null, and there are no terms; name one, or set student.alpha=0"
                )
        else:
            problems += _soft_problems(config, path, block, fields)
        try:
            terms = build_terms(block.terms, block.temperature, f"{path}.terms")
            problems += relation_problems(path, block.training, terms, block.terms)
            if _of_values(config, block):
                for k, term in enumerate(terms):
                    problems += value_problems(term.objective, block.terms[k]["name"], term.path)
        except ConfigError as error:
            problems += error.problems
    return problems + _together_problems(config)


def _together_problems(config: Config) -> list[str]:
    peers, branches = config.student.peers, config.student.branches
    try:
        if branches is not None:
            gate_term(branches.model_dump(mode="json"))
        if peers is None:
            return []
        term = mutual_term(peers.model_dump(mode="json"))
    except ConfigError as error:
        return error.problems
    if config.data.target == "value":
        return value_problems(term.objective, peers.objective_fields["name"], "student.peers.objective")
    return []


def _soft_problems(config: Config, path: str, block: Any, fields: dict[str, Any]) -> list[str]:
    try:
        objective = build_objective(fields, block.temperature, f"{path}.objective")
    except ConfigError as error:
        return error.problems
    name, wanted = fields["name"], objective.needs
    if _of_values(config, block) and (problems := value_problems(objective, name, f"{path}.objective")):
        return problems
    if missing := sorted(wanted - STORED):
        return [
            f"{path}.objective: {name!r} needs the teacher's {', '.join(missing)}; the soft targets hold "
            f"logits only; move it to {path}.terms, for which a teacher runs beside the student"
        ]
    if config.soft_targets.top_k is not None and name == "mse" and not block.online.logits:
        return [f"{path}.objective: 'mse' needs every logit; set soft_targets.top_k=null or use 'kl'"]
    return []


def _of_values(config: Config, block: Any) -> bool:
    """Whether a block's losses read values: not where words are guessed."""
    return config.data.target == "value" and getattr(block, "task", "classify") == "classify"


def label_problems(config: Config, counts: dict[str, int]) -> list[str]:
    """What wants labels of train rows where there are none: given teachers alone say what these are."""
    if counts.get("labelled", 1):
        return []
    student = config.student
    wrong: list[tuple[str, bool, str]] = [
        (
            "sweep",
            config.sweep is not None,
            "its trials are held against students on hard labels; leave it out",
        ),
        ("specialists", config.specialists is not None, "they learn from labels; leave them out"),
        (
            "student.alpha",
            student.numbers.alpha == 0 == student.numbers.pseudo and not student.terms,
            "0 learns from labels alone; raise it",
        ),
    ]
    phases = [
        (f"student.phases.{i}.alpha", phase.corpus is None and not phase.alpha and not phase.terms)
        for i, phase in enumerate(student.phases)
    ]
    wrong += [(path, bad, "0 learns from labels alone; raise it") for path, bad in phases]
    return [f"{path}: no train row has a label, and {why}" for path, bad, why in wrong if bad]


def bias_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether `student.class_bias` has a bias to add to; a custom model is built to see."""
    model = config.student.model
    if config.student.class_bias == "none" or model.name != "custom":
        return []
    head = build(model, info).head
    if head is not None and head.bias is not None:
        return []
    return [
        f"student.class_bias: 'fitted', but model {model.callable!r} has no torch.nn.Linear with a bias and "
        "one output for each class; give it one, or set it to none"
    ]


def quantization_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether `student.quantization` has layers to quantise; a custom model is built to see."""
    if config.student.quantization is None or config.student.model.name != "custom":
        return []
    return [] if any(layers(build(config.student.model, info))) else [NO_LAYERS]


def peer_model_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether the user's own models among the peers can be built; they are tried on two rows."""
    problems = []
    for i, model in enumerate(config.student.peers.models if config.student.peers is not None else []):
        if model.name != "custom":
            continue
        try:
            build(model, info)
        except ConfigError as error:
            problems += [f"student.peers.models.{i}: {line}" for line in error.problems]
    return problems


def tasks(
    config: Config,
    data: str,
    store: str,
    counts: dict[str, int],
    basis: Basis,
    weights: list[float] | None = None,
    combined: str | None = None,
) -> list[MemberTask]:
    """Per seed the distilled student and its baselines, all with the same budget, order and initialisation;
    phases that are not shared come on top of the distilled one's, and so do the other links of its chain.

    `hard` sees the labels of the same augmented views. `plain`, where there are such views, sees the rows as
    they are: the baseline of arXiv 1503.02531. `pseudo`, where rows lack labels, sees the ensemble's.
    `weights` are those of the teachers in the store. `combined` is the fingerprint of the combination with
    specialists; then students of both kinds of targets are trained.
    """
    wanted: list[MemberTask] = []
    for seed in range(config.student.seeds):
        for role in roles(config, counts, bool(combined)):
            found = task(config, role, seed, data, store, counts, basis, weights, combined)
            wanted += chain(config, found, basis, seed) if role == "distilled" else [found]
    return wanted


def roles(config: Config, counts: dict[str, int], combined: bool) -> list[str]:
    """The students of each seed: the distilled one and its baselines; none on hard labels without a label."""
    found = ["distilled", *([DIRECT] if config.student.assistants else [])]
    if combined:
        found.append("from_ensemble" if config.targets != "ensemble" else "from_specialists")
    if counts["labelled"]:
        found.append("hard")
        # Made-up rows have no label, so that `hard` sees the rows as they are already.
        found += ["plain"] if config.soft_targets.views > 1 and not config.data.augment.munge else []
    # Of values the ensemble's answer is the soft target itself: there are no harder ones.
    unlabelled = counts["transfer"] > counts["labelled"]
    return found + (["pseudo"] if unlabelled and config.data.target == "class" else [])


def task(
    config: Config,
    role: str,
    seed: int,
    data: str,
    store: str,
    counts: dict[str, int],
    basis: Basis,
    weights: list[float] | None = None,
    combined: str | None = None,
) -> MemberTask:
    """The student of one role and seed, counted from 0; the rest as in `tasks`."""
    student, numbers = config.student, config.student.numbers
    learned = "ensemble"
    if combined:
        learned = role.removeprefix("from_") if role.startswith("from_") else learned
        learned = config.targets if role in ("distilled", DIRECT) else learned
    soft = role in ("distilled", DIRECT) or role.startswith("from_")
    reads = soft or role == "pseudo"
    online = None
    if soft and (student.terms or student.online.logits):
        online = online_of(student.online, basis, weights, "student", student.terms)
    phases = phase_tasks(config, basis, data, store, counts, weights, seed)
    # Where every row has a label, there is nothing to guess.
    pseudo = numbers.pseudo if soft and counts["transfer"] > counts["labelled"] else 0.0
    labels_alone = role == "hard" or (soft and not numbers.alpha and not pseudo and online is None)
    bare = role == "plain" or (labels_alone and config.data.augment.munge > 0)
    views = 1 if bare else config.soft_targets.views
    inputs = {"data": data}
    if (reads and learned != "specialists") or (online is not None and online.get("stored")):
        inputs["soft_targets"] = store
    if learned != "ensemble":
        assert combined is not None
        inputs["combined_targets"] = combined
    alone = pseudo == 1 and numbers.alpha == 0 and not online  # the baseline itself: trained once
    rows: dict[str, Any] = {"labelled": not reads, "bootstrap": False, "fraction": student.fraction}
    branches = student.branches
    together = branches.model_dump(mode="json") if soft and branches is not None else None
    if student.without_classes:
        rows["without"] = student.without_classes
    return MemberTask(
        name=f"{role}-seed-{seed}",
        role=role,
        seed=mix(config.seed, STREAM_OF_STUDENTS, seed),
        model=basis.model | (branched(together) if together and together["ship"] == "ensemble" else {}),
        training=student.training.model_dump(mode="json"),
        inputs=inputs,
        rows=rows,
        examples_per_epoch=counts["transfer"],
        augment=config.data.augment.model_dump(mode="json") if views > 1 else {},
        views=views,
        alpha=numbers.alpha if soft else 0.0,
        objective=student.objective_fields if soft and not alone else None,
        temperature=numbers.temperature if soft and not alone and config.data.target == "class" else 1.0,
        mean=config.mean,
        weights=None if online and online["logits"] else _weights(learned, weights),
        calibration=None if online and online["logits"] else of_targets(basis.calibration, learned),
        pseudo_labels=role == "pseudo" or alone,
        pseudo=0.0 if alone else pseudo,
        targets=learned,
        class_bias=student.class_bias == "fitted",
        # Baselines too: they share everything but the soft targets, so that distillation gets no credit
        # for bits that only the others lost.
        quantization=student.quantization.model_dump(mode="json") if student.quantization else None,
        initial=start_of(config, basis, phases, baseline=not soft),
        terms=student.terms if soft else [],
        online=online,
        peers=student.peers.model_dump(mode="json") if soft and student.peers is not None else None,
        branches=together,
    )


def train_phases(
    context: Context,
    data: Path,
    info: dict[str, Any],
    ensemble: Store,
    fingerprints: tuple[str, str],
    basis: Basis,
    weights: list[float] | None,
    seeds: int,
) -> None:
    """What students learn before their last phase, in one worker group; nothing where there are no phases.

    Raises TrainingError where a loss was not finite.
    """
    config = context.config
    if not config.student.phases:
        return
    wanted = [
        task
        for seed in range(seeds)
        for task in phase_tasks(config, basis, *fingerprints, info["counts"], weights, seed)
    ]
    arrays, load, _ = arrays_and_loader(
        data,
        info,
        config.compute.memory_budget,
        ensemble,
        run=context.folder,
        corpora=lambda: corpora(config, context.folder, data),
        states=any(map(reads_states, wanted)),
    )
    good = train_and_follow(context, "student", wanted, load, arrays, config.student.replicas_per_member)
    if lost := [task.name for task in wanted if task not in good]:
        raise TrainingError(
            f"student.phases: {', '.join(lost)}: the loss became NaN or infinite; lower the phase's "
            "training.learning_rate or set its training.gradient_clip"
        )


def reads_states(task: MemberTask) -> bool:
    """Whether what the store keeps beside logits takes the place of a teacher beside the student."""
    return task.online is not None and bool(task.online.get("stored"))


def _weights(targets: str, weights: list[float] | None) -> list[float] | None:
    """Of the members that a student with these targets sees: `both` has each teacher twice."""
    return weights * 2 if weights is not None and targets == "both" else weights


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


def usable(
    context: Context, receipt: Manifest, combination: Store | None, info: dict[str, Any]
) -> tuple[list[float] | None, Store | None]:
    """Weights of the teachers in the store, and the combination if there is anything to read in it.

    A `combination` in which every specialist is off is the ensemble, and nothing is read of it.
    """
    weights = kept_weights(context.config.student.weights, receipt.inputs.keys() - {"data"})
    if combination is not None and not combination[1].summary["on"]:
        asked = context.config.student.targets
        if asked in ("specialists", "both"):
            context.console.warning(
                f"student.targets: {asked!r}, but no specialist helped on the validation rows; students "
                "learn from the ensemble (specialists.weight=1 uses them all the same)"
            )
        combination = None
    if combination is not None and combination[1].summary["class_names"] != info["class_names"]:
        raise ArtifactError(
            f"{combination[0]}: the combined targets are of the classes "
            f"{combination[1].summary['class_names']}, the data has {info['class_names']}; run "
            "combined-targets again"
        )
    return weights, combination


def run(
    context: Context,
    plan: StagePlan,
    data: Path,
    info: dict[str, Any],
    store: Path,
    receipt: Manifest,
    teachers: Manifest,
    combination: Store | None = None,
    ready: Sequence[Path] = (),
) -> Manifest:
    """Train what is missing and choose the student to ship, on validation rows.

    `ready` hold members that other stages trained already: a sweep's, those that `auto` was chosen by.
    Raises TrainingError where a student's loss was not finite.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    members = members_folder(context.folder, "student")
    weights, combination = usable(context, receipt, combination, info)
    budget = context.config.compute.memory_budget
    layout = states_layout(info, budget, receipt, combination)
    basis = basis_of(context.config, context.folder, data, teachers, layout)
    make_vectors(basis.vectors, context.folder, data, context.console)
    sources = (plan.inputs["data"], plan.inputs["soft_targets"])
    wanted = tasks(
        context.config,
        *sources,
        info["counts"],
        basis,
        weights,
        plan.inputs["combined_targets"] if combination else None,
    )
    seeds = context.config.student.seeds
    train_phases(context, data, info, (store, receipt), sources, basis, weights, seeds)
    states = any(map(reads_states, wanted))
    arrays, load, streams = arrays_and_loader(
        data, info, budget, (store, receipt), combination, run=context.folder, states=states
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
        entries.append(_refit(context, wanted, seed, shipped["best_epoch"], data, info, (store, receipt)))
        shipped = entries[-1]
    summary = {"members": entries, "shipped": shipped["name"], "seconds": time.perf_counter() - began}
    return finish(plan.folder, "student", plan.fingerprint, plan.config, plan.inputs, [], summary)


def _running(online: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same teachers at work: of validation rows the store keeps nothing."""
    return None if online is None else {k: v for k, v in online.items() if k != "stored"}


def _refit(
    context: Context,
    wanted: list[MemberTask],
    seed: int,
    best_epoch: int,
    data: Path,
    info: dict[str, Any],
    ensemble: Store,
) -> dict[str, Any]:
    """The shipped student anew, with the validation rows among its own; returns its entry.

    Nothing is left to judge it by: early stopping becomes the number of epochs that was best before. The
    teachers' logits on validation rows are those that their training ended with.
    """
    chosen = [task for task in wanted if task.role == "distilled"][seed]
    counts = info["counts"]
    training = {**chosen.training}
    if training["early_stopping"] is not None:
        training |= {"early_stopping": None, "epochs": best_epoch}
    task = replace(
        chosen,
        name=f"refit-seed-{seed}",
        role="refit",
        training=training,
        rows={**chosen.rows, "validation": True},
        online=_running(chosen.online),
        examples_per_epoch=counts["transfer"] + counts["validation"],
    )
    teachers = members_folder(context.folder, "teachers")
    names = sorted(name for name in ensemble[1].inputs if name.startswith("teacher-"))
    layout = StoreLayout(**ensemble[1].summary["layout"])
    plain, load, streams = arrays_and_loader(
        data, info, context.config.compute.memory_budget, ensemble, run=context.folder
    )
    assert not streams, "checked before anything is trained"

    def arrays() -> dict[str, Any]:
        shared = plain()
        folders = [teachers / ensemble[1].inputs[name] for name in names]
        logits = torch.stack([load_logits(folder, "validation") for folder in folders], 1)  # (N, M, C)
        more = {f"ensemble/{name}": column for name, column in encode(logits[:, None], layout)[0].items()}
        more |= {f"transfer/{name}": shared[f"validation/{name}"] for name in ("inputs", "labels")}
        return {k: np.concatenate([v, more[k]]) if k in more else v for k, v in shared.items()}

    replicas = context.config.student.replicas_per_member
    if not train_and_follow(context, "student", [task], load, arrays, replicas):
        raise TrainingError(f"student: {task.name}: the loss became NaN or infinite; set sweep.refit=none")
    return member_summary(task, members_folder(context.folder, "student"))


def inputs_of(config: Config, done: Done) -> tuple[str, str, str | None]:
    """Fingerprints of the data, the soft targets, and with specialists the combined targets."""
    combined = done["combined-targets"].fingerprint if config.specialists is not None else None
    return done["data"].fingerprint, done["soft-targets"].fingerprint, combined


def combination_of(done: Done) -> Store | None:
    if "combined-targets" not in done:
        return None
    combined = done["combined-targets"]
    return combined.folder, combined.manifest


def data_problems(config: Config, found: DataFound) -> list[str]:
    """What is wrong with the student's settings on this data; whether it fits its teachers is left out where
    these do not fit the data."""
    problems, info = [], found.info
    size, rows = (
        config.student.training.batch_size,
        round(found.counts["transfer"] * config.student.fraction),
    )
    if rows < size:
        problems.append(f"student.training.batch_size: {size}, but a student sees {rows} rows; lower it")
    problems += phase_size_problems(config, rows)
    if unknown := [c for c in config.student.without_classes if c >= info["num_classes"]]:
        problems.append(
            f"student.without_classes: {unknown}, but the classes are 0 to {info['num_classes'] - 1}"
        )
    problems += bias_problems(config, info)
    problems += quantization_problems(config, info) + peer_model_problems(config, info)
    problems += link_problems(config, info)
    return problems if "teachers" in found.misfits else problems + student_problems(config, info)


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
        store = done["soft-targets"]
        ready = [members_folder(context.folder, name) for name in ("sweep", "choose") if name in done]
        above = (store.folder, store.manifest, done["teachers"].manifest, combination_of(done), ready)
        return run(context, plan, done["data"].folder, done.info, *above)

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
