"""What is wrong with the settings of the students and of their losses, by themselves and on the data."""

from __future__ import annotations

from typing import Any

from ensemble_kd.config import Config, student_blocks
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.quantise import NO_LAYERS, layers
from ensemble_kd.objectives.base import build_objective, value_problems
from ensemble_kd.objectives.mixture import build_terms
from ensemble_kd.objectives.schedules import Schedule, parse_weight
from ensemble_kd.objectives.whole_batches import relation_problems
from ensemble_kd.stages.base import DataFound
from ensemble_kd.stages.chain import link_problems
from ensemble_kd.stages.fit import number_of, phase_size_problems, student_problems
from ensemble_kd.stages.pretrained_files import source_problems
from ensemble_kd.train.branches import gate_term
from ensemble_kd.train.peers import mutual_term

STORED = frozenset({"logits"})
"""What the store can give to an objective."""


def objective_problems(config: Config) -> list[str]:
    """What is wrong with `student.objective`, `student.terms` and those of the phases, before anything
    runs."""
    problems = source_problems(config)
    for path, block in student_blocks(config):
        fields = block.objective_fields
        if fields is None:
            if path == "student" and block.numbers.alpha > 0 and not block.terms:
                problems.append(
                    "student.objective: null, and there are no terms; name one, or set student.alpha=0"
                )
        else:
            problems += _soft_problems(config, path, block, fields)
        try:
            terms = build_terms(block.terms, number_of(block), f"{path}.terms")
            problems += relation_problems(path, block.training, terms, block.terms)
            if _of_values(config, block):
                for k, term in enumerate(terms):
                    problems += value_problems(term.objective, block.terms[k]["name"], term.path)
        except ConfigError as error:
            problems += error.problems
    return problems + _together_problems(config) + _schedule_problems(config)


def _schedule_problems(config: Config) -> list[str]:
    student = config.student
    problems, schedules = [], {}
    for name, given in (("alpha", student.alpha_schedule), ("temperature", student.temperature_schedule)):
        if given is not None:
            try:
                schedules[name] = parse_weight(given, f"student.{name}")
            except ConfigError as error:
                problems += error.problems
    if "alpha" in schedules:
        problems += [
            f"student.alpha.{name}: a share of the whole loss, 0 to 1, got {value:g}; lower it"
            for name, value in _ends(schedules["alpha"])
            if value > 1
        ]
    if "temperature" in schedules:
        problems += [
            f"student.temperature.{name}: a temperature is above 0 and at most 1000, got {value:g}; "
            "1 to 10 is usual"
            for name, value in _ends(schedules["temperature"])
            if not 0 < value <= 1000
        ]
    return problems + (_unscheduled(config) if student.temperature_schedule is not None else [])


def _ends(schedule: Schedule) -> tuple[tuple[str, float], ...]:
    return ("start", schedule.start), ("end", schedule.end)


def _unscheduled(config: Config) -> list[str]:
    """What a scheduled temperature does not go with; each would learn from targets at one T."""
    student = config.student
    beside: dict[str, Any] = {
        "online.logits": student.online.logits,
        "peers": student.peers,
        "branches": student.branches,
        "learner": student.learner,
        "assistants": student.assistants,
    }
    beside["generations"] = student.generations > 1
    problems = [
        f"student.temperature: a schedule does not go together with student.{name}, got both; give a number, "
        f"or leave {name} out"
        for name, given in beside.items()
        if given
    ]
    if not config.data.predicts.classified:
        problems.append(
            f"student.temperature: a schedule is for classes, and data.target is {config.data.target!r}; "
            "leave it out"
        )
    return problems


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
    if not config.data.predicts.classified:
        return value_problems(term.objective, peers.objective_fields["name"], "student.peers.objective")
    return []


def _soft_problems(config: Config, path: str, block: Any, fields: dict[str, Any]) -> list[str]:
    try:
        objective = build_objective(fields, number_of(block), f"{path}.objective")
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
    return not config.data.predicts.classified and getattr(block, "task", "classify") == "classify"


def label_problems(config: Config, counts: dict[str, int]) -> list[str]:
    """Settings that cannot work without labels, where no row of train has one; one line for each.

    Without labels the student learns from the given teachers alone.
    """
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
