"""Objectives on the relations between a batch's rows, against references in numpy float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ensemble_kd.config import TrainingConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import build_terms
from ensemble_kd.objectives.relations import AT_ONCE
from ensemble_kd.objectives.whole_batches import relation_problems

ROWS = 7
ALL: list[dict[str, Any]] = [
    {"name": "rkd_distance"},
    {"name": "rkd_angle"},
    {"name": "darkrank_hard"},
    {"name": "darkrank_soft"},
    {"name": "similarity_preserving"},
    {"name": "correlation_congruence"},
    {"name": "crd", "size": 5},
]
NAMES = [fields["name"] for fields in ALL]


def batch(rows: int = ROWS) -> Batch:
    return Batch(torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.long))


def features(width: int, seed: int = 0, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def of(state: Tensor, name: str = "pooled") -> Outputs:
    return Outputs(state.new_zeros(len(state), 2), {"layer_1": state[:, :1], name: state})


def value(fields: dict[str, Any], ours: Tensor, theirs: Tensor) -> Tensor:
    """(B,); what is learned is drawn from the same seed each time."""
    objective: Any = build_objective(fields, 1.0)
    torch.manual_seed(0)
    learned = objective.prepare(of(ours), of(theirs))
    extra = () if learned is None else (learned,)
    losses: Tensor = objective(of(ours), of(theirs), batch(len(ours)), *extra)
    assert losses.shape == (len(ours),)
    return losses


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def distance_matrix(f: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(a - b) for b in f] for a in f])


def reference_distance(f: np.ndarray, g: np.ndarray) -> list[float]:
    relative = []
    for x in (f, g):
        d = distance_matrix(x)
        relative.append(d / d[d > 0].mean())
    n = len(f)
    return [
        sum(huber(relative[0][i, j] - relative[1][i, j]) for j in range(n) if j != i) / (n - 1)
        for i in range(n)
    ]


def reference_angle(f: np.ndarray, g: np.ndarray) -> list[float]:
    n = len(f)

    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    found = []
    for j in range(n):
        ends = [(i, k) for i in range(n) for k in range(n) if len({i, j, k}) == 3]
        found.append(float(np.mean([huber(cosine(f, i, j, k) - cosine(g, i, j, k)) for i, k in ends])))
    return found


def likelihood(scores: list[float]) -> float:
    """P of a list in the order in which it is."""
    p = 1.0
    for i, score in enumerate(scores):
        p *= math.exp(score) / sum(math.exp(other) for other in scores[i:])
    return p


def lists(f: np.ndarray, g: np.ndarray, n: int = 4) -> list[tuple[list[float], list[float]]]:
    """Per row the scores of the n that g has nearest, by both."""
    f, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, g))
    scores = [-3 * distance_matrix(x) ** 3 for x in (f, g)]
    found = []
    for i in range(len(f)):
        others = sorted((j for j in range(len(f)) if j != i), key=lambda j: -scores[1][i, j])[:n]
        found.append(([scores[0][i, j] for j in others], [scores[1][i, j] for j in others]))
    return found


def reference_hard(f: np.ndarray, g: np.ndarray) -> list[float]:
    return [-math.log(likelihood(ours)) for ours, _ in lists(f, g)]


def reference_soft(f: np.ndarray, g: np.ndarray) -> list[float]:
    found = []
    for ours, theirs in lists(f, g):
        kl = 0.0
        for order in itertools.permutations(range(4)):
            p, q = (likelihood([side[i] for i in order]) for side in (theirs, ours))
            kl += p * math.log(p / q)
        found.append(kl)
    return found


def reference_similarity(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    grams = [x @ x.T for x in (f, g)]
    grams = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in grams]
    difference: np.ndarray = ((grams[0] - grams[1]) ** 2).mean(1)
    return difference


def reference_congruence(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    kernels = []
    for x in (f, g):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernels.append(math.exp(-0.8) * sum((0.8 * x @ x.T) ** p / math.factorial(p) for p in range(3)))
    difference: np.ndarray = ((kernels[0] - kernels[1]) ** 2).mean(1)
    return difference


REFERENCES: dict[str, Any] = {
    "rkd_distance": reference_distance,
    "rkd_angle": reference_angle,
    "darkrank_hard": reference_hard,
    "darkrank_soft": reference_soft,
    "similarity_preserving": reference_similarity,
    "correlation_congruence": reference_congruence,
}


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=8, deadline=None)
@given(
    widths=st.tuples(st.integers(2, 6), st.integers(2, 6)), rows=st.integers(5, 9), seed=st.integers(0, 999)
)
def test_against_the_references(name: str, widths: tuple[int, int], rows: int, seed: int) -> None:
    f, g = features(widths[0], seed, rows), features(widths[1], seed + 1, rows)
    expected = REFERENCES[name](f.numpy(), g.numpy())
    np.testing.assert_allclose(value({"name": name}, f, g).numpy(), expected, rtol=1e-8, atol=1e-12)
    single = value({"name": name}, f.float(), g.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_contrast_against_its_reference() -> None:
    f, g = features(4), features(3, 1)
    objective: Any = build_objective({"name": "crd", "size": 5, "tau": 0.5}, 1.0)
    torch.manual_seed(0)
    learned = objective.prepare(of(f), of(g))
    a, b = (
        x.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        for x, linear in ((f, learned.student), (g, learned.teacher))
    )
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    p = np.exp(a @ b.T / 0.5)
    expected = [-math.log(p[i, i] / p[i].sum()) - math.log(p[i, i] / p[:, i].sum()) for i in range(ROWS)]
    loss = objective(of(f), of(g), batch(), learned)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-10)
    loss.sum().backward()
    assert all(parameter.grad is not None for parameter in learned.parameters())


def test_closed_forms() -> None:
    """Three points on a line, 0, 1, 3, against an equilateral triangle, whose angles are 60 degrees."""
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    # Distances 1, 3, 2 over their mean, 2, against 1, 1, 1.
    expected = [(0.125 + 0.125) / 2, (0.125 + 0.0) / 2, (0.125 + 0.0) / 2]
    torch.testing.assert_close(
        value({"name": "rkd_distance"}, line, triangle), torch.tensor(expected, dtype=torch.float64)
    )
    # Cosines 1, -1, 1 at the three points, against 1/2 each.
    expected = [0.125, 1.5 - 0.5, 0.125]
    torch.testing.assert_close(
        value({"name": "rkd_angle"}, line, triangle), torch.tensor(expected, dtype=torch.float64)
    )
    # All rows orthogonal against all rows equal: 1, 0, ... in a row against 1 / sqrt(3) each.
    same, apart = torch.ones(3, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    third = 1 / 3**0.5
    found = value({"name": "similarity_preserving"}, apart, same)
    torch.testing.assert_close(found, torch.full_like(found, ((1 - third) ** 2 + 2 * third**2) / 3))
    found = value({"name": "correlation_congruence"}, apart, same)
    # K(x, x) is the same on both sides; K of orthogonal rows is exp(-0.8), of equal ones that by 1 + .8 + .32
    torch.testing.assert_close(found, torch.full_like(found, 2 / 3 * (math.exp(-0.8) * 1.12) ** 2))
    # Equal scores: each order of four has the probability 1/24.
    equal = torch.ones(5, 2, dtype=torch.float64)
    found = value({"name": "darkrank_hard"}, equal, features(3, rows=5))
    torch.testing.assert_close(found, torch.full_like(found, math.log(24)))


def test_permutations_have_probability_one() -> None:
    from ensemble_kd.objectives.darkrank import _orders, log_likelihood

    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    orders = torch.tensor(_orders(5))
    torch.testing.assert_close(
        log_likelihood(scores[:, orders]).exp().sum(1), torch.ones(4, dtype=torch.float64)
    )
    # and the order of the scores is the most probable one
    best = log_likelihood(scores.sort(1, descending=True).values)
    torch.testing.assert_close(best, log_likelihood(scores[:, orders]).amax(1))


@pytest.mark.parametrize("fields", ALL[:-1], ids=NAMES[:-1])
def test_agreement_is_the_minimum(fields: dict[str, Any]) -> None:
    f = features(4)
    agreed = value(fields, f, f)
    if fields["name"] == "darkrank_hard":  # the likelihood of the best order is below 1
        assert agreed.mean() < value(fields, f.flip(0), f).mean()
        return
    torch.testing.assert_close(agreed, torch.zeros_like(agreed), rtol=0, atol=1e-12)
    assert (value(fields, features(4, 5), f) > 1e-4).all()


def rotation(width: int) -> Tensor:
    q, _ = torch.linalg.qr(features(width, 3, width))
    return q


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("fields", ALL[:-1], ids=NAMES[:-1])
def test_invariances(fields: dict[str, Any], side: int) -> None:
    """Acceptance checks: no loss sees a rotation or the scale, those on distances and angles no shift."""
    both = [features(4), features(4, 1)]
    before = value(fields, *both)

    def changed(state: Tensor) -> Tensor:
        return value(fields, *[state if i == side else x for i, x in enumerate(both)])

    moved = both[side]
    torch.testing.assert_close(changed(moved @ rotation(4)), before)
    for factor in (0.01, 20.0):
        torch.testing.assert_close(changed(moved * factor), before)
    shifted = changed(moved + torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64))
    if fields["name"].startswith("rkd"):
        torch.testing.assert_close(shifted, before)
    else:
        assert not torch.allclose(shifted, before)


def test_without_normalising_ranks_see_shifts_not() -> None:
    fields = {"name": "darkrank_hard", "normalise": False, "beta": 2.0}
    f, g = features(4), features(4, 1)
    torch.testing.assert_close(value(fields, f + 3, g - 1), value(fields, f, g))
    assert not torch.allclose(value(fields, 2 * f, g), value(fields, f, g))


@pytest.mark.parametrize("fields", ALL, ids=NAMES)
def test_rows_in_another_order_have_the_same_losses(fields: dict[str, Any]) -> None:
    f, g = features(4), features(3, 1)
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    torch.testing.assert_close(value(fields, f[order], g[order]), value(fields, f, g)[order])


@pytest.mark.parametrize("fields", ALL, ids=NAMES)
def test_gradients_are_those_of_finite_differences(fields: dict[str, Any]) -> None:
    f, g = features(4).requires_grad_(), features(3, 1).requires_grad_()
    weights = torch.arange(1.0, ROWS + 1, dtype=torch.float64)  # each row's loss by itself

    def loss(ours: Tensor) -> Tensor:
        return (value(fields, ours, g) * weights).sum()

    assert torch.autograd.gradcheck(loss, [f])
    loss(f).backward()
    if fields["name"] != "crd":
        assert g.grad is None


def test_angles_come_a_part_at_a_time() -> None:
    """More vertices than are computed at once: the same losses and gradients as by autograd over all."""
    rows = 80
    assert AT_ONCE // rows**2 < rows
    f, g = features(5, rows=rows).requires_grad_(), features(4, 1, rows)
    losses = value({"name": "rkd_angle"}, f, g)
    losses.sum().backward()

    def cosines(x: Tensor) -> Tensor:
        e = x[None] - x[:, None]  # (j, i): from j to i
        e = torch.nn.functional.normalize(e, dim=2)
        return e @ e.transpose(1, 2)

    other = f.detach().clone().requires_grad_()
    each = torch.nn.functional.smooth_l1_loss(cosines(other), cosines(g), reduction="none")
    each = each.masked_fill(torch.eye(rows, dtype=torch.bool), 0.0)
    expected = each.sum((1, 2)) / ((rows - 1) * (rows - 2))
    torch.testing.assert_close(losses, expected)
    expected.sum().backward()
    torch.testing.assert_close(f.grad, other.grad)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["rows agree", "all agree", "zeros", "one is huge"])
@pytest.mark.parametrize("fields", ALL, ids=NAMES)
def test_degenerate_rows_have_finite_gradients(fields: dict[str, Any], what: str, kind: torch.dtype) -> None:
    f, g = features(4).to(kind), features(3, 1).to(kind)
    for x in (f, g):
        if what == "rows agree":
            x[1] = x[0]
        elif what == "all agree":
            x[:] = x[0].clone()
        elif what == "zeros":
            x[:3] = 0
        else:
            x[2] *= 1e4
    f.requires_grad_()
    losses = value(fields, f, g)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and torch.isfinite(losses).all()
    assert f.grad is not None and torch.isfinite(f.grad).all() and f.grad.float().abs().max() < 1e4


def test_which_states_are_related() -> None:
    maps = torch.randn(ROWS, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student = Outputs(torch.zeros(ROWS, 2), {"layer_1": maps, "pooled": maps.mean((2, 3))})
    teacher = of(features(4))
    angle = build_objective({"name": "rkd_angle"}, 1.0)
    torch.testing.assert_close(
        angle(student, teacher, batch()), value({"name": "rkd_angle"}, maps.mean((2, 3)), features(4))
    )
    named = build_objective({"name": "rkd_angle", "states": ["layer_1", "pooled"]}, 1.0)
    torch.testing.assert_close(named(student, teacher, batch()), angle(student, teacher, batch()))
    similar = build_objective({"name": "similarity_preserving"}, 1.0)  # the maps, flattened
    torch.testing.assert_close(
        similar(student, teacher, batch()),
        value({"name": "similarity_preserving"}, maps.flatten(1), features(4)),
    )


def test_texts_are_averaged_over_their_tokens() -> None:
    tokens = torch.randn(ROWS, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 3, 4, 5, 2])[:, None]
    student = Outputs(torch.zeros(ROWS, 2), {"layer_1": tokens}, mask=mask)
    mean = torch.stack([tokens[i, : int(n)].mean(0) for i, n in enumerate(mask.sum(1))])
    for fields, expected in (({}, mean), ({"positions": "first"}, tokens[:, 0])):
        objective: Any = build_objective({"name": "rkd_distance", **fields}, 1.0)
        assert objective.first_only == bool(fields)
        torch.testing.assert_close(
            objective(student, of(features(3)), batch()),
            value({"name": "rkd_distance"}, expected, features(3)),
        )


def test_states_that_are_not_there() -> None:
    objective: Any = build_objective({"name": "rkd_angle", "states": ["pooled", "top"]}, 1.0)
    with pytest.raises(
        ConfigError, match=r"states: \['pooled', 'top'\] are not there; the student has layer_1"
    ):
        objective.prepare(of(features(2)), of(features(2)))


@pytest.mark.parametrize(
    ("fields", "training", "says"),
    [
        (
            {"name": "rkd_angle"},
            {"gradient_accumulation": 2},
            "student.training.gradient_accumulation: 2, but 'rkd_angle' (student.terms.0) relates all",
        ),
        (
            {"name": "rkd_angle"},
            {"batch_size": 2},
            "student.training.batch_size: 2, but 'rkd_angle' (student.terms.0) relates 3 rows or more; raise",
        ),
        (
            {"name": "darkrank_soft", "list_length": 6},
            {"batch_size": 6},
            "student.training.batch_size: 6, but",
        ),
        ({"name": "rkd_distance"}, {"batch_size": 2}, None),
        ({"name": "hint"}, {"batch_size": 1}, None),
        ({"name": "attention_transfer"}, {"gradient_accumulation": 4}, None),
    ],
)
def test_batches_that_hold_too_little(
    fields: dict[str, Any], training: dict[str, int], says: str | None
) -> None:
    terms = build_terms([fields], 1.0, "student.terms")
    problems = relation_problems("student", TrainingConfig(**training), terms, [fields])
    assert len(problems) == (says is not None)
    assert says is None or problems[0].startswith(says)
