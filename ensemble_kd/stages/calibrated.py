"""The teachers' temperatures: fitted once the teachers are there, used wherever their mean is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import Config
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.records import load_labels
from ensemble_kd.stages.members import teacher_validation_logits
from ensemble_kd.train.teacher_calibration import FEWEST, fit_shrunk
from ensemble_kd.train.teacher_weights import fit_weights


def calibrates(config: Config) -> bool:
    """Whether means are made of calibrated members; values have no temperature."""
    return config.teachers.calibrate and config.data.predicts.classified


def fit(logits_of: Sequence[Callable[[], np.ndarray | None]], labels: np.ndarray) -> dict[str, Any]:
    """What the teachers' manifest keeps: `rows` and a temperature for each member, in order.

    `logits_of` give each one's (N, C) on the validation rows, None where these are not known.
    """
    known = labelled(labels)
    rows, temperatures = int(known.sum()), []
    for load in logits_of:
        logits = load() if rows >= FEWEST else None
        temperatures.append(1.0 if logits is None else fit_shrunk(logits[known], labels[known]))
    return {"rows": rows, "temperatures": temperatures}


def fit_teachers(config: Config, run: Path, data: Path, members: list[dict[str, Any]], folder: Path) -> Any:
    """`fit` of the teachers' entries; `folder` is that of their stage. None where labels are values."""
    if not config.data.predicts.classified:
        return None
    loaders = [partial(teacher_validation_logits, run, folder, entry) for entry in members]
    return fit(loaders, load_labels(data, "validation"))


def weights_of_teachers(
    config: Config, run: Path, data: Path, members: list[dict[str, Any]], folder: Path, fitted: Any
) -> list[float] | None:
    """What the members count in the mean, by their entries; `fitted` is `fit_teachers` of them.

    None where all count the same: by the settings, or because too few validation rows have labels, or a
    given member's answers to these are not known.
    """
    if config.teachers.weights == "equal" or len(members) < 2:
        return None
    labels = load_labels(data, "validation")
    known = labelled(labels)
    if known.sum() < FEWEST:
        return None
    outputs = [teacher_validation_logits(run, folder, entry) for entry in members]
    there = [each[known] for each in outputs if each is not None]
    if len(there) < len(members):
        return None
    own = fitted["temperatures"] if fitted is not None and calibrates(config) else [1.0] * len(members)
    return fit_weights(there, labels[known], own)


def calibration_of(config: Config, run: Path, data: Path, teachers: Manifest) -> list[float] | None:
    """Temperature of each member, in the store's order; None where means are made of logits as they are."""
    if not calibrates(config):
        return None
    found = teachers.summary.get("calibration")
    if found is None:  # a run folder of a version that fitted none
        folder = run / "teachers" / teachers.fingerprint
        found = fit_teachers(config, run, data, teachers.summary["members"], folder)
    temperatures: list[float] = found["temperatures"]
    return temperatures if any(t != 1 for t in temperatures) else None


def of_targets(calibration: list[float] | None, targets: str) -> list[float] | None:
    """For the members that a student with these targets sees: what is combined with specialists is
    calibrated already, and `both` has each teacher twice."""
    if calibration is None or targets == "specialists":
        return None
    return calibration + [1.0] * len(calibration) if targets == "both" else calibration
