"""Whether data, teachers, student and losses fit each other: all are built without memory for weights."""

from __future__ import annotations

from typing import Any

from ensemble_kd.config import (
    Config,
    TransformerConfig,
    member_settings,
    num_teachers,
    student_blocks,
    variant_of,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.models.foreign import classifier_problems
from ensemble_kd.models.transformer import Transformer
from ensemble_kd.models.transplant import resolve
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.stages.class_order import order_problems, orders_of
from ensemble_kd.stages.skeletons import sample_outputs, skeleton
from ensemble_kd.stages.vectors import table_problems


def fit_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether data, teachers, student and losses fit each other: all are built without memory for weights."""
    return teacher_problems(config, info) or student_problems(config, info)


def teacher_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether the teachers fit the data: one line each, starting with a field.

    Pretrained ones must be classifiers for its classes. Those that are asked about raw inputs, or whose
    predictions exist, are left out.
    """
    problems: list[str] = order_problems(config, info)
    orders = [None] * num_teachers(config) if problems else orders_of(config, info)
    for model, path in _teacher_models(config):
        try:
            settings, _ = resolve(model, path=path)
            if isinstance(model, TransformerConfig):  # a user's own is not run more often than it must be
                skeleton(settings, info, path)
            if config.teachers.source == "pretrained":
                said = orders[int(path.rsplit(".", 1)[1])]
                problems += classifier_problems(
                    model.source, info, path, model.trust_remote_code, named=said is None
                )
        except ConfigError as error:
            problems += [line for line in error.problems if line not in problems]
    return problems


def student_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """Whether the student and its losses fit data and teachers, as `teacher_problems`, which come first."""
    if not _is_new(config):
        return []
    problems: list[str] = []
    teachers = resolved_teachers(config)
    try:
        problems += table_problems(config, teachers)
    except ConfigError as error:
        problems += error.problems
    any_of: list[dict[str, Any] | None] = [*teachers] or [None]
    starts = getattr(config.student.model, "weights", None) == "teacher"
    if starts and not (config.student.terms or config.student.phases or config.student.online.logits):
        any_of = [each for each in teachers if each["name"] == "transformer"] or any_of
    for teacher in any_of:  # each may turn out to be the best
        given = None if teacher is None else {"model": teacher, "initial": {}}
        try:
            settings, _ = resolve(config.student.model, given, path="student.model")
            for path, block in student_blocks(config):
                own = settings
                if path != "student" and block.model is not None:
                    own, _ = resolve(block.model, path=f"{path}.model")
                problems += block_problems(config, path, block, own, teacher, info)
        except ConfigError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def phase_size_problems(config: Config, rows: int) -> list[str]:
    """Phases on the transfer set, of which a student sees `rows`, whose batches are larger."""
    return [
        f"{path}.training.batch_size: {phase.training.batch_size}, but a student sees {rows} rows; lower it"
        for path, phase in student_blocks(config)[1:]
        if phase.corpus is None and rows < phase.training.batch_size
    ]


def _teacher_models(config: Config) -> list[tuple[Any, str]]:
    """Each different model of teachers that are networks of ours, with its field; as a rule, one."""
    if config.teachers.source not in ("train", "pretrained"):
        return []
    models = [teacher_model(config, i) for i in range(num_teachers(config))]
    return list({f"{path} {model!r}": (model, path) for model, path in models}.values())


def resolved_teachers(config: Config) -> list[dict[str, Any]]:
    """The architecture of each different teacher that is a network of ours."""
    return [resolve(model, path=path)[0] for model, path in _teacher_models(config)]


def teacher_model(config: Config, index: int) -> tuple[Any, str]:
    """The model of a teacher, and the field that says so."""
    teachers = config.teachers
    if teachers.source == "pretrained":  # taken as it is
        trusted = bool(getattr(teachers.model, "trust_remote_code", False))
        source = teachers.given[index]
        given = TransformerConfig(source=source, trust_remote_code=trusted, pooling="cls")
        return given, f"teachers.given.{index}"
    own = variant_of(teachers, index)
    path = own[0] if own is not None and own[0].startswith("teachers.kinds") and own[1].model else "teachers"
    return member_settings(teachers, index)[0], f"{path}.model"


def _is_new(config: Config) -> bool:
    """Whether the student is a transformer, starts from one, or learns from more than stored logits."""
    student = config.student
    more = student.terms or student.phases or student.online.logits
    started = getattr(student.model, "start", None) is not None
    return isinstance(student.model, TransformerConfig) or started or bool(more)


def block_problems(
    config: Config,
    path: str,
    block: Any,
    student: dict[str, Any],
    teacher: dict[str, Any] | None,
    info: dict[str, Any],
) -> list[str]:
    """One phase, or the last one: its texts against both networks, its losses against what they return."""
    masked_lm = getattr(block, "task", "classify") == "mlm"
    corpus = getattr(block, "corpus", None)
    if corpus is not None:
        info = {**info, "input_shape": [corpus.max_length]}
    if block.online.source is not None:
        model: Any = TransformerConfig(source=block.online.source, pooling="cls")
        teacher, _ = resolve(model, path=f"{path}.online")
    try:
        own = skeleton(student, info, "student.model", masked_lm)
        words = corpus is not None and block.objective is not None and block.alpha > 0
        if block.online.source is not None and not masked_lm and (block.online.logits or words):
            if problems := classifier_problems(block.online.source, info, f"{path}.online.source"):
                return problems
        if not (block.terms or block.online.logits or words):
            return []
        if teacher is None:
            return [
                f"{path}.terms: a loss reads a teacher beside the student, and teachers.source="
                f"{config.teachers.source} has only numbers; use losses on logits, train the teachers, or "
                f"set {path}.online.source"
            ]
        beside = skeleton(teacher, info, f"{path}.online", masked_lm)
        if masked_lm and words and (problem := _other_words(own, beside, path)):
            return [problem]
        loss = DistillationLoss(terms=build_terms(block.terms, number_of(block), f"{path}.terms"))
        loss.prepare(sample_outputs(own, info, loss.wants), [sample_outputs(beside, info, loss.wants)])
    except ConfigError as error:
        return error.problems
    return []


def number_of(block: Any) -> Any:
    """The temperature of a block of the student's, to build losses with: of a schedule its start."""
    return block.numbers.temperature if isinstance(block.temperature, dict) else block.temperature


def _other_words(student: Network, teacher: Network, path: str) -> str | None:
    """Whether the two guess among different words: a student's own pieces are picked from the teacher's."""
    bodies = [network.body for network in (student, teacher)]
    assert all(isinstance(body, Transformer) for body in bodies)
    if bodies[0].pieces is not None:
        return None
    sizes = [body.model.config.vocab_size for body in bodies]
    if sizes[0] == sizes[1]:
        return None
    return (
        f"{path}.objective: the student guesses among {sizes[0]} words and the teacher among {sizes[1]}; use "
        "models of one vocabulary, or terms on hidden states"
    )
