"""The mean of the members against numpy float64."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.ensemble.combine import mean_logits


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(logits: np.ndarray, temperature: float, mean: str, weights: np.ndarray) -> np.ndarray:
    """Log of the mean distribution (B, C)."""
    log_p = log_softmax(logits / temperature)  # (B, M, C)
    weights = weights / weights.sum()
    if mean == "geometric":
        return log_softmax((log_p * weights[:, None]).sum(1))
    with np.errstate(divide="ignore"):
        weighted = log_p + np.log(weights)[:, None]
    top = weighted.max(1, keepdims=True)
    return np.log(np.exp(weighted - top).sum(1)) + top[:, 0]


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(2, 9)),
    temperature=st.floats(0.05, 1000),
    scale=st.floats(0.01, 30),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=5, max_size=5),
    seed=st.integers(0, 999),
)
def test_against_the_reference(
    mean: str,
    shape: tuple[int, int, int],
    temperature: float,
    scale: float,
    dtype: torch.dtype,
    weights: list[float],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(shape) * scale).to(dtype)
    given_ = weights[: shape[1]] if sum(weights[: shape[1]]) > 0 else None
    v = mean_logits(logits, temperature, mean, given_)
    assert v.shape == (shape[0], shape[2]) and torch.isfinite(v).all()
    if not shape[0]:
        return
    expected = reference(logits.double().numpy(), temperature, mean, np.array(given_ or [1.0] * shape[1]))
    np.testing.assert_allclose(v.double().numpy(), expected * temperature, rtol=2e-5, atol=1e-6 * temperature)
    p = torch.softmax(v.double() / temperature, 1).numpy()
    np.testing.assert_allclose(p, np.exp(expected), atol=2e-5)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_one_member_is_itself_up_to_a_constant(mean: str) -> None:
    logits = torch.randn(6, 1, 5) * 4
    v = mean_logits(logits, 3.0, mean)
    difference = v - logits[:, 0]
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=0)


def test_geometric_is_the_softmax_of_mean_logits_and_arithmetic_differs() -> None:
    logits, temperature = torch.randn(6, 3, 5) * 4, 2.0
    expected = torch.softmax(logits.mean(1) / temperature, 1)
    geometric = torch.softmax(mean_logits(logits, temperature, "geometric") / temperature, 1)
    arithmetic = torch.softmax(mean_logits(logits, temperature, "arithmetic") / temperature, 1)
    torch.testing.assert_close(geometric, expected)
    torch.testing.assert_close(arithmetic, torch.softmax(logits / temperature, 2).mean(1))
    assert (arithmetic - expected).abs().max() > 0.01


def test_arithmetic_softens_before_averaging() -> None:
    logits, temperature = torch.randn(6, 3, 5) * 4, 5.0
    later = torch.softmax(torch.softmax(logits, 2).mean(1).log() / temperature, 1)
    p = torch.softmax(mean_logits(logits, temperature) / temperature, 1)
    assert (p - later).abs().max() > 0.01


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_members_of_weight_zero_are_not_read(mean: str) -> None:
    logits = torch.randn(4, 3, 5)
    broken = logits.clone()
    broken[:, 1] = float("nan")
    weighted = mean_logits(broken, 2.0, mean, [1.0, 0.0, 3.0])
    torch.testing.assert_close(
        weighted, mean_logits(logits[:, [0, 2]], 2.0, mean, torch.tensor([0.25, 0.75]))
    )


def test_low_temperature_does_not_underflow() -> None:
    logits = torch.tensor([[[0.0, -40.0, -60.0], [0.0, -50.0, -45.0]]])
    v = mean_logits(logits, 0.05)
    np.testing.assert_allclose(
        v.numpy(),
        0.05 * reference(logits.double().numpy(), 0.05, "arithmetic", np.ones(2)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_impossible_classes_stay_impossible() -> None:
    logits = torch.tensor([[[0.0, 1.0, -float("inf")], [2.0, 0.0, -float("inf")]]])
    p = torch.softmax(mean_logits(logits, 2.0) / 2.0, 1)
    assert p[0, 2] == 0 and torch.isfinite(p).all()


def test_input_is_left_alone_and_no_gradient_flows() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    before = logits.detach().clone()
    assert not mean_logits(logits, 1.0).requires_grad
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]]
)
def test_wrong_weights_are_told(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights:"):
        mean_logits(torch.zeros(1, 2, 3), 1.0, weights=weights)


def test_wrong_mean_is_told() -> None:
    with pytest.raises(ValueError, match="mean: arithmetic or geometric, got 'harmonic'"):
        mean_logits(torch.zeros(1, 2, 3), 1.0, "harmonic")


def test_quick() -> None:
    """About 2 ms on one core; the bound is loose, for shared machines."""
    logits = torch.randn(4096, 10, 10)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        mean_logits(logits, 4.0)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.03
