"""The teachers' temperatures: what is fitted, how it is shrunk, and what the mean gains by it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.store_covariance import SparseMoments, softened
from ensemble_kd.ensemble.top_k import compress, restore
from ensemble_kd.train.calibration import fit_temperature
from ensemble_kd.train.teacher_calibration import FEWEST, MOST, fit_shrunk


def sample(rows: int, scale: float, seed: int = 0, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `scale` times too large for labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_many_rows_give_back_the_scale(scale: float) -> None:
    logits, labels = sample(4000, scale)
    found = fit_shrunk(logits, labels)
    assert found == pytest.approx(scale, rel=0.07)
    assert found == pytest.approx(fit_temperature(logits, labels), rel=0.01)  # no penalty left to see
    assert found == fit_shrunk(logits, labels) == float(f"{found:.4g}")


def test_few_rows_are_shrunk_and_fewer_left_alone() -> None:
    logits, labels = sample(FEWEST + 10, 4.0, classes=3)
    free, shrunk = fit_temperature(logits, labels), fit_shrunk(logits, labels)
    assert 1 < shrunk < free
    # It is the minimum of what it says it minimises.

    def loss(t: float) -> float:
        q = logits / t
        nll = np.log(np.exp(q).sum(1)) - q[np.arange(len(q)), labels]
        return float(nll.sum() + (math.log(t) / math.log(2)) ** 2 / 2)

    assert loss(shrunk) < min(loss(shrunk * 1.01), loss(shrunk / 1.01))
    assert fit_shrunk(logits[: FEWEST - 1], labels[: FEWEST - 1]) == 1.0


def test_answers_that_are_all_right_keep_the_temperature_finite() -> None:
    labels = np.arange(200) % 4
    logits = 3.0 * np.eye(4)[labels]
    assert 0.2 < fit_shrunk(logits, labels) < 1


def test_very_many_rows_are_thinned_evenly() -> None:
    logits, labels = sample(3 * MOST, 2.0)
    assert fit_shrunk(logits, labels) == fit_shrunk(logits[::3], labels[::3])


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_the_mean_divides_each_member_by_its_own(mean: str) -> None:
    torch.manual_seed(0)
    logits, own = torch.randn(7, 3, 4), [0.5, 2.0, 3.0]
    scaled = logits / torch.tensor(own)[:, None]
    for weights in (None, [1.0, 0.0, 3.0]):
        found = mean_logits(logits, 2.0, mean, weights, own)
        torch.testing.assert_close(found, mean_logits(scaled, 2.0, mean, weights))
    with pytest.raises(ValueError, match="calibration: one per member, 3"):
        mean_logits(logits, 2.0, mean, None, [1.0])


def test_values_have_no_scale_of_their_own() -> None:
    values = torch.tensor([[[2.0], [4.0]]])
    assert mean_logits(values, 1.0, "value", None, [0.5, 2.0]).tolist() == [[3.0]]


def right(logits: torch.Tensor, labels: np.ndarray, own: list[float] | None) -> float:
    answers = mean_logits(logits, 1.0, calibration=own).argmax(1)
    return float((answers == torch.from_numpy(labels)).float().mean())


def test_a_loud_poor_member_no_longer_drowns_a_quiet_good_one() -> None:
    """Two kinds of opposite scale: calibrated, the mean is better than either; two of one kind stay alike."""
    rng = np.random.default_rng(1)
    labels = rng.integers(5, size=4000)
    truth = np.eye(5)[labels]

    def member(signal: float, scale: float) -> np.ndarray:
        found: np.ndarray = scale * (signal * truth + rng.normal(size=truth.shape))
        return found

    good, poor = member(2.5, 0.3), member(1.0, 8.0)
    fit, held = slice(0, 2000), slice(2000, None)
    own = [fit_shrunk(logits[fit], labels[fit]) for logits in (good, poor)]
    assert own[0] < 1 < own[1]
    both = torch.from_numpy(np.stack([good, poor], 1))[held].float()
    before, after = (right(both, labels[held], scales) for scales in (None, own))
    alone = right(both[:, :1], labels[held], None)
    assert before < alone - 0.1 and after > alone
    alike = [member(1.8, 2.0) for _ in range(3)]
    scales = [fit_shrunk(logits[fit], labels[fit]) for logits in alike]
    three = torch.from_numpy(np.stack(alike, 1))[held].float()
    assert abs(right(three, labels[held], scales) - right(three, labels[held], None)) < 0.015


def test_sparse_moments_are_those_of_calibrated_members() -> None:
    torch.manual_seed(0)
    kept, own = compress(3 * torch.randn(50, 2, 12), 4), [0.5, 3.0]
    moments = SparseMoments(12)
    moments.update(kept, 2.0, own)
    p = softened(restore(kept, 12), 2.0, own).double().numpy()
    np.testing.assert_allclose(moments.mean, p.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.covariance(), np.cov(p.T, bias=True), atol=1e-6)
