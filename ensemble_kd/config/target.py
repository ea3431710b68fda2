"""What in the configuration does not go with the kind of target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemble_kd.config.specialists import ClustersConfig
from ensemble_kd.config.student import student_blocks
from ensemble_kd.config.teachers import variants

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


def target_problems(config: Config) -> list[str]:
    """What does not go with the kind of target: several label columns, or what is for classes alone."""
    kind = config.data.predicts
    return _label_problems(config) + ([] if kind.classified else _class_problems(config))


def _label_problems(config: Config) -> list[str]:
    labels, kind = config.data.columns.label, config.data.predicts
    if isinstance(labels, str):
        return []
    if not labels:
        return ["data.columns.label: an empty list; name the columns of the label"]
    if not kind.several:
        return [
            f"data.columns.label: {len(labels)} columns, and with data.target={kind.name!r} a label is one; "
            "name one, or set data.target=value if they are numbers to predict"
        ]
    return []


def _class_problems(config: Config) -> list[str]:
    """What is for classes alone, in a run that has none."""
    teachers, student, sweep = config.teachers, config.student, config.sweep
    given = teachers.predictions
    wrong: list[tuple[str, Any, bool, str]] = [  # field, what it is, whether that is wrong, remedy
        ("data.class_names", config.data.class_names, config.data.class_names is not None, "leave it out"),
        ("data.source", "digits", config.data.source == "digits", "use files or hub"),
        ("specialists", "a block", config.specialists is not None, "leave it out"),
        ("clusters", "a block", config.clusters != ClustersConfig(), "leave it out"),
        ("soft_targets.top_k", config.soft_targets.top_k, config.soft_targets.top_k is not None, "set null"),
        ("student.pseudo", student.pseudo, student.pseudo not in (0, "auto"), "set 0"),
        ("student.mean", student.mean, student.mean == "geometric", "set arithmetic"),
        ("student.class_bias", student.class_bias, student.class_bias != "none", "set none"),
        ("student.without_classes", student.without_classes, bool(student.without_classes), "leave it out"),
        ("teachers.values", teachers.values, teachers.values == "probabilities", "set logits"),
        ("teachers.class_order", "a list", teachers.class_order is not None, "leave it out"),
    ]
    if given is not None:
        path = "teachers.predictions.values"
        wrong.append((path, given.values, given.values == "probabilities", "set logits"))
    trained: list[tuple[str, float]] = [("teachers.training", teachers.training.label_smoothing)]
    for path, override in variants(teachers):
        smoothing = override.training.get("label_smoothing", 0)
        trained.append((f"{path}.training", smoothing if isinstance(smoothing, float) else 0))
    trained += [
        (f"{path}.training", block.training.label_smoothing) for path, block in student_blocks(config)
    ]
    wrong += [(f"{path}.label_smoothing", value, value > 0, "set 0") for path, value in trained]
    if config.export is not None:  # a value says nothing of how sure it is
        asked = config.export
        wrong.append(("export.calibrate", asked.calibrate, asked.calibrate, "set false"))
        wrong.append(("export.precision", asked.precision, asked.precision is not None, "set null"))
    if sweep is not None:
        accuracy = sweep.metric != "validation_loss"
        wrong.append(("sweep.metric", sweep.metric, accuracy, "set validation_loss"))
        for name in ("temperature", "mean", "pseudo"):
            path = f"sweep.space.{name}"
            wrong.append((path, sweep.space.get(name), name in sweep.space, "leave it out"))
    return [
        f"{path}: {value if value == 'a block' else repr(value)} is for classes, and data.target is "
        f"{config.data.target!r}; {remedy}"
        for path, value, bad, remedy in wrong
        if bad
    ]
