"""What is wrong between the blocks of a configuration."""

from __future__ import annotations

from ensemble_kd.config.auto import auto_problems, settled
from ensemble_kd.config.branches import branch_problems
from ensemble_kd.config.chain import chain_problems
from ensemble_kd.config.class_weights import class_weight_problems
from ensemble_kd.config.compute import executor_problems
from ensemble_kd.config.data_checks import data_problems, text_augment_problems
from ensemble_kd.config.epochs import epochs_problems
from ensemble_kd.config.export import form_problems
from ensemble_kd.config.methods import method_problems
from ensemble_kd.config.models import model_problems, transformer_problems
from ensemble_kd.config.peers import peer_problems
from ensemble_kd.config.phases import phase_problems
from ensemble_kd.config.run import Config, text_source
from ensemble_kd.config.soft_targets import keep_problems
from ensemble_kd.config.specialists import specialist_problems
from ensemble_kd.config.start import start_problems
from ensemble_kd.config.student import online_problems
from ensemble_kd.config.sweep import sweep_problems
from ensemble_kd.config.target import target_problems
from ensemble_kd.config.teacher_checks import teacher_problems
from ensemble_kd.config.teachers import num_teachers, variants
from ensemble_kd.config_checks import compute_problems, single_problems


def cross_field_problems(config: Config) -> list[str]:
    """Everything that is wrong between fields: one line each, starting with the path of a field."""
    singles = single_problems(config) + compute_problems(config.compute)
    others = auto_problems(config) + target_problems(config) + _problems_between_fields(settled(config))
    # Whatever else is said of the same fields follows from it.
    fields = tuple(f"{problem.path}:" for problem in singles)
    return [*map(str, singles), *(line for line in others if not line.startswith(fields))]


def _problems_between_fields(config: Config) -> list[str]:
    problems = data_problems(config.data) + text_augment_problems(config) + teacher_problems(config)
    student = config.student
    text = config.data.kind == "text" and config.data.text.tokenizer == "pretrained"
    if text and config.teachers.source != "mlflow" and not text_source(config):  # that one may bring its own
        problems.append(
            "data.text.source: missing, and no teacher or student is a transformer with a source; give a hub "
            "name, a local folder or package:MODULE/FOLDER"
        )
    problems += model_problems("student.model", student.model, config.data.kind)
    num_members = num_teachers(config)
    if student.weights is not None:
        if len(student.weights) != num_members:
            problems.append(f"student.weights: {len(student.weights)} weights for {num_members} teachers")
        elif not sum(student.weights) > 0:
            problems.append("student.weights: at least one weight must be above 0")
        if config.teachers.weights != "equal":
            problems.append(
                "student.weights: set, but teachers.weights is 'validation', which finds them; leave one out"
            )
    if config.soft_targets.views > 1 and not config.data.augment.active:
        problems.append(
            "soft_targets.views: above 1 but data.augment changes nothing; set data.augment.shift, mixup, "
            "munge or word_dropout"
        )
    if config.data.augment.munge and config.soft_targets.views == 1:
        problems.append(
            "data.augment.munge: makes up further views of a row, and soft_targets.views is 1; set that to "
            "8, or leave munge out"
        )
    for name in ("mixup", "munge"):
        if getattr(config.data.augment, name) and config.specialists is not None:
            problems.append(
                f"data.augment.{name}: specialists are asked about rows of their classes, and what is made "
                f"of two rows may be of two; leave {name} or the specialists out"
            )
    problems += class_weight_problems(config)
    problems += keep_problems(config)
    problems += specialist_problems(config)
    problems += form_problems(config)
    problems += sweep_problems(config, cross_field_problems)
    problems += phase_problems(config)
    problems += peer_problems(config) + branch_problems(config) + method_problems(config)
    problems += epochs_problems(config)
    problems += online_problems(config)
    problems += chain_problems(config)
    problems += transformer_problems("student.model", student.model, config.data)
    problems += start_problems("student.model", student.model, config)
    if config.teachers.source == "train":
        problems += transformer_problems("teachers.model", config.teachers.model, config.data)
        problems += start_problems("teachers.model", config.teachers.model, config)
        for path, override in variants(config.teachers):
            problems += transformer_problems(f"{path}.model", override.model, config.data)
            problems += start_problems(f"{path}.model", override.model, config)
    trained = [
        ("teachers", config.teachers.training, config.teachers.replicas_per_member),
        ("student", student.training, student.replicas_per_member),
    ]
    if config.specialists is not None:
        specialists = config.specialists
        trained.append(("specialists", specialists.training, specialists.replicas_per_member))
    for path, block, replicas in trained:
        if block.batch_size % (replicas * block.gradient_accumulation):
            problems.append(
                f"{path}.training.batch_size: {block.batch_size} cannot be cut into {replicas} replicas x "
                f"{block.gradient_accumulation} accumulated parts"
            )
        workers = config.compute.num_workers
        if isinstance(workers, tuple) and replicas > 1:
            problems.append(
                f"{path}.replicas_per_member: {replicas}, but with compute.num_workers = {list(workers)} the "
                "group grows and shrinks one worker at a time; set one of them to a number"
            )
        elif isinstance(workers, int) and workers % replicas:
            problems.append(
                f"{path}.replicas_per_member: {replicas} does not divide compute.num_workers = {workers}"
            )
    workers = config.compute.num_workers
    if isinstance(workers, int) and workers < 1:
        problems.append(f"compute.num_workers: at least 1, or auto; got {workers}")
    if isinstance(workers, tuple) and not 1 <= workers[0] <= workers[1]:
        problems.append(f"compute.num_workers: [min, max] with 1 <= min <= max; got {list(workers)}")
    problems += executor_problems(config)
    actors = config.soft_targets.num_actors
    if actors != "auto" and actors < 1:
        problems.append(f"soft_targets.num_actors: at least 1, or auto; got {actors}")
    return problems
