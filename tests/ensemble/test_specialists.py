"""Dustbin, bias and the combined distribution, against gradient descent and closed forms."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ensemble_kd.ensemble.specialists import (
    active_specialists,
    combine,
    dustbin_logit,
    fit_dustbin_bias,
    sampling_correction,
    specialist_logits_from_generalist,
)

Specialists = list[tuple[list[int], Tensor]]


def objective(log_q: Tensor, log_g: Tensor, specialists: Specialists, weights: Tensor) -> Tensor:
    """J (B,) with weights (B, M), 0 where a specialist is not active."""
    total = (log_g.exp() * (log_g - log_q)).sum(1)
    for m, (classes, log_p) in enumerate(specialists):
        seen = specialist_logits_from_generalist(log_q, classes)
        total = total + weights[:, m] * (log_p.exp() * (log_p - seen)).sum(1)
    return total


def combine_gradient_descent(
    log_g: Tensor, specialists: Specialists, weights: Tensor, steps: int = 1500
) -> Tensor:
    """The paper's way: gradient descent over the logits of q, by autograd, with step 1 / sum of weights."""
    z = log_g.clone().requires_grad_()
    rate = 1 / (1 + weights.sum(1, keepdim=True))
    for _ in range(steps):
        loss = objective(torch.log_softmax(z, 1), log_g, specialists, weights).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            z -= 2.0 * rate * gradient
    return torch.log_softmax(z.detach(), 1)


def random_case(
    seed: int, num_classes: int = 7, num_specialists: int = 3, batch: int = 5, scale: float = 1.5
) -> tuple[Tensor, Specialists]:
    generator = torch.Generator().manual_seed(seed)
    log_g = torch.log_softmax(
        torch.randn(batch, num_classes, generator=generator, dtype=torch.float64) * scale, 1
    )
    specialists: Specialists = []
    for _ in range(num_specialists):
        size = int(torch.randint(2, num_classes, (1,), generator=generator))
        classes = torch.randperm(num_classes, generator=generator)[:size].tolist()
        logits = torch.randn(batch, size + 1, generator=generator, dtype=torch.float64) * scale
        specialists.append((classes, torch.log_softmax(logits, 1)))
    return log_g, specialists


def gates(log_g: Tensor, specialists: Specialists, top_n: int, weight: float | Sequence[float]) -> Tensor:
    weights = torch.as_tensor(weight, dtype=torch.float64)
    return active_specialists(log_g, [classes for classes, _ in specialists], top_n) * weights


def test_dustbin_mass_is_the_mass_outside() -> None:
    logits = torch.randn(20, 9, dtype=torch.float64) * 5
    classes = [7, 2, 4]
    p, full = specialist_logits_from_generalist(logits, classes).softmax(1), logits.softmax(1)
    torch.testing.assert_close(p[:, :3], full[:, classes])
    torch.testing.assert_close(p[:, 3], full[:, [0, 1, 3, 5, 6, 8]].sum(1))
    torch.testing.assert_close(
        dustbin_logit(logits, torch.tensor(classes)), logits[:, [0, 1, 3, 5, 6, 8]].logsumexp(1)
    )
    assert (dustbin_logit(logits, range(9)) == -math.inf).all()


def test_correction_on_a_case_with_a_known_posterior() -> None:
    """Three classes in S, one number observed; trained at share s, read at the natural share."""
    prior, s = np.array([0.02, 0.03, 0.05, 0.9]), 0.5  # the last is the rest
    likelihood = np.array([0.7, 0.2, 0.4, 0.1])
    share = prior[:3].sum()
    trained = np.append(prior[:3] / share * s, 1 - s) * likelihood
    true = prior * likelihood
    logits = np.log(trained)
    logits[3] += sampling_correction(s, share)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), true / true.sum(), rtol=1e-12)
    assert sampling_correction(0.5, 0.1) == pytest.approx(math.log(9))  # rare classes: positive
    assert sampling_correction(0.3, 0.3) == pytest.approx(0)
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="special_fraction: between 0 and 1"):
            sampling_correction(wrong, 0.5)
        with pytest.raises(ValueError, match="natural_share"):
            sampling_correction(0.5, wrong)


