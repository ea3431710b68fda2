"""Top-k storage: what is kept is right, and the error bound is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.top_k import compress, error_bound, expand, restore

TEMPERATURES = [0.05, 0.3, 0.9, 1.0, 1.1, 2.0, 4.0, 20.0, 1000.0]


def total_variation(logits: torch.Tensor, log_p: torch.Tensor, temperature: float) -> torch.Tensor:
    p = torch.softmax(logits.double() / temperature, -1)
    return 0.5 * (p - log_p.double().exp()).abs().sum(-1)


def check_bound(logits: torch.Tensor, k: int, temperature: float) -> None:
    top_k = compress(logits, k)
    num_classes = logits.shape[-1]
    log_p = expand(top_k, num_classes, temperature)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(logits.shape[:-1]), atol=1e-4, rtol=0)
    error = total_variation(logits, log_p, temperature)
    bound = error_bound(top_k, num_classes, temperature)
    assert bound.shape == logits.shape[:-1] and (bound <= 1).all()
    assert (error <= bound).all(), (error - bound).max()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 40)),
    k=st.integers(1, 45),
    temperature=st.one_of(st.sampled_from(TEMPERATURES), st.floats(0.05, 1000)),
    scale=st.floats(0.0, 60),
    offset=st.sampled_from([0.0, 1000.0, -5e4]),
    seed=st.integers(0, 9999),
)
def test_bound_on_random_logits(
    shape: tuple[int, int, int], k: int, temperature: float, scale: float, offset: float, seed: int
) -> None:
    torch.manual_seed(seed)
    check_bound(torch.randn(shape) * scale + offset, k, temperature)


@settings(max_examples=150, deadline=None)
@given(
    kept=st.lists(st.floats(-12, 12), min_size=1, max_size=4),
    at_cap=st.integers(0, 6),
    between=st.lists(st.floats(0, 1), max_size=3),
    depth=st.floats(0.0, 80.0),
    low=st.integers(0, 30),
    temperature=st.one_of(st.sampled_from(TEMPERATURES), st.floats(0.05, 1000)),
)
def test_bound_on_adversarial_rests(
    kept: list[float], at_cap: int, between: list[float], depth: float, low: int, temperature: float
) -> None:
    """The corner cases of the derivation: some of the rest at the cap, a few between, others near nothing."""
    cap = min(kept)
    rest = [cap] * at_cap + [cap - depth * part for part in between] + [cap - depth] * low
    check_bound(torch.tensor([[kept + rest]]), len(kept), temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_bound_on_the_worst_roundings(temperature: float) -> None:
    """Logits half way between float16 numbers, and beyond its range."""
    steps = torch.arange(1, 400, dtype=torch.float64)
    for base in (2.0**-3, 1.0, 8.0, 32.0):
        halfway = -(base + (steps + 0.5) * base / 1024).float()
        check_bound(torch.cat([torch.zeros(1), halfway])[None, None], 200, temperature)
        check_bound(torch.cat([torch.zeros(1), halfway])[None, None], 400, temperature)
    check_bound(torch.tensor([[[0.0, -7e4, -1e9, -float("inf")], [3e38, 0.0, -3e38, 1.0]]]), 2, temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_classes_kept_is_exact_but_for_rounding(temperature: float) -> None:
    logits = torch.randn(5, 2, 8) * 3
    for k in (8, 20):
        top_k = compress(logits, k)
        assert top_k.values.shape == (5, 2, 8) and torch.isinf(top_k.rest).all()
        assert error_bound(top_k, 8, temperature).max() < 0.01
        check_bound(logits, k, temperature)


def test_even_rest_is_restored_and_the_bound_says_so() -> None:
    logits = torch.full((1, 1, 50), -2.0)
    logits[..., 7], logits[..., 3] = 3.0, 1.0
    for temperature in (0.5, 1.0, 5.0):
        torch.testing.assert_close(
            expand(compress(logits, 3), 50, temperature).exp(),
            torch.softmax(logits / temperature, -1),
            atol=1e-4,
            rtol=0,
        )
        # The third kept class is at the cap, as are all others: nothing is left to be unknown.
        assert error_bound(compress(logits, 3), 50, temperature).max() < 2e-3


def test_bound_is_tight_at_temperature_one() -> None:
    """All the rest's mass on classes at the cap: the bound is met."""
    logits = torch.tensor([[[2.0, 0.0, 0.0] + [-60.0] * 5]])
    top_k = compress(logits, 2)
    error = total_variation(logits, expand(top_k, 8, 1.0), 1.0)
    torch.testing.assert_close(error_bound(top_k, 8, 1.0), error, atol=5e-4, rtol=0)


def test_kept_probabilities_and_rest_mass_at_temperature_one() -> None:
    logits = torch.randn(4, 3, 30) * 4
    top_k = compress(logits, 5)
    assert top_k.values.dtype == torch.float16 and top_k.rest.dtype == torch.float32
    assert top_k.indices.dtype == torch.int16 and top_k.values.shape == (4, 3, 5)
    p = torch.softmax(logits, -1)
    restored = expand(top_k, 30, 1.0).exp()
    index = top_k.indices.long()
    np.testing.assert_allclose(restored.gather(-1, index), p.gather(-1, index), rtol=2e-2, atol=1e-5)
    assert torch.equal(index[..., 0], logits.argmax(-1))


def test_restored_logits_serve_the_mean_at_any_temperature() -> None:
    logits = torch.randn(4, 3, 6)
    restored = restore(compress(logits.half(), 6), 6)
    for temperature in (1.0, 7.0):
        torch.testing.assert_close(
            mean_logits(restored, temperature), mean_logits(logits, temperature), atol=5e-3, rtol=0
        )


def test_many_classes_need_wider_indices() -> None:
    logits = torch.zeros(1, 1, 2**15 + 5)
    logits[..., -1] = 4.0
    top_k = compress(logits, 1)
    assert top_k.indices.dtype == torch.int32 and top_k.indices.item() == 2**15 + 4
    check_bound(logits, 1, 3.0)
