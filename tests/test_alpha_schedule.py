"""`student.alpha` as a schedule: in closed form, stacked, in the bits of a number; what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent / "train"))
from test_fused import check, student
from toy import data

from ensemble_kd import pipeline
from ensemble_kd.config import Config, load_config
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss
from ensemble_kd.objectives.schedules import Schedule, parse_weight
from ensemble_kd.pipeline import check_objective
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.member import train_member

FALLING = {"start": 1.0, "end": 0.25, "begin": 0.2, "finish": 0.6}


def loss_of(schedule: Schedule | None, alpha: float = 1.0) -> DistillationLoss:
    return DistillationLoss(build_objective({"name": "kl"}, 2.0), alpha, schedule=schedule)


def batch_of(progress: float) -> tuple[Outputs, Outputs, Batch]:
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, -1])
    return Outputs(z), Outputs(v), Batch(torch.zeros(6, 1), labels, progress=progress)


@pytest.mark.parametrize(
    ("progress", "alpha"), [(0.0, 1.0), (0.2, 1.0), (0.3, 0.8125), (0.4, 0.625), (0.6, 0.25), (0.99, 0.25)]
)
def test_the_weights_follow_the_schedule(progress: float, alpha: float) -> None:
    z, v, batch = batch_of(progress)
    p, q = (logits.double().div(2).softmax(1) for logits in (z.logits, v.logits))
    soft = 4 * (q * (q / p).log()).sum(1).mean()
    hard = F.cross_entropy(z.logits[:5].double(), batch.labels[:5], reduction="sum") / 6
    found = loss_of(parse_weight(FALLING, ""))(z, v, batch)
    torch.testing.assert_close(found.double(), alpha * soft + (1 - alpha) * hard, rtol=1e-5, atol=1e-6)


def test_stacked_students_each_follow_their_own() -> None:
    schedules = [parse_weight(FALLING, ""), None, parse_weight({"start": 0.0, "end": 1.0}, "")]
    losses = [loss_of(schedule, 0.7) for schedule in schedules]
    for progress in (0.0, 0.35, 0.5, 1.0):
        z, v, batch = batch_of(progress)
        stacked = StackedLoss(losses)(
            Outputs(z.logits.expand(3, 6, 4)), Outputs(v.logits.expand(3, 6, 4)), batch
        )
        alone = torch.stack([loss(z, v, batch) for loss in losses])
        torch.testing.assert_close(stacked, alone)


def test_a_constant_schedule_gives_the_bits_of_the_number(tmp_path: Path) -> None:
    number = student(0.5)
    constant = student(0.5, alpha_schedule={"start": 0.5, "end": 0.5, "shape": "constant"})
    assert "alpha_schedule" not in number.settings and number.fingerprint != constant.fingerprint
    ours, theirs = (
        load_file(one.folder(tmp_path) / WEIGHTS)
        for one in (number, constant)
        if train_member(one, data(), tmp_path)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    moving = student(1.0, alpha_schedule=FALLING)
    assert train_member(moving, data(), tmp_path)
    other = load_file(moving.folder(tmp_path) / WEIGHTS)
    assert not all(torch.equal(other[name], theirs[name]) for name in theirs)


def test_students_that_are_trained_together_leave_what_they_leave_alone(tmp_path: Path) -> None:
    rising: dict[str, Any] = {"start": 0.2, "end": 0.9, "shape": "cosine"}
    tasks = [student(1.0, alpha_schedule=FALLING), student(0.5), student(0.9, alpha_schedule=rising)]
    check(tasks, data(), tmp_path)


# ------------------------------------------------------------------------------------------- configuration


def config(*overrides: str) -> Config:
    return load_config("digits", ["specialists=null", "sweep=null", *overrides])


def test_the_configuration_takes_numbers_as_before_and_schedules() -> None:
    assert config("student.alpha=0.3").student.model_dump(mode="json")["alpha"] == 0.3
    scheduled = config("student.alpha={start: 0.2, end: 0.9}").student
    assert scheduled.numbers.alpha == 0.9 and scheduled.reads_teachers
    assert scheduled.model_dump(mode="json")["alpha"] == {"start": 0.2, "end": 0.9}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{start: 1}", "student.alpha.end: missing; a schedule goes from start to end"),
        ("{start: 0, end: 2}", "student.alpha.end: a share of the whole loss, 0 to 1, got 2; lower it"),
        (
            "{start: 0, end: 1, shap: step}",
            "student.alpha.shap: unknown setting; did you mean 'shape'?",
        ),
    ],
)
def test_schedules_that_cannot_be(given: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_objective(config(f"student.alpha={given}"))
    assert line in caught.value.problems


def test_auto_goes_with_numbers_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        config("student.alpha={start: 1, end: 0}", "student.temperature=auto")
    assert caught.value.problems == [
        "student.temperature: 'auto' is chosen for numbers, and student.alpha is a schedule; give a number "
        "here or there"
    ]


def test_a_number_that_is_none_is_told_as_before() -> None:
    with pytest.raises(ConfigError) as caught:
        config("student.alpha=2")
    assert caught.value.problems == [
        "student.alpha: input should be less than or equal to 1, got 2; or input should be 'auto', got 2"
    ]


@pytest.mark.slow
def test_a_sweep_over_the_temperature_keeps_the_schedule_in_every_trial(tmp_path: Path) -> None:
    pipeline.run(
        load_config(
            "digits",
            [
                "specialists=null",
                "compute.executor=local",
                "teachers.num_members=2",
                "teachers.training.epochs=1",
                "student.training.epochs=2",
                "student.seeds=1",
                "tracking.enabled=false",
                "sweep.num_seeds=1",
                "sweep.scheduler=none",
                "student.alpha={start: 1, end: 0.2}",
                "sweep.search=grid",
                "sweep.space={temperature: [1, 5]}",
            ],
        ),
        tmp_path,
    )
    manifests = (tmp_path / "sweep" / "members").glob("*/manifest.json")
    tried = [json.loads(path.read_text())["config"] for path in manifests]
    soft = [one for one in tried if "temperature" in one]  # a baseline reads no soft targets
    assert sorted(one["temperature"] for one in soft) == [1, 5]
    assert all(one["alpha_schedule"] == {"start": 1, "end": 0.2} for one in soft)
    assert len(tried) > len(soft) and not any("alpha_schedule" in one for one in tried if one not in soft)