def test_fitted_bias_recovers_the_correction() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(20000, 4, generator=generator, dtype=torch.float64), 1)
    targets = torch.multinomial(p, 1, generator=generator)[:, 0]
    logits = p.log()
    logits[:, 3] -= 1.7
    assert fit_dustbin_bias(logits, targets) == pytest.approx(1.7, abs=0.05)


@pytest.mark.parametrize("weighted", [False, True])
def test_fitted_bias_is_the_best_of_a_grid(weighted: bool) -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(300, 5) * 4, torch.randint(0, 5, (300,))
    weights = torch.rand(300) if weighted else torch.ones(300)
    found = fit_dustbin_bias(logits, targets, weights if weighted else None)

    def loss(bias: float) -> float:
        moved = logits.double().clone()
        moved[:, -1] += bias
        nll = torch.nn.functional.cross_entropy(moved, targets, reduction="none")
        return float((nll * weights).sum())

    grid = np.arange(-6, 6, 0.01)
    best = float(grid[np.argmin([loss(bias) for bias in grid])])
    assert abs(found - best) <= 0.011
    assert loss(found) <= min(loss(found + 1e-4), loss(found - 1e-4), loss(best))


def test_fitted_bias_at_its_ends() -> None:
    logits = torch.randn(50, 4)
    assert fit_dustbin_bias(logits, torch.full((50,), 3)) == pytest.approx(10, abs=1e-6)
    assert fit_dustbin_bias(logits, torch.zeros(50, dtype=torch.long)) == pytest.approx(-10, abs=1e-6)
    assert fit_dustbin_bias(logits[:0], torch.zeros(0, dtype=torch.long)) == 0
    assert fit_dustbin_bias(logits, torch.full((50,), 3), torch.zeros(50)) == 0
    with pytest.raises(ValueError, match="weights"):
        fit_dustbin_bias(logits, torch.full((50,), 3), -torch.ones(50))


@pytest.mark.parametrize("top_n", [1, 3, 7])
@pytest.mark.parametrize("weight", [1.0, [0.3, 2.0, 0.0]])
def test_fixed_point_is_where_gradient_descent_ends(top_n: int, weight: float | list[float]) -> None:
    log_g, specialists = random_case(top_n, batch=20, scale=0.8)
    expected = combine_gradient_descent(log_g, specialists, gates(log_g, specialists, top_n, weight))
    found = combine(log_g, specialists, top_n=top_n, weight=weight, tolerance=1e-9)
    torch.testing.assert_close(found.exp(), expected.exp(), atol=1e-6, rtol=0)
    found = combine(log_g, specialists, top_n=top_n, weight=weight)
    torch.testing.assert_close(found.exp(), expected.exp(), atol=2e-6, rtol=0)


def test_gradient_vanishes_at_the_fixed_point() -> None:
    log_g, specialists = random_case(3, num_classes=12, num_specialists=5, batch=40)
    z = combine(log_g, specialists, top_n=12, weight=1.5, tolerance=1e-10).requires_grad_()
    weights = gates(log_g, specialists, 12, 1.5)
    objective(torch.log_softmax(z, 1), log_g, specialists, weights).sum().backward()
    assert z.grad is not None and float(z.grad.abs().max()) < 1e-8


@pytest.mark.parametrize("weight", [1.0, [0.5, 2.0, 3.0]])
def test_specialists_of_all_classes_give_the_arithmetic_mean(weight: float | list[float]) -> None:
    log_g, _ = random_case(0)
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(3, 5, 7, dtype=torch.float64), 2)
    nothing = torch.full((5, 1), -math.inf, dtype=torch.float64)
    specialists = [(list(range(7)), torch.cat([member.log(), nothing], 1)) for member in p]
    weights = torch.as_tensor(weight, dtype=torch.float64).expand(3)
    mean = (log_g.exp() + (weights[:, None, None] * p).sum(0)) / (1 + weights.sum())
    torch.testing.assert_close(combine(log_g, specialists, weight=weight).exp(), mean)


