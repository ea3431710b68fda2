"""`epochs: auto`: training measured in optimiser steps, and turned into epochs once the rows are counted.

A tenth of the labels in a fixed number of epochs is a tenth of the training. So `auto` counts steps: 2,000,
and at least 10 epochs, from random weights; 500, and at least 3 epochs, from trained ones. How many epochs
that is, is known before anything is trained, so the learning rate follows its whole course and ends at 0:
weights from the middle of it are worse than those it ends with. Training ends early only where half of the
epochs brought nothing better on validation rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ensemble_kd.config.models import TransformerConfig
from ensemble_kd.config.teachers import MemberOverride, TeachersConfig, variants, varied, with_variants
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config

FROM_RANDOM = (2000, 10)
"""Least steps and epochs of a network that starts from random weights."""
FROM_TRAINED = (500, 3)
"""The same of one that starts from trained weights."""


def starts_trained(model: Any) -> bool:
    """Whether a configured network starts from weights that were trained before, on other data or here."""
    if not isinstance(model, TransformerConfig):
        return False
    return model.weights == "teacher" or (model.source is not None and model.weights != "random")


def steps_of(training: TrainingConfig, rows: int) -> int:
    """Optimiser steps of an epoch of so many rows."""
    return max(1, rows // training.batch_size)


def resolved(
    training: TrainingConfig,
    rows: int,
    trained: bool,
    *,
    at_least: int = 0,
    judged: bool = True,
    by: str = "calibrated_loss",
) -> TrainingConfig:
    """`training` with a number of epochs, for a member that sees `rows` in each.

    `trained`: whether it starts from trained weights. `at_least`: steps that it takes whatever `auto` says.
    `judged`: whether validation rows say how good it is; `by` what of them.
    """
    if training.epochs != "auto":
        return training
    least, epochs = FROM_TRAINED if trained else FROM_RANDOM
    if training.min_steps == "auto":
        least = max(least, at_least)
    else:
        least, epochs = training.min_steps, 1
    number = max(epochs, math.ceil(least / steps_of(training, rows)))
    changes: dict[str, Any] = {"epochs": number, "min_steps": "auto"}
    if judged and (training.early_stopping is None or "early_stopping" not in training.model_fields_set):
        changes |= {"early_stopping": math.ceil(number / 2), "early_stopping_by": by}
    return training.model_copy(update=changes)


def with_epochs(config: Config, counts: dict[str, int]) -> Config:
    """The configuration with every `epochs: auto` of teachers, student and phases as a number.

    `counts` are the rows by split: transfer, labelled, validation, test. Specialists are left: their rows
    follow from their clusters.
    """
    student = config.student
    judging: dict[str, Any] = {"judged": counts["validation"] > 0, "by": _by(config)}
    rows = round(counts["transfer"] * student.fraction)
    training = resolved(student.training, rows, starts_trained(student.model), **judging)
    at_least = 0
    if student.training.epochs == "auto":
        at_least = training.num_epochs * steps_of(training, rows)
    phases = [
        phase.model_copy(
            update={
                "training": resolved(
                    phase.training,
                    rows,
                    starts_trained(student.model),
                    judged=judging["judged"] and not (phase.alpha == 1 and phase.objective is None),
                    by=judging["by"],
                )
            }
        )
        for phase in student.phases
    ]
    changed = student.model_copy(update={"training": training, "phases": phases})
    rows = round(counts["labelled"] * config.teachers.fraction)
    teachers = _teachers(config.teachers, rows, at_least, judging)
    return config.model_copy(update={"student": changed, "teachers": teachers})


def _teachers(teachers: TeachersConfig, rows: int, at_least: int, judging: dict[str, Any]) -> TeachersConfig:
    def number(model: Any, training: TrainingConfig) -> TrainingConfig:
        trained = starts_trained(model)
        return resolved(training, rows, trained, at_least=0 if trained else at_least, **judging)

    def changed(override: MemberOverride) -> MemberOverride:
        model, own = varied(teachers, override)
        if teachers.training.epochs == "auto" or own.epochs == "auto":
            found = number(model, own).model_dump()
            # All that `auto` decides, so that nothing of the block's own number is taken over.
            names = ("epochs", "early_stopping")
            changes = {**override.training, **{name: found[name] for name in names}, "min_steps": "auto"}
            changes["early_stopping_by"] = found.get("early_stopping_by", "loss")
            return override.model_copy(update={"training": changes})
        return override

    training = number(teachers.model, teachers.training)
    return with_variants(teachers, changed).model_copy(update={"training": training})


def specialist_training(config: Config, rows: int) -> TrainingConfig:
    """Of a specialist whose epoch has so many examples: it starts from its teacher's weights."""
    assert config.specialists is not None
    return resolved(config.specialists.training, rows, True, by="loss")


def _by(config: Config) -> str:
    return config.data.predicts.early_stopping_by


def unresolved(config: Config) -> bool:
    """Whether the teachers' or the student's epochs are not known yet."""
    blocks = [config.student.training, *(phase.training for phase in config.student.phases)]
    return any(block.epochs == "auto" for block in [*blocks, *_all_of(config.teachers)])


def _all_of(teachers: TeachersConfig) -> list[TrainingConfig]:
    return [teachers.training, *(varied(teachers, each)[1] for _, each in variants(teachers))]


def epochs_problems(config: Config) -> list[str]:
    """Where `auto` cannot be: what is not counted before it is needed, and what is searched."""
    problems = []
    for i, phase in enumerate(config.student.phases):
        if phase.corpus is not None and phase.training.epochs == "auto":
            problems.append(
                f"student.phases.{i}.training.epochs: auto, but the texts of a corpus are not counted before "
                "its phase begins; give a number"
            )
    if not config.data.predicts.classified:
        blocks = [("teachers", config.teachers.training), ("student", config.student.training)]
        blocks += [(f"student.phases.{i}", phase.training) for i, phase in enumerate(config.student.phases)]
        problems += [
            f"{path}.training.early_stopping_by: 'calibrated_loss' is for classes, and data.target is "
            f"{config.data.target!r}; leave it out"
            for path, block in blocks
            if block.early_stopping_by == "calibrated_loss"
        ]
    return problems
