"""The columns that the settings name, held against those of the source."""

from __future__ import annotations

from contextlib import suppress

from ensemble_kd.config import Config
from ensemble_kd.data.pieces import Source
from ensemble_kd.data.preprocess import missing_column
from ensemble_kd.data.problems import Problems
from ensemble_kd.errors import InputError


def teachers_know(config: Config) -> bool:
    """Whether teachers that are given say what a train row is, so that it needs no label."""
    return config.teachers.source != "train" and config.data.predicts.classified


def without_labels(source: Source, config: Config) -> bool:
    """Whether train has no label column and needs none: given teachers know the classes, and labelled
    validation and test rows judge them and the student."""
    if not teachers_know(config):
        return False
    return {"validation", "test"} <= source.splits.keys() and not any(
        set(config.data.columns.labels) <= set(piece.columns()) for piece in source.splits["train"]
    )


def check_columns(source: Source, config: Config, problems: Problems) -> None:
    columns = config.data.columns
    inputs = [columns.input] if isinstance(columns.input, str) else columns.input
    if not inputs:
        problems.add("data.columns.input: an empty list; name the columns of the inputs")
    for name in dict.fromkeys(name for name in inputs if inputs.count(name) > 1):
        problems.add(f"data.columns.input: {name!r} is listed {inputs.count(name)} times; list it once")
    labels = columns.labels
    for name in dict.fromkeys(name for name in labels if labels.count(name) > 1):
        problems.add(f"data.columns.label: {name!r} is listed {labels.count(name)} times; list it once")
    for name in dict.fromkeys(labels):
        if name in inputs:
            problems.add(f"data.columns.input: {name!r} is the label; a model would only copy it")
    for what, same in (("the label", columns.id in labels), ("an input", columns.id in inputs)):
        if same:
            problems.add(
                f"data.columns.id: {columns.id!r} is {what} too; name a column that only tells rows apart, "
                "or leave it out, and row numbers do"
            )
    for what, others in (("the label", labels), ("the id", [columns.id])):
        if columns.weight is not None and columns.weight in others:
            problems.add(
                f"data.columns.weight: {columns.weight!r} is {what} too; name a column that says how much "
                "a row counts, or leave it out"
            )
    unlabelled = {"unlabelled"}
    with suppress(InputError):  # a file that cannot be read is told below
        unlabelled |= {"train"} if without_labels(source, config) else set()
    for split, pieces in source.splits.items():
        wanted = [("input", name) for name in dict.fromkeys(inputs)]
        wanted += [] if split in unlabelled else [("label", name) for name in dict.fromkeys(labels)]
        wanted += [("id", columns.id)] if columns.id is not None else []
        wanted += [("weight", columns.weight)] if columns.weight is not None and split == "train" else []
        for piece in pieces:
            try:
                have = piece.columns()
            except InputError as error:
                for line in error.problems:
                    problems.add(line)
                continue
            for which, name in wanted:
                if name not in have:
                    problems.add(missing_column(which, name, piece.name, have))
                elif have.count(name) > 1:
                    problems.add(
                        f"data.columns.{which}: {piece.name} has {have.count(name)} columns of the name "
                        f"{name!r}; rename or remove all but one"
                    )
