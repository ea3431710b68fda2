"""The tasks of the students: per seed the distilled one and its baselines."""

from __future__ import annotations

from typing import Any

from ensemble_kd.config import Config
from ensemble_kd.stages.calibrated import of_targets
from ensemble_kd.stages.chain import DIRECT, chain
from ensemble_kd.stages.members import STREAM_OF_STUDENTS
from ensemble_kd.stages.phases import phase_tasks, start_of
from ensemble_kd.stages.start import Sources
from ensemble_kd.stages.teachers_beside import online_of
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.branches import branched
from ensemble_kd.train.task import MemberTask


def tasks(config: Config, sources: Sources) -> list[MemberTask]:
    """Per seed the distilled student and its baselines, all with the same budget, order and initialisation;
    phases that are not shared come on top of the distilled one's, and so do the other links of its chain.

    `hard` sees the labels of the same augmented views. `plain`, where there are such views, sees the rows as
    they are: the baseline of arXiv 1503.02531. `pseudo`, where rows lack labels, sees the ensemble's."""
    wanted: list[MemberTask] = []
    for seed in range(config.student.seeds):
        for role in roles(config, sources.counts, bool(sources.combined)):
            found = task(config, role, seed, sources)
            wanted += chain(config, found, sources.basis, seed) if role == "distilled" else [found]
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
    return found + (["pseudo"] if unlabelled and config.data.predicts.classified else [])


def task(config: Config, role: str, seed: int, sources: Sources) -> MemberTask:
    """The student of one role and seed, counted from 0; the rest as in `tasks`."""
    counts, basis, weights = sources.counts, sources.basis, sources.weights
    student, numbers = config.student, config.student.numbers
    learned = "ensemble"
    if sources.combined:
        learned = role.removeprefix("from_") if role.startswith("from_") else learned
        learned = config.targets if role in ("distilled", DIRECT) else learned
    soft = role in ("distilled", DIRECT) or role.startswith("from_")
    reads = soft or role == "pseudo"
    online = None
    if soft and (student.terms or student.online.logits):
        online = online_of(student.online, basis, weights, "student", student.terms)
    phases = phase_tasks(config, sources, seed)
    # Where every row has a label, there is nothing to guess.
    pseudo = numbers.pseudo if soft and counts["transfer"] > counts["labelled"] else 0.0
    labels_alone = role == "hard" or (soft and not numbers.alpha and not pseudo and online is None)
    bare = role == "plain" or (labels_alone and config.data.augment.munge > 0)
    views = 1 if bare else config.soft_targets.views
    inputs = {"data": sources.data}
    if (reads and learned != "specialists") or (online is not None and online.get("stored")):
        inputs["soft_targets"] = sources.store
    if learned != "ensemble":
        assert sources.combined is not None
        inputs["combined_targets"] = sources.combined
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
        temperature=numbers.temperature if soft and not alone and config.data.predicts.classified else 1.0,
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
        alpha_schedule=student.alpha_schedule if soft else None,
        temperature_schedule=student.temperature_schedule if soft and not alone else None,
        learner=student.learner.model_dump(mode="json") if soft and student.learner is not None else None,
        compress=[each.model_dump(mode="json") for each in student.compress],  # baselines too, as above
    )


def reads_states(task: MemberTask) -> bool:
    """Whether what the store keeps beside logits takes the place of a teacher beside the student."""
    return task.online is not None and bool(task.online.get("stored"))


def _weights(targets: str, weights: list[float] | None) -> list[float] | None:
    """Of the members that a student with these targets sees: `both` has each teacher twice."""
    return weights * 2 if weights is not None and targets == "both" else weights