def test_one_specialist_in_closed_form() -> None:
    """q is the mean inside S; outside, the mean of the two masses in the generalist's proportions."""
    log_g, specialists = random_case(1, num_specialists=1, batch=30)
    (classes, log_p), outside = specialists[0], [c for c in range(7) if c not in specialists[0][0]]
    q = combine(log_g, specialists, top_n=7, weight=0.5).exp()
    p_g, p_m = log_g.exp(), log_p.exp()
    torch.testing.assert_close(q[:, classes], (p_g[:, classes] + 0.5 * p_m[:, :-1]) / 1.5)
    mass = p_g[:, outside].sum(1)
    expected = p_g[:, outside] * ((mass + 0.5 * p_m[:, -1]) / 1.5 / mass)[:, None]
    torch.testing.assert_close(q[:, outside], expected)


def test_specialists_that_say_what_the_generalist_says_change_nothing() -> None:
    log_g, _ = random_case(2, batch=50)
    same: Specialists = [
        (classes, specialist_logits_from_generalist(log_g, classes)) for classes in ([0, 1], [5, 1, 3])
    ]
    torch.testing.assert_close(combine(log_g, same, top_n=7), log_g)


def test_specialists_that_are_never_active_change_nothing() -> None:
    log_g, specialists = random_case(5, batch=60)
    untouched: Specialists = [([0, 1], torch.log_softmax(torch.randn(60, 3).double(), 1))]
    log_g[:, :2] -= 50  # nobody takes anything for class 0 or 1
    log_g = torch.log_softmax(log_g, 1).float()
    assert torch.equal(combine(log_g, untouched), log_g)
    with_others = combine(log_g, [*specialists, *untouched])
    torch.testing.assert_close(with_others, combine(log_g, specialists), atol=1e-6, rtol=1e-6)
    assert torch.equal(combine(log_g, specialists, weight=0.0), log_g)
    assert torch.equal(combine(log_g, []), log_g)
    idle = ~active_specialists(log_g, [classes for classes, _ in specialists]).any(1)
    assert torch.equal(with_others[idle], log_g[idle])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    num_classes=st.integers(3, 12),
    num_specialists=st.integers(1, 5),
    top_n=st.integers(1, 4),
    weight=st.floats(0.01, 20),
    scale=st.floats(0.1, 12),
)
def test_objective_falls_and_the_result_is_a_distribution_and_a_minimum(
    seed: int, num_classes: int, num_specialists: int, top_n: int, weight: float, scale: float
) -> None:
    log_g, specialists = random_case(seed, num_classes, num_specialists, scale=scale)
    weights = gates(log_g, specialists, top_n, weight)
    before = objective(log_g, log_g, specialists, weights)
    for steps in (1, 2, 3, 5, 9, 40):
        q = combine(log_g, specialists, top_n=top_n, weight=weight, tolerance=0.0, max_iterations=steps)
        torch.testing.assert_close(q.exp().sum(1), torch.ones(5, dtype=torch.float64))
        now = objective(q, log_g, specialists, weights)
        assert (now <= before + 1e-10 * (1 + before.abs())).all()
        before = now
    best = combine(log_g, specialists, top_n=top_n, weight=weight)
    value = objective(best, log_g, specialists, weights)
    other = torch.softmax(torch.randn(5, num_classes, dtype=torch.float64), 1)
    for mixed in (0.01, 0.3, 1.0):  # convex: no point on the way to another is below
        elsewhere = ((1 - mixed) * best.exp() + mixed * other).log()
        assert (value <= objective(elsewhere, log_g, specialists, weights) + 1e-6 * (1 + weight)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), top_n=st.integers(1, 4))
