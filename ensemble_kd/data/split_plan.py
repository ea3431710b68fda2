"""Splits, and the checks that need all labels."""

from __future__ import annotations

import numpy as np

from ensemble_kd.config import Config, variants
from ensemble_kd.data.columns import teachers_know
from ensemble_kd.data.labels import UNLABELLED, labelled
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
    classes = data.target == "class"
    if dropped is not None:
        labels = np.where(dropped, UNLABELLED if classes else np.float32(np.nan), labels)
    present = np.unique(labels[labelled(labels)])
    if not len(present) and _judged_elsewhere(found, config):
        part = np.full(len(labels), TRAIN, np.int8)
        if dropped is not None:
            part[dropped] = DROPPED
        return Plan(part, labels)
    if not len(present) and problems:
        return None  # no news: the labels could not be read
    if len(present) < 2:
        only = f"only the {'class' if classes else 'value'} "
        what = only + repr(found.names[present[0]] if classes else float(present[0])) if len(present) else ""
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
        else value_remarks(labels, found.train_row)
    )
    for line in remarks:
        problems.warn(line)
    # Values are drawn as rows of one class.
    strata = labels if classes else np.where(labelled(labels), 0, UNLABELLED)
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
        made = Plan(made.part, np.where(made.labels == UNLABELLED, np.float32(np.nan), labels))
        judged = np.unique(found.labels.get("test", made.labels[made.part == TEST]))
        if len(judged) == 1:  # also what a benchmark puts where it withholds them
            problems.add(
                f"data.columns.label: test holds only the value {float(judged[0])}, by which nothing can be "
                "judged; give other test rows, or none so that data.test_fraction of train is held out"
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
    if not classes and len(np.unique(kept)) < 2:
        problems.add(
            f"data.label_fraction: the {len(kept)} labelled rows that stay in train have one value, "
            f"{float(kept[0])}; raise it, or hold out less"
        )
    _check_batches(config, len(kept), len(train), problems)
    return made


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
