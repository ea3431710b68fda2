"""Objectives against closed forms, limits and an independent reference in numpy float64."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ensemble_kd import objectives
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import OBJECTIVES, Batch, build_objective, stack, stacks_with
from ensemble_kd.objectives.hard import cross_entropy
from ensemble_kd.objectives.logits import KL, LogitMSE
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss

SOFT = [KL(temperature=0.5), KL(temperature=4.0), KL(temperature=500.0), LogitMSE()]


def batch_of(labels: list[int]) -> Batch:
    return Batch(torch.zeros(len(labels), 1), torch.tensor(labels))


def loss_of(objective: Any, z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return objective(Outputs(z), Outputs(v), batch_of([0] * len(z)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_kl(z: np.ndarray, v: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(v / temperature), softmax(z / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def reference_mse(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 * (((z - z.mean(-1, keepdims=True)) - (v - v.mean(-1, keepdims=True))) ** 2).sum(-1)


def test_closed_forms() -> None:
    z, v = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # p = (3/4, 1/4), q = (1/2, 1/2)
    torch.testing.assert_close(loss_of(KL(1.0), z, v), torch.tensor([expected]))
    torch.testing.assert_close(loss_of(KL(2.0), z, 2 * v), torch.tensor([4 * expected]))
    expected = 0.5 * 2 * (math.log(3.0) / 2) ** 2
    torch.testing.assert_close(loss_of(LogitMSE(), z, v), torch.tensor([expected]))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    classes=st.integers(2, 12),
    temperature=st.floats(0.3, 1000),
    scale=st.floats(0.1, 6),
    seed=st.integers(0, 999),
)
def test_against_the_reference(batch: int, classes: int, temperature: float, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    z, v = generator.normal(size=(2, batch, classes)).astype(np.float32) * np.float32(scale)
    z64, v64 = z.astype(np.float64), v.astype(np.float64)
    kl = loss_of(KL(temperature), torch.from_numpy(z), torch.from_numpy(v))
    assert kl.dtype == torch.float32 and kl.shape == (batch,)
    np.testing.assert_allclose(kl.numpy(), reference_kl(z64, v64, temperature), rtol=2e-4, atol=2e-3)
    mse = loss_of(LogitMSE(), torch.from_numpy(z), torch.from_numpy(v))
    np.testing.assert_allclose(mse.numpy(), reference_mse(z64, v64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", SOFT)
def test_agreement_gives_zero_and_no_gradient(objective: Any) -> None:
    z = (torch.randn(4, 7) * 3).requires_grad_()
    loss = loss_of(objective, z, z.detach() + 5.0)  # logits count up to a constant
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-4, rtol=0)
    loss.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.zeros(4, 7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [20.0, 100.0, 1000.0])
def test_high_temperature_gradient_tends_to_the_difference_of_logits(temperature: float) -> None:
    """N * grad -> z - v, zero-meaned; the error falls like 1/T (arXiv 1503.02531, section 2.1)."""
    torch.manual_seed(0)
    z, v = torch.randn(8, 10, dtype=torch.float64) * 3, torch.randn(8, 10, dtype=torch.float64) * 3
    z -= z.mean(1, keepdim=True)
    v -= v.mean(1, keepdim=True)
    z.requires_grad_()
    loss_of(KL(temperature), z, v).sum().backward()
    assert z.grad is not None
    limit = (z - v).detach()
    error = (10 * z.grad - limit).abs().max() / limit.abs().max()
    assert error < 4 / temperature
    loss = loss_of(KL(temperature), z.detach(), v)
    mse = loss_of(LogitMSE(), z.detach(), v)
    torch.testing.assert_close(loss * 10, mse, rtol=10 / temperature, atol=0)


def test_logit_mse_gradient_is_the_difference() -> None:
    z, v = torch.randn(3, 6).requires_grad_(), torch.randn(3, 6)
    loss_of(LogitMSE(), z, v).sum().backward()
    difference = (z - v).detach()
    torch.testing.assert_close(z.grad, difference - difference.mean(1, keepdim=True))


@pytest.mark.parametrize("objective", SOFT)
def test_gradient_reaches_the_student_only(objective: Any) -> None:
    z, v = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    loss_of(objective, z, v).sum().backward()
    assert v.grad is None and z.grad is not None and z.grad.abs().sum() > 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("soft", SOFT)
def test_mean_over_the_batch(soft: Any, alpha: float) -> None:
    loss = DistillationLoss(soft, alpha, label_smoothing=0.1)
    z, v, labels = torch.randn(4, 5), torch.randn(4, 5), [0, 1, -1, 3]
    once = loss(Outputs(z), Outputs(v), batch_of(labels))
    twice = loss(Outputs(z.repeat(2, 1)), Outputs(v.repeat(2, 1)), batch_of(labels * 2))
    assert once.shape == ()
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 40.0])
def test_sum_over_the_classes(temperature: float) -> None:
    """Classes that neither net gives any mass change nothing; a mean over classes would."""
    z, v = torch.randn(4, 5), torch.randn(4, 5)
    nothing = torch.full((4, 15), -1e5)
    torch.testing.assert_close(
        loss_of(KL(temperature), z, v),
        loss_of(KL(temperature), torch.cat([z, nothing], 1), torch.cat([v, nothing], 1)),
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 1000.0])
def test_extreme_logits_stay_finite(temperature: float) -> None:
    z = torch.tensor([[60.0, -60.0, 0.0]], requires_grad=True)
    v = torch.tensor([[-float("inf"), 60.0, -60.0]])
    loss = loss_of(KL(temperature), z, v).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()  # type: ignore[arg-type]


def test_half_precision_is_computed_in_float32() -> None:
    z, v = torch.randn(3, 5).bfloat16(), torch.randn(3, 5)
    for objective in SOFT:
        loss = loss_of(objective, z, v)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, loss_of(objective, z.float(), v))
    assert cross_entropy(z, torch.tensor([0, 1, 2])).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    z, labels = torch.randn(4, 6, requires_grad=True), torch.tensor([2, -1, 0, 5])
    loss = cross_entropy(z, labels, smoothing)
    log_q = np.log(softmax(z.detach().double().numpy()))
    target = np.full((4, 6), smoothing / 6)
    target[[0, 2, 3], [2, 0, 5]] += 1 - smoothing
    expected = -(target * log_q).sum(1)
    expected[1] = 0
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5)
    loss.sum().backward()
    assert z.grad is not None and torch.equal(z.grad[1], torch.zeros(6))


def test_mixture_is_the_weighted_average_and_unlabelled_rows_are_soft_only() -> None:
    z, v, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([1, -1, 3, -1])
    loss = DistillationLoss(KL(3.0), 0.7)(Outputs(z), Outputs(v), Batch(z, labels))
    soft, hard = loss_of(KL(3.0), z, v), torch.zeros(4)
    for i in (0, 2):
        hard[i] = -torch.log_softmax(z[i], 0)[labels[i]]
    torch.testing.assert_close(loss, (0.7 * soft + 0.3 * hard).mean())
    nobody = DistillationLoss(KL(3.0), 0.7)(Outputs(z), Outputs(v), batch_of([-1] * 4))
    torch.testing.assert_close(nobody, 0.7 * soft.mean())


def test_alpha_zero_never_reads_the_teacher() -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"the teacher's {name} was read")

    z, batch = torch.randn(3, 5), batch_of([0, 1, 2])
    hard_only = DistillationLoss(KL(3.0), 0.0)
    expected = cross_entropy(z, batch.labels).mean()
    torch.testing.assert_close(hard_only(Outputs(z), Untouchable(), batch), expected)  # type: ignore[arg-type]
    torch.testing.assert_close(DistillationLoss()(Outputs(z), None, batch), expected)
    assert hard_only.needs == frozenset() and DistillationLoss(KL(3.0), 0.5).needs == {"logits"}


def test_alpha_one_never_reads_the_labels() -> None:
    z, v = torch.randn(3, 5), torch.randn(3, 5)
    batch = Batch(z, None)  # type: ignore[arg-type]
    loss = DistillationLoss(KL(3.0), 1.0)(Outputs(z), Outputs(v), batch)
    torch.testing.assert_close(loss, loss_of(KL(3.0), z, v).mean())


def test_mixture_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no soft loss"):
        DistillationLoss(None, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        DistillationLoss(KL(1.0), 1.5)
    with pytest.raises(ValueError, match="no teacher outputs"):
        DistillationLoss(KL(1.0), 0.5)(Outputs(torch.zeros(1, 2)), None, batch_of([0]))


def test_batches_are_cut_with_their_teacher() -> None:
    batch = Batch(torch.zeros(4, 2), torch.arange(4), Outputs(torch.arange(8.0).view(4, 2)))
    part = batch[1:3]
    assert len(part) == 2 and part.labels.tolist() == [1, 2]
    assert part.teacher is not None and part.teacher.logits.tolist() == [[2.0, 3.0], [4.0, 5.0]]


# ------------------------------------------------------------------------------------- members at once


@settings(max_examples=40, deadline=None)
@given(
    temperatures=st.lists(st.floats(0.3, 1000), min_size=2, max_size=4),
    classes=st.integers(2, 20),
    seed=st.integers(0, 999),
)
def test_a_stack_gives_each_members_losses(temperatures: list[float], classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    shape = (len(temperatures), 5, classes)
    z, v = torch.randn(shape).mul(3).requires_grad_(), torch.randn(shape) * 3
    for members in ([KL(t) for t in temperatures], [KL(temperatures[0])] * len(z), [LogitMSE()] * len(z)):
        losses = loss_of(stack(members), z, v)
        assert losses.shape == shape[:2] and losses.dtype == torch.float32
        alone = torch.stack([loss_of(m, z[i], v[i]) for i, m in enumerate(members)])
        # float32 loses about 1e-7 T^2, which is what float64 from T = 32 on is for
        torch.testing.assert_close(losses, alone, rtol=1e-3, atol=1e-3)
        (found,), (wanted,) = (torch.autograd.grad(x.sum(), z) for x in (losses, alone))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_numbers_that_all_share_stay_numbers() -> None:
    assert stack([KL(2.0), KL(2.0)]) == KL(2.0)
    made = stack([KL(2.0), KL(3.0)])
    assert isinstance(made, KL) and torch.as_tensor(made.temperature).shape == (2, 1, 1)


def test_what_makes_one_stack() -> None:
    class Silent:
        needs = frozenset({"logits"})

    assert stacks_with(KL(2.0)) == stacks_with(KL(3.0)) != stacks_with(LogitMSE())
    assert stacks_with(Silent()) is None  # type: ignore[arg-type]


MEMBERS = [
    DistillationLoss(KL(2.0), 0.5),
    DistillationLoss(None, 0.0, 0.2),
    DistillationLoss(KL(40.0), 1.0),
    DistillationLoss(LogitMSE(), 0.3, 0.1),
    DistillationLoss(KL(2.0), 0.0),
    DistillationLoss(KL(1.0), 0.9, 0.1),
]


@pytest.mark.parametrize("which", [[0, 1, 2, 3, 4, 5], [0, 2, 5], [2, 2], [1, 4], [3], [1], [5, 3]])
@pytest.mark.parametrize("shared", [True, False])
def test_the_mixture_of_each_member(which: list[int], shared: bool) -> None:
    members = [MEMBERS[i] for i in which]
    torch.manual_seed(0)
    z, v = torch.randn(len(which), 6, 5, requires_grad=True), torch.randn(len(which), 6, 5)
    labels = torch.randint(-1, 5, (6,) if shared else (len(which), 6))
    found = StackedLoss(members)(Outputs(z), Outputs(v), Batch(labels, labels))
    batches = [batch_of(labels.expand(len(which), 6)[i].tolist()) for i in range(len(which))]
    each = [m(Outputs(z[i]), Outputs(v[i]), batches[i]) for i, m in enumerate(members)]
    torch.testing.assert_close(found, torch.stack(each))
    (ours,), (theirs,) = (torch.autograd.grad(x, z) for x in (found.sum(), torch.stack(each).sum()))
    torch.testing.assert_close(ours, theirs)


def test_a_stack_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no teacher outputs"):
        StackedLoss(MEMBERS[:2])(Outputs(torch.zeros(2, 1, 3)), None, batch_of([0]))


def test_build_objective() -> None:
    assert build_objective({"name": "kl"}, 3.0) == KL(3.0)
    assert build_objective({"name": "mse"}, 3.0) == LogitMSE()


@pytest.mark.parametrize(
    ("settings_", "temperature", "message"),
    [
        ({"name": "lk"}, 3.0, "student.objective: unknown objective 'lk'; did you mean 'kl'?"),
        ({}, 3.0, f"student.objective.name: missing; known here: {', '.join(sorted(OBJECTIVES))}"),
        (
            {"name": "kl", "temperature": 2.0},
            3.0,
            "student.objective.temperature: set student.temperature instead",
        ),
        (
            {"name": "mse", "weight": 2.0},
            3.0,
            "student.objective.weight: unknown setting of 'mse'; known here: none",
        ),
        ({"name": "kl"}, 0.0, "student.temperature: input should be greater than 0, got 0.0"),
        ({"name": "kl"}, float("nan"), "student.temperature: input should be a finite number, got nan"),
    ],
)
def test_wrong_settings_are_told(settings_: dict[str, Any], temperature: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_objective(settings_, temperature)
    assert message in caught.value.problems


def test_objectives_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        KL(temperature="4")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        KL(temperature=True)
    with pytest.raises(AttributeError):
        KL(1.0).temperature = 2.0  # type: ignore[misc]


NEW_METHOD = '''
from typing import Annotated, ClassVar, Literal
from pydantic import Field
from pydantic.dataclasses import dataclass
from ensemble_kd.objectives.base import OBJECTIVES, STRICT, register

@register("new_method")
@dataclass(frozen=True, config=STRICT)
class NewMethod:
    """A test's own."""
    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Literal["last", "all"] = "last"
    margin: Annotated[float, Field(ge=0)] = 0.0
    def __call__(self, student, teacher, batch):
        return student.logits.sum(1) + self.margin
'''


def test_a_method_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new_method.py").write_text(NEW_METHOD)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    kept = dict(OBJECTIVES)
    try:
        objectives.import_all()
        made = build_objective({"name": "new_method", "margin": 2}, 3.0)
        assert made.needs == {"hidden"}
        assert made(Outputs(torch.ones(1, 2)), Outputs(torch.ones(1, 2)), batch_of([0])).tolist() == [4.0]
        with pytest.raises(ConfigError) as caught:
            build_objective({"name": "new_method", "margin": -1.0, "layers": "first", "margn": 1}, 3.0)
        assert caught.value.problems == [
            "student.objective.margn: unknown setting of 'new_method'; did you mean 'margin'?",
            "student.objective.layers: input should be 'last' or 'all', got 'first'",
            "student.objective.margin: input should be greater than or equal to 0, got -1.0",
        ]
    finally:
        OBJECTIVES.clear()
        OBJECTIVES.update(kept)
        sys.modules.pop("ensemble_kd.objectives.new_method", None)
