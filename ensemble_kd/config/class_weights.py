"""Weights of classes in the `training` blocks: what is wrong with them, and numbers in place of names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ensemble_kd import space
from ensemble_kd.config.base import replace
from ensemble_kd.config.teachers import MemberOverride, variants, with_variants
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config

FIELDS = ("class_weights", "focal_gamma")


def _blocks(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Path, class weights and focal gamma of every `training` block."""
    blocks: list[tuple[str, TrainingConfig]] = [("teachers.training", config.teachers.training)]
    if config.specialists is not None:
        blocks.append(("specialists.training", config.specialists.training))
    blocks.append(("student.training", config.student.training))
    blocks += [(f"student.phases.{i}.training", p.training) for i, p in enumerate(config.student.phases)]
    yield from ((path, block.class_weights, block.focal_gamma) for path, block in blocks)
    for path, override in variants(config.teachers):
        fields = override.training
        yield f"{path}.training", fields.get("class_weights"), fields.get("focal_gamma", 0.0)


def class_weight_problems(config: Config) -> list[str]:
    """What cannot have weights of classes or a focal loss, one line each."""
    of_words = {
        f"student.phases.{i}.training" for i, p in enumerate(config.student.phases) if p.task == "mlm"
    }
    problems = []
    for path, weights, gamma in _blocks(config):
        if path == "specialists.training":
            why = "a specialist has classes of its own and a dustbin"
        elif path in of_words:
            why = "this phase guesses words"
        elif not config.data.predicts.classified:
            why = f"data.target is {config.data.target!r}"
        else:
            continue
        problems += [
            f"{path}.{name}: set, but {why}; leave it out"
            for name, usual, value in zip(FIELDS, (None, 0.0), (weights, gamma), strict=True)
            if value != usual
        ]
    if config.sweep is not None and "training.class_weights" in space.searched(config.sweep.space):
        problems.append(
            "sweep.space.training.class_weights: it cannot be searched; set student.training.class_weights"
        )
    return problems


def class_name_problems(config: Config, class_names: list[str]) -> list[str]:
    """Weights for classes that the data does not have, or not for all that it has, one line each."""
    problems = []
    for path, weights, _ in _blocks(config):
        if isinstance(weights, list) and len(weights) != len(class_names):
            problems.append(
                f"{path}.class_weights: {len(weights)} numbers for {len(class_names)} classes; give one a "
                "class, in the order of the classes, or numbers by name"
            )
        elif isinstance(weights, dict):
            unknown = [name for name in weights if name not in class_names]
            some = ", ".join(map(repr, class_names[:5])) + (", ..." if len(class_names) > 5 else "")
            problems += [
                f"{path}.class_weights.{name}: no such class; the data has {some}" for name in unknown
            ]
            weights = [weights.get(name, 1.0) for name in class_names]
        if isinstance(weights, list) and not any(weights):
            problems.append(f"{path}.class_weights: all are 0, so that nothing is learned; raise one")
    return problems


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """N / (K * n_c) for each class c, N labels in all, K classes that occur; 1 for a class without a label.

    Each class that occurs then weighs the same in the sum of the losses, and the mean weight of a label is 1,
    so that the learning rate keeps its meaning.
    """
    total, occurring = sum(counts), sum(count > 0 for count in counts)
    return [total / (occurring * count) if count else 1.0 for count in counts]


def has_class_weights(config: Config) -> bool:
    """Whether any `training` block has weights of classes."""
    return any(weights is not None for _, weights, _ in _blocks(config))


def with_class_weights(config: Config, class_names: list[str], counts: list[int]) -> Config:
    """`balanced` and numbers by name as one number a class; `counts` are the training labels by class."""

    def numbers(weights: Any) -> list[float] | None:
        if weights == "balanced":
            return balanced_weights(counts)
        if isinstance(weights, dict):
            return [weights.get(name, 1.0) for name in class_names]
        return None

    def changed(block: Any) -> Any:
        found = numbers(block.training.class_weights)
        if found is None:
            return block
        return block.model_copy(update={"training": replace(block.training, {"class_weights": found})})

    def changed_variant(override: MemberOverride) -> MemberOverride:
        found = numbers(override.training.get("class_weights"))
        fields = override.training if found is None else {**override.training, "class_weights": found}
        return override.model_copy(update={"training": fields})

    teachers, student = changed(config.teachers), changed(config.student)
    teachers = with_variants(teachers, changed_variant)
    if student.phases:
        student = student.model_copy(update={"phases": [changed(phase) for phase in student.phases]})
    return config.model_copy(update={"teachers": teachers, "student": student})
