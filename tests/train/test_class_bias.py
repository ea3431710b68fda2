"""Classes that a student never sees, shares of the transfer set, and the bias that makes up for them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import toy

from ensemble_kd.config import validate
from ensemble_kd.stages.student_checks import bias_problems
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.class_bias import add_class_bias_, fit_class_bias
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.rows import pick_rows
from ensemble_kd.train.task import finished

CPU = torch.device("cpu")


def test_without_any_knowledge_the_bias_is_the_logarithm_of_the_shares() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    found = fit_class_bias(torch.zeros(100, 3), labels)
    exact = torch.tensor([0.6, 0.3, 0.1]).log()
    torch.testing.assert_close(found, exact - exact.mean(), atol=5e-3, rtol=0)


def test_a_shift_of_the_logits_is_undone() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(20_000, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    shift = torch.tensor([3.0, -1.0, 0.0, -2.0])
    torch.testing.assert_close(fit_class_bias(logits + shift, labels), -shift, atol=0.1, rtol=0)


def test_a_class_without_validation_rows_gets_a_finite_bias() -> None:
    found = fit_class_bias(torch.randn(50, 3), torch.tensor([0, 1] * 25))
    assert torch.isfinite(found).all() and found.argmin() == 2 and abs(float(found.mean())) < 1e-6


def test_the_bias_is_added_to_the_last_layer() -> None:
    network, inputs = toy.network(dropout=0.0).eval(), torch.randn(5, toy.FEATURES)
    before = network(inputs).logits.detach()
    bias = torch.tensor([1.0, -2.0, 0.5])
    add_class_bias_(network, bias)
    torch.testing.assert_close(network(inputs).logits.detach(), before + bias)


def test_a_model_without_such_a_layer_is_told_before_training() -> None:
    student = {"model": {"name": "custom", "callable": f"{__name__}:biasless"}, "class_bias": "fitted"}
    config = validate({"name": "x", "data": {"source": "digits"}, "student": student})
    (problem,) = bias_problems(config, toy.INFO)
    assert problem.startswith("student.class_bias: 'fitted', but model") and "no torch.nn.Linear" in problem
    without = config.student.model_copy(update={"class_bias": "none"})
    assert bias_problems(config.model_copy(update={"student": without}), toy.INFO) == []


def biasless(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Linear(input_shape[0], num_classes, bias=False)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rows_of_left_out_classes_are_never_drawn(fraction: float) -> None:
    data = toy.data(unlabelled=10)
    rows = {"labelled": False, "bootstrap": False, "fraction": fraction, "without": [0, 2]}
    task = toy.task("distilled", rows=rows)
    assert data.transfer is not None
    labels = as_tensor(data.transfer.labels)
    picked = pick_rows(task, labels)
    assert set(labels[picked].tolist()) <= {1, -1}
    if fraction == 1:  # every other row is there, those without a label too
        assert len(picked) == int(((labels == 1) | (labels == -1)).sum())
    for source in (data, toy.streamed(data)):
        batches = make_batches(task, source, toy.settings(), CPU)
        seen = torch.cat([batch.labels for batch in batches.epoch(0)])
        assert len(seen) and set(seen.tolist()) <= {1, -1}


def test_the_fitted_bias_travels_with_the_weights_and_finds_the_class_never_seen(tmp_path: Path) -> None:
    data = toy.data()
    rows = {"labelled": False, "bootstrap": False, "fraction": 1.0, "without": [2]}
    training = toy.settings(epochs=20).model_dump(mode="json")
    common = {"rows": rows, "alpha": 1.0, "training": training, "temperature": 4.0}
    plain = toy.task("distilled", **common)
    fitted = toy.task("distilled", class_bias=True, **common)
    assert plain.fingerprint != fitted.fingerprint
    for task in (plain, fitted):
        assert train_member(task, data, tmp_path)
    manifest = finished(fitted, tmp_path)
    assert manifest is not None
    bias = torch.tensor(manifest.summary["class_bias"])
    before, after = (load_logits(task.folder(tmp_path), "test") for task in (plain, fitted))
    torch.testing.assert_close(after, before + bias, atol=1e-4, rtol=1e-4)
    network = load_network(manifest.config, toy.INFO, fitted.folder(tmp_path))
    torch.testing.assert_close(network(as_tensor(data.test.inputs)).logits.detach(), after)
    labels = as_tensor(data.test.labels)
    unseen = labels == 2

    def right(logits: torch.Tensor) -> float:
        return float((logits.argmax(1) == labels)[unseen].float().mean())

    assert right(after) >= right(before) and float(bias[2]) == max(bias.tolist())
    assert math.isclose(float(bias.mean()), 0.0, abs_tol=1e-5)
