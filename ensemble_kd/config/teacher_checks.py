"""What is wrong with a `teachers` block."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ensemble_kd.config.base import CALLABLE, replace
from ensemble_kd.config.models import model_problems
from ensemble_kd.config.readable import readable
from ensemble_kd.config.teachers import num_teachers, variants
from ensemble_kd.config.training import TrainingConfig
from ensemble_kd.paths import missing

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


def teacher_problems(config: Config) -> list[str]:
    teachers, problems = config.teachers, []
    if teachers.source == "train" and teachers.class_order is not None:
        problems.append(
            "teachers.class_order: set, but teachers.source is 'train': members that are trained learn the "
            "data's order; leave it out"
        )
    if isinstance(teachers.class_order, dict):
        count = num_teachers(config)
        problems += [
            f"teachers.class_order.{i}: there are {count} members, 0 to {count - 1}"
            for i in teachers.class_order
            if not 0 <= i < count
        ]
    if teachers.source == "predictions":
        if teachers.predictions is None:
            problems.append("teachers.predictions: missing; source 'predictions' needs the files")
        else:
            counts = {s: len(getattr(teachers.predictions, s)) for s in ("train", "validation", "test")}
            if any(n not in (0, counts["train"]) for n in counts.values()):
                problems.append(f"teachers.predictions: one file per member in every split, got {counts}")
        if config.soft_targets.views > 1:
            problems.append(
                "soft_targets.views: given predictions know no augmented views; set soft_targets.views=1"
            )
        if config.data.label_fraction < 1:
            problems.append("data.label_fraction: reorders rows; with teachers.source=predictions use 1.0")
        return problems
    if teachers.predictions is not None:
        problems.append(
            f"teachers.predictions: set, but teachers.source is {teachers.source!r}; set "
            "teachers.source=predictions"
        )
    if teachers.source != "train" and teachers.kinds:
        problems.append(
            f"teachers.kinds: set, but teachers.source is {teachers.source!r}: given teachers may be of any "
            "kind; leave it out"
        )
    if teachers.source == "train" and teachers.given:
        problems.append(
            "teachers.given: set, but teachers.source is 'train'; set teachers.source=pretrained, "
            "transformers, callable or mlflow"
        )
    if teachers.source != "train":
        if not teachers.given:
            problems.append(f"teachers.given: missing; source {teachers.source!r} needs one entry per member")
        return problems + _given_problems(config)
    problems += model_problems("teachers.model", teachers.model, config.data.kind)
    for path, override in variants(teachers):
        if override.model is not None:
            problems += model_problems(f"{path}.model", override.model, config.data.kind)
        try:
            replace(teachers.training, override.training)
        except ValidationError as error:
            problems += map(str, readable(error, TrainingConfig, prefix=f"{path}.training"))
    if len(teachers.overrides) > teachers.num_members:
        problems.append(
            f"teachers.overrides: {len(teachers.overrides)} entries for {teachers.num_members} members; "
            "raise teachers.num_members or drop some"
        )
    return problems


def _given_problems(config: Config) -> list[str]:
    """What is wrong with the user's own teachers, as far as their names tell."""
    teachers, data, problems = config.teachers, config.data, []
    for i, entry in enumerate(teachers.given):
        if teachers.source == "callable" and not re.fullmatch(CALLABLE, entry):
            problems.append(
                f"teachers.given.{i}: {entry!r} is not of the form module:callable; for example "
                "my_models:predict"
            )
        if teachers.source == "mlflow" and ":/" not in entry and missing(entry, "folder") is not None:
            problems.append(
                f"teachers.given.{i}: {entry!r} is no model URI, and no folder either; give "
                "models:/NAME/VERSION, runs:/RUN_ID/PATH, or a folder"
            )
    if teachers.source in ("callable", "transformers"):
        problems += numbers_only_problems(config)
    if teachers.source == "transformers" and data.kind == "numeric":
        problems.append(
            "teachers.source: 'transformers' classifiers take images or texts, the data is numeric; use "
            "callable"
        )
    if teachers.source == "transformers" and teachers.values != "logits":
        problems.append(f"teachers.values: {teachers.values!r}, but classifiers give logits; leave it out")
    if teachers.source != "pretrained":
        return problems
    if teachers.values != "logits":
        problems.append(
            f"teachers.values: {teachers.values!r}, but pretrained classifiers give logits; leave it out"
        )
    if data.kind == "numeric":
        problems.append(
            "teachers.source: 'pretrained' classifiers take images or texts, the data is numeric; use "
            "callable"
        )
    if data.kind == "text" and data.text.tokenizer != "pretrained":
        problems.append(
            f"data.text.tokenizer: {data.text.tokenizer!r}, but the classifiers in teachers.given read word "
            "pieces of their own; set data.text.tokenizer=pretrained"
        )
    return problems


def numbers_only_problems(config: Config) -> list[str]:
    """What a run cannot have whose teachers answer raw inputs with numbers, and are no networks of ours."""
    source, problems = config.teachers.source, []
    if config.soft_targets.views > 1:
        problems.append(
            f"soft_targets.views: {config.soft_targets.views}, but teachers.source={source} is asked about "
            "the rows as they are; set soft_targets.views=1"
        )
    if config.specialists is not None:
        problems.append(
            f"specialists: they start from a teacher's weights, and teachers.source={source} has none that "
            "can be read; train the teachers or leave the specialists out"
        )
    if config.sweep is not None and config.sweep.refit != "none":
        problems.append(
            f"sweep.refit: needs soft targets of the validation rows, which a run with "
            f"teachers.source={source} does not have; set it to none"
        )
    return problems
