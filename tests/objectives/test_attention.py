"""Objectives on attention against references in numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.attention import AttentionKL, AttentionMSE
from ensemble_kd.objectives.base import Batch, build_objective

BATCH = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
ALL: list[Any] = [AttentionMSE(), AttentionKL(), AttentionKL(heads="mean")]


def transformer(
    depth: int, heads: int = 2, mask: Tensor | None = None, length: int = 4, seed: int = 0
) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    scores = tuple(torch.randn(3, heads, length, length, generator=generator) * 2 for _ in range(depth))
    return Outputs(torch.zeros(3, 2), None, scores, mask)


def scores_of(outputs: Outputs) -> tuple[Tensor, ...]:
    assert outputs.attention is not None
    return outputs.attention


def mask_of(*lengths: int, length: int = 4) -> Tensor:
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(kind: str, ours: Tensor, theirs: Tensor, lengths: list[int]) -> np.ndarray:
    values = []
    for s, t, n in zip(ours.double().numpy(), theirs.double().numpy(), lengths, strict=True):
        s, t = s[:, :n, :n], t[:, :n, :n]  # (A, n, n)
        if kind == "mse":
            values.append(((s - t) ** 2).mean())
            continue
        q, p = softmax(s), softmax(t)
        if kind == "mean":
            q, p = q.mean(0, keepdims=True), p.mean(0, keepdims=True)
        values.append((p * np.log(p / q)).sum(-1).mean())
    return np.array(values)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    heads=st.integers(1, 3),
    blocks=st.integers(1, 3),
    times=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_against_the_references(lengths: list[int], heads: int, blocks: int, times: int, seed: int) -> None:
    student = transformer(blocks, heads, mask_of(*lengths), seed=seed)
    teacher = transformer(blocks * times, heads, mask_of(*lengths), seed=seed + 1)
    ours, theirs = scores_of(student), scores_of(teacher)
    for objective, kind in zip(ALL, ("mse", "kl", "mean"), strict=True):
        loss = objective(student, teacher, BATCH)
        assert loss.shape == (3,) and loss.dtype == torch.float32
        pairs = [(ours[m], theirs[m * times + times - 1]) for m in range(blocks)]
        expected = sum(reference(kind, *pair, lengths) for pair in pairs)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ALL)
def test_agreement_gives_zero(objective: Any) -> None:
    net = transformer(2, 2, mask_of(4, 2, 1))
    assert objective(net, net, BATCH).tolist() == [0.0, 0.0, 0.0]


def test_kl_does_not_see_constants_and_mse_does() -> None:
    student = transformer(1)
    shifted = Outputs(student.logits, None, (scores_of(student)[0] + 3.0,))
    torch.testing.assert_close(AttentionKL()(shifted, student, BATCH), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(AttentionMSE()(shifted, student, BATCH), torch.full((3,), 9.0))


def test_the_teacher_comes_first_in_the_divergence() -> None:
    student, teacher = transformer(1), transformer(1, seed=1)
    forward, backward = AttentionKL()(student, teacher, BATCH), AttentionKL()(teacher, student, BATCH)
    expected = reference("kl", scores_of(student)[0], scores_of(teacher)[0], [4, 4, 4])
    np.testing.assert_allclose(forward.numpy(), expected, rtol=1e-4)
    assert not torch.allclose(forward, backward, rtol=1e-2)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("masked", ["both", "student", "teacher"])
@pytest.mark.parametrize("padding", [-1e4, 1e4])
def test_padding_changes_nothing(objective: Any, masked: str, padding: float) -> None:
    student, teacher = transformer(2), transformer(4, seed=1)
    short = objective(student, teacher, BATCH)
    long = []
    for net, value, side in ((student, padding, "student"), (teacher, -0.9 * padding, "teacher")):
        grown = tuple(torch.nn.functional.pad(s, (0, 3, 0, 3), value=value) for s in scores_of(net))
        mask = mask_of(4, 4, 4, length=7) if masked in ("both", side) else None
        long.append(Outputs(net.logits, None, grown, mask))
    torch.testing.assert_close(objective(*long, BATCH), short)


@pytest.mark.parametrize("objective", ALL)
def test_masked_scores_get_no_gradient(objective: Any) -> None:
    mask = mask_of(4, 2, 3)
    student, teacher = transformer(1, 2, mask), transformer(1, 2, mask, seed=1)
    with torch.no_grad():
        scores_of(student)[0][1, :, 2:] = 1e30
    (scores,), (target,) = scores_of(student), scores_of(teacher)
    scores.requires_grad_()
    target.requires_grad_()
    objective(student, teacher, BATCH).sum().backward()
    assert target.grad is None and scores.grad is not None and torch.isfinite(scores.grad).all()
    both = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(scores)
    assert (scores.grad[~both] == 0).all() and (scores.grad[both] != 0).all()


@pytest.mark.parametrize("objective", ALL)
def test_an_example_without_a_position_counts_nothing(objective: Any) -> None:
    mask = mask_of(4, 0, 2)
    student, teacher = transformer(1, 2, mask), transformer(1, 2, mask, seed=1)
    scores = scores_of(student)[0].requires_grad_()
    loss = objective(student, teacher, BATCH)
    loss.sum().backward()
    assert loss[1] == 0 and (loss[[0, 2]] > 0).all()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("objective", ALL)
def test_half_precision_is_computed_in_float32(objective: Any) -> None:
    student, teacher = transformer(2), transformer(2, seed=1)
    half = Outputs(student.logits, None, tuple(scores.bfloat16() for scores in scores_of(student)))
    full = Outputs(student.logits, None, tuple(scores.float() for scores in scores_of(half)))
    loss = objective(half, teacher, BATCH)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(full, teacher, BATCH))


def test_the_mean_over_heads_takes_any_number_of_them() -> None:
    teacher = transformer(1, 3)
    (scores,) = scores_of(teacher)
    student = Outputs(teacher.logits, None, (scores.repeat(1, 2, 1, 1),))
    objective = AttentionKL(heads="mean")
    objective.prepare(student, teacher)
    torch.testing.assert_close(objective(student, teacher, BATCH), torch.zeros(3), atol=1e-6, rtol=0)
    assert (objective(transformer(1, 2, seed=2), teacher, BATCH) > 0).all()


def test_networks_that_do_not_fit() -> None:
    fewer, teacher = transformer(2, heads=4), transformer(4, heads=12)
    for objective in (AttentionMSE(), AttentionKL()):
        with pytest.raises(ConfigError) as caught:
            objective.prepare(fewer, teacher)
        assert caught.value.problems == [
            f"layers: the student's block {m} has 4 heads, the teacher's block {2 * m} 12; give the student "
            "12 heads, or use attention_kl with heads: mean"
            for m in (1, 2)
        ]
        with pytest.raises(
            ConfigError, match="over 4 positions, the teacher's block 2 over 6; both must read"
        ):
            objective.prepare(transformer(1), transformer(2, length=6))
        with pytest.raises(ConfigError, match="the student has 3, the teacher 4; write the pairs out"):
            objective.prepare(transformer(3), transformer(4))
        with pytest.raises(ConfigError, match="scores of 0 blocks, the teacher of 4"):
            objective.prepare(Outputs(torch.zeros(3, 2)), transformer(4))


def test_registered() -> None:
    made = build_objective({"name": "attention_mse", "layers": "last"}, 5.0)
    assert made == AttentionMSE(layers="last") and made.needs == {"attention"}
    last = made(transformer(1), transformer(3, seed=1), BATCH)
    written = AttentionMSE(layers=((1, 3),))(transformer(1), transformer(3, seed=1), BATCH)
    assert torch.equal(last, written)
    assert build_objective({"name": "attention_kl", "heads": "mean"}, 5.0) == AttentionKL(heads="mean")
