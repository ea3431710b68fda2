"""`epochs: auto`: numbers from steps, for teachers, students, phases, specialists; where it cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from ensemble_kd import pipeline
from ensemble_kd.config import TrainingConfig, member_settings, unresolved, validate, with_epochs
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages import specialists
from ensemble_kd.stages.base import Done, NotDone
from ensemble_kd.stages.context import Console
from ensemble_kd.train.loop import Progress
from ensemble_kd.train.validation import calibrated_loss, validation_metrics

AUTO = {"epochs": "auto", "batch_size": 32}
COUNTS = {"transfer": 10_000, "labelled": 1_000, "validation": 200, "test": 200}


def config_of(**blocks: Any) -> Any:
    settings = {"name": "auto", "data": {"source": "digits"}, "student": {"training": AUTO}}
    return validate({**settings, "teachers": {"training": AUTO}, **blocks})


def test_steps_become_epochs_and_teachers_take_the_students_steps() -> None:
    found = with_epochs(config_of(), COUNTS)
    student, teachers = found.student.training, found.teachers.training
    assert student.epochs == 10  # 312 steps each, so that ten epochs are more than 2,000 steps
    assert teachers.epochs == math.ceil(10 * 312 / 31) and teachers.num_epochs * 31 >= 10 * 312
    assert (student.early_stopping, student.early_stopping_by) == (5, "calibrated_loss")
    assert teachers.early_stopping == math.ceil(teachers.num_epochs / 2)
    assert not unresolved(found) and unresolved(config_of())
    few = with_epochs(config_of(), {**COUNTS, "transfer": 1_000})
    assert few.student.training.epochs == few.teachers.training.epochs == math.ceil(2000 / 31)


def test_what_is_set_stays() -> None:
    own = {"min_steps": 100, "early_stopping": 3}
    found = with_epochs(config_of(teachers={"training": {**AUTO, **own}}), COUNTS)
    training = found.teachers.training
    assert (training.epochs, training.early_stopping, training.early_stopping_by) == (4, 3, "loss")
    fixed = config_of(teachers={}, student={})
    assert with_epochs(fixed, COUNTS) == fixed
    shown = TrainingConfig().model_dump(mode="json")
    assert not shown.keys() & {"min_steps", "early_stopping_by"}  # fingerprints stay
    assert TrainingConfig.model_validate(training.model_dump()) == training


def test_trained_weights_need_fewer_steps(tmp_path: Path) -> None:
    transformer = {"name": "transformer", "source": str(tmp_path)}
    overrides = [
        {"training": {"epochs": 7}},
        {"model": transformer},
        {"model": {**transformer, "weights": "random"}},
    ]
    blocks = {"data": {"path": str(tmp_path), "kind": "text", "text": {"tokenizer": "pretrained"}}}
    model = {"name": "bag"}
    teachers = {"model": model, "training": AUTO, "overrides": overrides, "num_members": 4}
    config = config_of(**blocks, teachers=teachers, student={"model": model, "training": AUTO})
    found = with_epochs(config, COUNTS).teachers
    settings = [member_settings(found, i)[1] for i in range(3)]
    assert [each.epochs for each in settings] == [7, math.ceil(500 / 31), math.ceil(3120 / 31)]
    assert [each.early_stopping for each in settings] == [None, 9, 51]  # a number asks for no early stopping


def test_phases_are_judged_only_where_the_classifier_learns() -> None:
    term = {"name": "hidden_mse", "weight": 1.0}
    phases = [
        {"name": "states", "training": AUTO, "alpha": 1.0, "terms": [term]},
        {"name": "labels", "training": AUTO, "alpha": 0.0},
    ]
    found = with_epochs(config_of(student={"training": AUTO, "phases": phases}), COUNTS).student.phases
    assert [phase.training.epochs for phase in found] == [10, 10]
    assert [phase.training.early_stopping for phase in found] == [None, 5]


def test_specialists_count_their_own_rows() -> None:
    training = {"epochs": "auto", "batch_size": 20}
    config = config_of(specialists={"training": training})
    inputs = {"data": "d", "soft_targets": "s"}
    labels = np.repeat([0, 1, 2, 3, 4], [100, 100, 50, 50, 500])
    teacher = {"name": "teacher-000", "fingerprint": "f", "validation_loss": 1.0}
    clusters = [{"classes": [0, 1]}, {"classes": [2, 3]}]
    made = specialists.tasks(config, inputs, clusters, [teacher], labels)
    assert [task.training["epochs"] for task in made] == [25, 50]  # 500 steps of 20 and of 10 an epoch
    assert [task.training["early_stopping"] for task in made] == [13, 25]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (
            {
                "data": {"kind": "text", "path": ".", "text": {"tokenizer": "pretrained", "source": "x"}},
                "teachers": {"model": {"name": "bag"}},
                "student": {
                    "model": {"name": "bag"},
                    "phases": [
                        {"name": "p", "corpus": {"path": "c.csv"}, "training": AUTO, "objective": "kl"}
                    ],
                },
            },
            "student.phases.0.training.epochs: auto, but the texts of a corpus are not counted",
        ),
        (
            {"sweep": {"space": {"training.epochs": [3, "auto"]}}},
            "sweep.space.training.epochs: 'auto' is one number for all trials",
        ),
        (
            {"sweep": {"space": {"training.min_steps": "integers(1, 5)"}}},
            "sweep.space.training.min_steps: cannot be searched",
        ),
        ({"teachers": {"training": {"epochs": "some"}}}, "teachers.training.epochs: "),
        ({"teachers": {"training": {"min_steps": 0}}}, "teachers.training.min_steps: "),
    ],
)
def test_where_auto_cannot_be(blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**blocks)
    assert any(line.startswith(said) for line in caught.value.problems), caught.value.problems


def test_check_shows_the_number_once_the_rows_are_counted(tmp_path: Path) -> None:
    config = config_of()
    states = {line.name: line.state for line in pipeline.check(config, tmp_path)}
    assert states["teachers"] == "to do: follows data"
    with pytest.raises(NotDone):
        pipeline.stage("teachers").plan(config, tmp_path, Done())
    context: Any = SimpleNamespace(config=config, console=Console(), folder=tmp_path)
    data = pipeline.stage("data")
    manifest = data.run(context, data.plan(config, tmp_path, Done()), Done())
    counts = manifest.summary["info"]["counts"]
    epochs = with_epochs(config, counts).teachers.training.epochs
    work = {line.name: line.work for line in pipeline.check(config, tmp_path)}
    assert work["teachers"] == f"5 x {counts['labelled']:,} rows x {epochs} epochs"


def test_the_calibrated_loss_is_the_least_over_temperatures() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=generator)
    for scale in (0.02, 1.0, 40.0):
        logits = scale * (torch.randn(200, 7, generator=generator) + torch.nn.functional.one_hot(labels, 7))

        def loss(b: float, logits: torch.Tensor = logits) -> float:
            return float(torch.nn.functional.cross_entropy(math.exp(b) * logits.double(), labels))

        best = minimize_scalar(loss, bounds=(-5, 4.6), method="bounded")
        assert calibrated_loss(logits, labels) == pytest.approx(best.fun, abs=2e-5)
        assert calibrated_loss(logits, labels) <= loss(0.0) + 1e-9
    certain = 50.0 * torch.nn.functional.one_hot(labels, 7)
    assert calibrated_loss(certain, labels) == pytest.approx(0, abs=1e-9)


def test_growing_confidence_alone_ends_no_training() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (300,), generator=generator)
    noise, signal = torch.randn(300, 5, generator=generator), torch.nn.functional.one_hot(labels, 5)
    by_loss, calibrated = Progress(), Progress()
    for epoch in range(6):  # a little better each time, and much surer
        logits = 3.0**epoch * (noise + (1 + 0.1 * epoch) * signal)
        for progress, by in ((by_loss, "loss"), (calibrated, "calibrated_loss")):
            progress.add({"train_loss": 0.0, **validation_metrics(logits, labels, None, by)}, patience=3)
    assert by_loss.stopped and by_loss.best_epoch < 3
    assert not calibrated.stopped and calibrated.best_epoch == 6
