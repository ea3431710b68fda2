"""`student.pseudo` from the configuration to the tasks."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_kd.config import Config, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages import student, student_tasks
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.train.task import MemberTask

COUNTS = {"transfer": 100, "labelled": 10, "validation": 20, "test": 20}
DIGITS: dict[str, Any] = {"name": "pseudo", "data": {"source": "digits", "kind": "image"}}


def config_of(sweep: dict[str, Any] | None = None, **settings: Any) -> Config:
    return validate({**DIGITS, "student": settings, "sweep": sweep})


def distilled(config: Config, role: str = "distilled", **counts: int) -> MemberTask:
    return student_tasks.task(
        config, role, 0, Sources("data", "store", {**COUNTS, **counts}, Basis.alone(config))
    )


def test_the_weight_reaches_the_distilled_student_alone() -> None:
    config = config_of(pseudo=0.5)
    assert distilled(config).pseudo == 0.5 and distilled(config).reads_teacher
    assert distilled(config, "hard").pseudo == 0 and not distilled(config, "hard").reads_teacher
    whole = distilled(config, labelled=100)  # no row lacks a label
    assert whole.fingerprint == distilled(config_of(), labelled=100).fingerprint


def test_pseudo_labels_alone_are_the_baseline_itself() -> None:
    config = config_of(alpha=0, pseudo=1, temperature=3)
    assert distilled(config).fingerprint == distilled(config, "pseudo").fingerprint
    assert distilled(config_of(alpha=0.1, pseudo=1)).fingerprint != distilled(config, "pseudo").fingerprint


def test_the_stage_keeps_its_fingerprint_at_the_default(tmp_path: Any) -> None:
    plans = [student.plan(config_of(**s), tmp_path, "d", "s") for s in ({}, {"pseudo": 0}, {"pseudo": 0.5})]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"student": {"pseudo": 1.5}}, "student.pseudo: .*less than or equal to 1"),
        ({"student": {"pseudo": 0.5, "online": {"logits": True}}}, "student.pseudo: 0.5 weighs answers"),
        ({"sweep": {"space": {"pseudo": [0, 2]}}}, "sweep.space.pseudo: .*less than or equal to 1"),
        ({"student": {"alpha": 0}, "sweep": {"space": {"temperature": [1, 2]}}}, "nothing is distilled"),
    ],
)
def test_what_is_wrong_is_told(raw: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate({**DIGITS, **raw})


def test_pseudo_labels_alone_can_be_searched() -> None:
    validate({**DIGITS, "student": {"alpha": 0}, "sweep": {"space": {"pseudo": [0.5, 1]}}})


def test_values_have_no_pseudo_labels() -> None:
    data = {"source": "files", "path": "x", "kind": "numeric", "target": "value"}
    with pytest.raises(ConfigError, match=r"student.pseudo: 0.5 is for classes"):
        validate({"name": "v", "data": data, "student": {"pseudo": 0.5}})
