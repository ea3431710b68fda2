"""Objectives on stored logits beyond KL: closed forms, a reference in numpy float64, invariances, stacks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, build_objective, stack, stacks_with
from ensemble_kd.objectives.correlation import DIST
from ensemble_kd.objectives.decoupled import DecoupledKD
from ensemble_kd.objectives.divergences import JensenShannon, ReverseKL
from ensemble_kd.objectives.logits import KL
from ensemble_kd.objectives.standardised import StandardisedKL

KINDS: list[Any] = [ReverseKL, JensenShannon, StandardisedKL, DecoupledKD, DIST]


def loss_of(objective: Any, z: Any, v: Any, labels: Any = None) -> torch.Tensor:
    z, v = torch.as_tensor(z), torch.as_tensor(v)
    labels = torch.zeros(z.shape[:-1], dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    return objective(Outputs(z), Outputs(v), Batch(z, labels))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def reference(kind: Any, z: np.ndarray, v: np.ndarray, labels: np.ndarray, t: float) -> np.ndarray:
    """Loops and numpy, float64: (B,)."""
    if kind is StandardisedKL:
        z, v = ((x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-7) for x in (z, v))
        return t**2 * kl(softmax(v / t), softmax(z / t))
    p, q = softmax(v / t), softmax(z / t)
    if kind is ReverseKL:
        return t**2 * kl(q, p)
    if kind is JensenShannon:
        return t**2 * (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    if kind is DecoupledKD:
        found = []
        for p_i, q_i, y in zip(p, q, labels, strict=True):
            others = np.arange(len(p_i)) != y
            binary = kl(np.array([p_i[y], 1 - p_i[y]]), np.array([q_i[y], 1 - q_i[y]]))
            rest = kl(p_i[others] / p_i[others].sum(), q_i[others] / q_i[others].sum())
            found.append(binary + 2 * rest)
        return t**2 * np.array(found)
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return t**2 * (np.array(rows) + np.mean(columns))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(3, 6),
    classes=st.integers(3, 12),
    temperature=st.floats(0.5, 20),
    seed=st.integers(0, 999),
)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference(kind: Any, batch: int, classes: int, temperature: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    z, v = draw.normal(size=(2, batch, classes)).astype(np.float32) * np.float32(2)
    labels = draw.integers(0, classes, batch)
    found = loss_of(kind(temperature), z, v, labels)
    assert found.shape == (batch,) and found.dtype == torch.float32
    wanted = reference(kind, z.astype(np.float64), v.astype(np.float64), labels, temperature)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-3, atol=2e-3)


def test_closed_forms() -> None:
    z, v = [[0.0, 0.0]], [[math.log(3.0), 0.0]]  # q = (1/2, 1/2), p = (3/4, 1/4)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    torch.testing.assert_close(loss_of(ReverseKL(1.0), z, v), torch.tensor([reverse]))
    entropy = -0.625 * math.log(0.625) - 0.375 * math.log(0.375)  # m = (5/8, 3/8)
    mixed = entropy - (math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2
    torch.testing.assert_close(loss_of(JensenShannon(1.0), z, v), torch.tensor([mixed]))


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    z, v = torch.randn(20, 5) * 9, torch.randn(20, 5) * 9
    once = loss_of(JensenShannon(2.0), z, v)
    torch.testing.assert_close(once, loss_of(JensenShannon(2.0), v, z))
    assert (once <= 4 * math.log(2) + 1e-5).all() and once.max() > 1


def test_near_distributions_have_a_quarter_of_the_kl() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 6, dtype=torch.float64)
    v = z + torch.randn(4, 6, dtype=torch.float64) * 1e-3
    torch.testing.assert_close(
        4 * loss_of(JensenShannon(2.0), z, v), loss_of(KL(2.0), z, v), rtol=1e-2, atol=0
    )
    torch.testing.assert_close(loss_of(ReverseKL(2.0), z, v), loss_of(KL(2.0), z, v), rtol=1e-2, atol=0)


def test_the_two_parts_add_up_to_kl() -> None:
    """KL = TCKD + (1 - p_y) NCKD: equation 7 of arXiv 2203.08679."""
    z, v, labels = torch.randn(5, 7), torch.randn(5, 7), torch.arange(5)
    binary = loss_of(DecoupledKD(3.0, 1.0, 0.0), z, v, labels)
    others = loss_of(DecoupledKD(3.0, 0.0, 1.0), z, v, labels)
    p_y = torch.softmax(v / 3, -1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(binary + (1 - p_y) * others, loss_of(KL(3.0), z, v))


def test_a_row_without_label_takes_the_teachers_class() -> None:
    z, v = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(
        loss_of(DecoupledKD(2.0), z, v, [-1] * 6), loss_of(DecoupledKD(2.0), z, v, v.argmax(1))
    )


def test_two_classes_have_no_others() -> None:
    z, v = torch.randn(6, 2), torch.randn(6, 2)
    torch.testing.assert_close(loss_of(DecoupledKD(2.0, 1.0, 8.0), z, v), loss_of(KL(2.0), z, v))


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.2, 9), shift=st.floats(-9, 9))
def test_standardised_logits_have_no_scale(factor: float, shift: float) -> None:
    z, v = torch.randn(4, 6), torch.randn(4, 6)
    once = loss_of(StandardisedKL(2.0), z, v)
    torch.testing.assert_close(
        loss_of(StandardisedKL(2.0), z * factor + shift, v), once, rtol=1e-3, atol=1e-5
    )


def test_correlations_do_not_see_an_affine_change() -> None:
    """q = a p + b has correlation 1 with p over classes and over examples, for a, b of the whole batch."""
    p = torch.softmax(torch.randn(8, 5), -1)
    q = 0.5 * p + 0.1  # sums to 1 for five classes
    torch.testing.assert_close(loss_of(DIST(1.0), q.log(), p.log()), torch.zeros(8), atol=1e-5, rtol=0)


def test_correlations_of_one_example_or_a_constant_are_finite() -> None:
    z = torch.zeros(1, 4, requires_grad=True)
    loss = loss_of(DIST(1.0), z, torch.randn(1, 4)).sum()
    loss.backward()
    assert torch.isfinite(loss) and z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_gives_zero_and_no_gradient(kind: Any) -> None:
    z = (torch.randn(4, 7, dtype=torch.float64) * 3).requires_grad_()
    for temperature in (0.5, 4.0, 100.0):
        loss = loss_of(kind(temperature), z, z.detach() + 5.0)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-6, rtol=0)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        torch.testing.assert_close(gradient, torch.zeros_like(z), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_student_only_and_is_right(kind: Any) -> None:
    z, v = (torch.randn(3, 5, requires_grad=True, dtype=torch.float64) for _ in range(2))
    loss_of(kind(2.0), z, v).sum().backward()
    assert v.grad is None and z.grad is not None and z.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: loss_of(kind(2.0), x, v.detach()), (z,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1000.0])
def test_extreme_logits_stay_finite(kind: Any, temperature: float) -> None:
    z = torch.tensor([[60.0, -60.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    v = torch.tensor([[-60.0, 60.0, -60.0], [60.0, -60.0, -60.0]])
    loss = loss_of(kind(temperature), z, v).sum()
    loss.backward()
    assert torch.isfinite(loss) and z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind: Any) -> None:
    z, v = torch.randn(3, 5).bfloat16(), torch.randn(3, 5)
    loss = loss_of(kind(2.0), z, v)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(kind(2.0), z.float(), v))


@settings(max_examples=20, deadline=None)
@given(temperatures=st.lists(st.floats(0.5, 60), min_size=2, max_size=4), classes=st.integers(2, 20))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_gives_each_members_losses(kind: Any, temperatures: list[float], classes: int) -> None:
    torch.manual_seed(classes)
    members = [kind(t) for t in temperatures]
    assert len({stacks_with(member) for member in members}) == 1
    shape = (len(members), 5, classes)
    z, v = torch.randn(shape).mul(2).requires_grad_(), torch.randn(shape) * 2
    labels = torch.randint(-1, classes, shape[:2])
    losses = loss_of(stack(members), z, v, labels)
    alone = torch.stack([loss_of(m, z[i], v[i], labels[i]) for i, m in enumerate(members)])
    assert losses.shape == shape[:2]
    torch.testing.assert_close(losses, alone, rtol=1e-3, atol=1e-2)
    (found,), (wanted,) = (torch.autograd.grad(x.sum(), z) for x in (losses, alone))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings_",
    [
        {"name": "reverse_kl"},
        {"name": "jensen_shannon"},
        {"name": "standardised_kl"},
        {"name": "decoupled_kd", "other_weight": 8.0},
        {"name": "dist", "class_weight": 2.0, "example_weight": 2.0},
    ],
)
def test_configurations(settings_: dict[str, Any]) -> None:
    made = build_objective(settings_, 4.0)
    assert made.needs == {"logits"} and made.temperature == 4.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="student.objective.weight: unknown setting"):
        build_objective({**settings_, "weight": 1.0}, 4.0)