def test_order_of_specialists_and_of_examples_and_of_classes_is_immaterial(seed: int, top_n: int) -> None:
    log_g, specialists = random_case(seed, num_specialists=4, batch=12)
    weight = [0.5, 1.0, 2.0, 0.1]
    q = combine(log_g, specialists, top_n=top_n, weight=weight, tolerance=1e-10)
    order = torch.randperm(4).tolist()
    moved = combine(
        log_g,
        [specialists[m] for m in order],
        top_n=top_n,
        weight=[weight[m] for m in order],
        tolerance=1e-10,
    )
    torch.testing.assert_close(moved, q, atol=1e-7, rtol=1e-7)
    rows = torch.randperm(12)[:7]
    part = combine(
        log_g[rows],
        [(classes, log_p[rows]) for classes, log_p in specialists],
        top_n=top_n,
        weight=weight,
        tolerance=1e-10,
    )
    torch.testing.assert_close(part, q[rows], atol=1e-7, rtol=1e-7)
    turned: Specialists = [
        (classes[::-1], torch.cat([log_p[:, :-1].flip(1), log_p[:, -1:]], 1))
        for classes, log_p in specialists
    ]
    torch.testing.assert_close(
        combine(log_g, turned, top_n=top_n, weight=weight, tolerance=1e-10), q, atol=1e-7, rtol=1e-7
    )


def test_extreme_probabilities_stay_finite() -> None:
    log_g = torch.tensor([[0.0, -300.0, -300.0, -800.0], [0.0, -math.inf, -40.0, -math.inf]])
    specialists: Specialists = [([0, 1], torch.tensor([[-900.0, -900.0, 0.0], [-math.inf, 0.0, -math.inf]]))]
    q = combine(log_g, specialists)
    assert not q.isnan().any() and q.dtype == torch.float32
    torch.testing.assert_close(q.exp().sum(1), torch.ones(2))
    torch.testing.assert_close(q[1].exp(), torch.tensor([0.5, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(q[0].exp(), torch.tensor([0.5, 0.0, 0.5, 0.0]))


def test_input_is_left_alone() -> None:
    log_g, specialists = random_case(0)
    copies = [log_g.clone(), *[log_p.clone() for _, log_p in specialists]]
    combine(log_g.requires_grad_(), specialists, top_n=3)
    assert all(torch.equal(a, b) for a, b in zip(copies, [log_g, *[p for _, p in specialists]], strict=True))


def test_wrong_arguments_are_told() -> None:
    log_g, specialists = random_case(0)
    with pytest.raises(ValueError, match="weight: one number, or one for each of 3"):
        combine(log_g, specialists, weight=[1.0])
    with pytest.raises(ValueError, match="weight: finite and at least 0"):
        combine(log_g, specialists, weight=-1.0)
    with pytest.raises(ValueError, match="top_n: at least 1"):
        combine(log_g, specialists, top_n=0)
    with pytest.raises(ValueError, match=r"specialist of 2 classes: shape \(5, 3\), got \(5, 4\)"):
        combine(log_g, [([0, 1], torch.zeros(5, 4))])


def test_quick() -> None:
    """10,000 x 100 x 10: below 0.1 s on one core; the bound is loose, and on processor time."""
    log_g = torch.log_softmax(torch.randn(10_000, 100) * 3, 1)
    specialists: Specialists = []
    for m in range(10):
        classes = list(range(10 * m, 10 * m + 10))
        logits = specialist_logits_from_generalist(log_g, classes) + torch.randn(10_000, 11)
        specialists.append((classes, torch.log_softmax(logits, 1)))
    began = time.process_time()
    combine(log_g, specialists)
    assert time.process_time() - began < 1


def test_a_class_that_the_generalist_excludes_may_end_with_much() -> None:
    """Contradicting dustbins push mass out of what both know; from 1e-17 it grows slowly at first."""
    log_g = torch.tensor([[0.5, 0.5, 3e-17, 0.0]], dtype=torch.float64).clamp(min=1e-30).log()
    one = ([0], torch.tensor([[0.2, 0.8]], dtype=torch.float64).log())
    two = ([1], torch.tensor([[0.2, 0.8]], dtype=torch.float64).log())
    q = combine(log_g, [one, two], top_n=2)
    # By hand: q = (a, a, b), minimise -(1 + 2 * 0.2) log a - 2 * 0.8 log(a + b) with 2 a + b = 1.
    a = torch.linspace(0.01, 0.5, 400001, dtype=torch.float64)
    value = -1.4 * a.log() - 1.6 * (1 - a).log()
    best = float(a[value.argmin()])
    assert q.exp()[0, :2].tolist() == pytest.approx([best, best], abs=1e-5)
    assert float(q.exp()[0, 2:].sum()) == pytest.approx(1 - 2 * best, abs=1e-5)
