"""The hard loss of imbalanced classes against scikit-learn, closed forms and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from ensemble_kd.config import (
    TrainingConfig,
    balanced_weights,
    class_name_problems,
    validate,
    with_class_weights,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.objectives.class_weights import WeightedCrossEntropy
from ensemble_kd.objectives.hard import cross_entropy


def test_balanced_is_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights([70, 25, 5]) == pytest.approx(wanted.tolist())
    assert np.mean(np.array(balanced_weights([70, 25, 5]))[labels]) == pytest.approx(1.0)
    assert balanced_weights([4, 0, 4]) == [1.0, 1.0, 1.0]  # a class without a label takes nothing from others


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(12, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(4, (12,), generator=generator)
    labels[3] = -1
    return logits, labels


def test_weights_are_those_of_torch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    weights = (0.5, 2.0, 1.0, 0.0)
    wanted = F.cross_entropy(
        logits, labels, torch.tensor(weights, dtype=torch.float64), ignore_index=-1, reduction="none"
    )
    torch.testing.assert_close(WeightedCrossEntropy(weights)(logits, labels), wanted)


def test_without_weights_and_gamma_it_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    torch.testing.assert_close(
        WeightedCrossEntropy()(logits, labels, 0.1), cross_entropy(logits, labels, 0.1)
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_papers_formula(batch: tuple[torch.Tensor, torch.Tensor], gamma: float) -> None:
    logits, labels = batch
    p = logits.softmax(1)[torch.arange(12), labels.clamp(min=0)]
    wanted = torch.where(labels < 0, 0.0, -((1 - p) ** gamma) * p.log())
    found = WeightedCrossEntropy(None, gamma)(logits, labels)
    torch.testing.assert_close(found, wanted)
    (ours,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(wanted.sum(), logits)
    torch.testing.assert_close(ours, theirs)
    assert not ours[3].any()


def test_a_certain_row_has_a_finite_gradient() -> None:
    logits = torch.tensor([[400.0, 0.0]], requires_grad=True)
    WeightedCrossEntropy(None, 0.5)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_half_sure_of_two_classes() -> None:
    loss = WeightedCrossEntropy((1.0, 10.0), 2.0)(torch.zeros(1, 2), torch.tensor([1]))
    assert loss.item() == pytest.approx(10 * 0.25 * math.log(2))


# ---------------------------------------------------------------------------------------- configuration


def raw(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "x", "data": {"source": "digits", "kind": "image"}}
    for path, value in changes.items():
        here = found
        *parents, last = path.split("__")
        for part in parents:
            here = here.setdefault(part, {})
        here[last] = value
    return found


def test_left_out_of_fingerprints_at_the_default() -> None:
    assert not {"class_weights", "focal_gamma"} & TrainingConfig().model_dump().keys()
    assert TrainingConfig(focal_gamma=2.0).model_dump()["focal_gamma"] == 2.0


def test_numbers_in_place_of_names() -> None:
    config = validate(
        raw(
            teachers__training={"class_weights": "balanced"},
            teachers__overrides=[{"training": {"class_weights": {"b": 3}}}, {}],
            student__training={"class_weights": {"a": 0.5}},
        )
    )
    found = with_class_weights(config, ["a", "b"], [30, 10])
    assert found.teachers.training.class_weights == pytest.approx([40 / 60, 2.0])
    assert found.teachers.overrides[0].training["class_weights"] == [1.0, 3.0]
    assert found.student.training.class_weights == [0.5, 1.0]
    assert with_class_weights(found, ["a", "b"], [30, 10]) == found


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0, 3.0], "student.training.class_weights: 3 numbers for 2 classes"),
        ({"c": 2.0}, "student.training.class_weights.c: no such class; the data has 'a', 'b'"),
        ([0.0, 0.0], "student.training.class_weights: all are 0"),
        ({"a": 0.0, "b": 0.0}, "student.training.class_weights: all are 0"),
    ],
)
def test_weights_that_do_not_fit_the_classes(weights: Any, message: str) -> None:
    config = validate(raw(student__training={"class_weights": weights}))
    (problem,) = class_name_problems(config, ["a", "b"])
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"specialists__training": {"focal_gamma": 2}}, "specialists.training.focal_gamma"),
        (
            {
                "data": {"source": "files", "kind": "numeric", "target": "value", "path": "."},
                "student__training": {"class_weights": "balanced"},
            },
            "student.training.class_weights",
        ),
        (
            {"sweep__space": {"training.class_weights": ["balanced", None]}},
            "sweep.space.training.class_weights",
        ),
        (
            {"sweep__space": {"student.training.class_weights": ["balanced", None]}},
            "sweep.space.training.class_weights",
        ),
        (
            {"student": {"temperature": "auto", "training": {"epochs": 0}}},
            "student.training.epochs",
        ),
    ],
)
def test_where_they_mean_nothing(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(raw(**changes))
    assert any(line.startswith(f"{path}: ") for line in error.value.problems), error.value.problems
