"""Splits, and the checks that need all labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble_kd.config import Config, variants
from ensemble_kd.data.columns import teachers_know
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.remarks import class_remarks, value_remarks
from ensemble_kd.data.scan import Scan
from ensemble_kd.data.splits import DROPPED, TEST, TRAIN, VALIDATION, Plan, plan_splits


def plan(found: Scan, config: Config, problems: Problems, dropped: np.ndarray | None = None) -> Plan | None:
    """Splits and the checks that need all labels; None where classes or rows are too few.

    `dropped` (N,): rows of train that no split gets.
    """
    data, labels = config.data, found.labels.get("train", np.zeros(0, np.int64))
    if not len(labels):
        return None
    kind = data.predicts
    classes, width = kind.classified, len(data.columns.labels)
    if dropped is not None:
        labels = labels.copy()
        labels[dropped] = kind.missing(int(dropped.sum()), width)
    known = labels[labelled(labels)]
    present = np.unique(known)
    if not len(present) and _judged_elsewhere(found, config):
        part = np.full(len(labels), TRAIN, np.int8)
        if dropped is not None:
            part[dropped] = DROPPED
        return Plan(part, labels)
    if not len(present) and problems:
        return None  # no news: the labels could not be read
    alike = _alike(known, data.columns.labels)
    if len(present) < 2 or alike:
        where, value = alike[0] if alike else ("", 0)
        only = f"only the {'class' if classes else 'value'} "
        what = only + repr(found.names[value] if classes else float(value)) + where if alike else ""
        needs = "a classifier needs at least two classes" if classes else "there is nothing to predict"
        if classes and not len(present) and config.teachers.source != "train":
            needs = (
                "with given teachers that is enough where validation and test files have labels: add these"
            )
        problems.add(f"data.columns.label: train holds {what or 'no label'}; {needs}")
        return None
    remarks = (
        class_remarks(found.classes, labels, found.train_row)
        if classes
        else value_remarks(labels, found.train_row, data.columns.labels)
    )
    for line in remarks:
        problems.warn(line)
    strata = kind.strata(labels)
    num_classes = len(found.names) if classes else 1
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    held = {split: fraction for split, fraction in held.items() if split not in found.labels}
    if sum(held.values()) >= 1:
        problems.add(
            f"data.validation_fraction: {held['validation']} and data.test_fraction {held['test']} leave "
            "nothing to train on; together they must be below 1"
        )
        return None
    made = plan_splits(
        strata, num_classes, config.seed, held.get("validation"), held.get("test"), data.label_fraction
    )
    if dropped is not None:
        made.part[dropped] = DROPPED
    for split, number in (("validation", VALIDATION), ("test", TEST)):
        if split in held and not (made.part == number).any():
            problems.add(
                f"data.{split}_fraction: {held[split]} of {int(labelled(labels).sum())} labelled train rows "
                f"leaves no {split} row; raise it, or give a {split} split"
            )
    if not classes:
        given, without = labels.copy(), ~labelled(made.labels)  # by `label_fraction`
        given[without] = kind.missing(int(without.sum()), width)
        made = Plan(made.part, given)
        judged = found.labels.get("test", made.labels[made.part == TEST])
        for where, value in _alike(judged, data.columns.labels):  # also what a benchmark that withholds has
            problems.add(
                f"data.columns.label: test holds only the value {float(value)}{where}, by which nothing can "
                "be judged; give other test rows, or none so that data.test_fraction of train is held out"
            )
    for split in ("validation", "test") if classes else ():
        theirs = np.unique(found.labels.get(split, np.zeros(0, np.int64)))
        absent = np.setdiff1d(theirs[theirs >= 0], present)
        for code in absent[:10]:
            rows = int((found.labels[split] == code).sum())
            problems.add(
                f"{split}: class {found.names[code]!r} ({rows} rows) does not occur in train; "
                "add train rows of it or remove these"
            )
    train = made.labels[made.part == TRAIN]
    kept = train[labelled(train)]
    for where, value in _alike(kept, data.columns.labels) if not classes else ():
        problems.add(
            f"data.label_fraction: the {len(kept)} labelled rows that stay in train have one value{where}, "
            f"{float(value)}; raise it, or hold out less"
        )
    _check_batches(config, len(kept), len(train), problems)
    return made


def _alike(labels: np.ndarray, names: list[str]) -> list[tuple[str, Any]]:
    """Columns of labels (N,) or (N, K) that hold one value alone: where, in words, and the value."""
    if not len(labels):
        return []
    if labels.ndim == 1:
        return [("", labels[0])] if (labels == labels[0]).all() else []
    return [
        (f" in {name!r}", column[0])
        for name, column in zip(names, labels.T, strict=True)
        if (column == column[0]).all()
    ]


def _judged_elsewhere(found: Scan, config: Config) -> bool:
    """Whether given teachers know the classes, and labelled validation and test rows judge the outcome."""
    if not teachers_know(config):
        return False
    judging = [found.labels.get(split, np.zeros(0, np.int64)) for split in ("validation", "test")]
    return all(len(np.unique(labels[labels >= 0])) > 1 for labels in judging)


def _check_batches(config: Config, labelled: int, train: int, problems: Problems) -> None:
    """Teachers draw from labelled rows, students from all of the transfer set."""
    size = config.student.training.batch_size
    more = config.data.unlabelled or config.data.text_augment or config.data.splits.get("unlabelled")
    if size > train and not more:
        problems.add(f"student.training.batch_size: {size} is more than the {train} train rows; lower it")
    sizes: dict[str, int] = {}
    if config.teachers.source == "train":
        sizes["teachers.training.batch_size"] = config.teachers.training.batch_size
        for path, each in variants(config.teachers):
            if isinstance(own := each.training.get("batch_size"), int):
                sizes[f"{path}.training.batch_size"] = own
    for path, size in sizes.items():
        share = config.teachers.fraction
        rows = int(labelled * share)
        if size > rows:
            of = f" (teachers.fraction {share} of {labelled})" if share < 1 else ""
            problems.add(f"{path}: {size} is more than the {rows} labelled train rows{of}; lower it")
