"""Patient distillation against its closed form, 2 - 2 cos, and a reference in numpy float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.patient import Patient

BATCH = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


def transformer(depth: int, width: int, seed: int = 0, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    names = ["embedding"] + [f"layer_{i}" for i in range(1, depth + 1)]
    return Outputs(
        torch.zeros(2, 2), {name: torch.randn(2, 4, width, generator=generator) * scale for name in names}
    )


def states(outputs: Outputs) -> dict[str, Tensor]:
    assert outputs.hidden is not None
    return outputs.hidden


def first(outputs: Outputs, block: int) -> np.ndarray:
    return states(outputs)[f"layer_{block}"][:, 0].double().numpy()


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 8),
    layers=st.sampled_from(["uniform", "last"]),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 999),
)
def test_sum_is_two_minus_two_cosines(
    width: int, layers: Literal["uniform", "last"], scale: float, seed: int
) -> None:
    student, teacher = transformer(3, width, seed, scale), transformer(12, width, seed + 1)
    expected = np.zeros(2)
    for m, n in zip((1, 2), {"uniform": (4, 8), "last": (10, 11)}[layers], strict=True):
        a, b = first(student, m), first(teacher, n)
        expected += 2 - 2 * (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    total = Patient(layers=layers, reduction="sum")(student, teacher, BATCH)
    assert total.shape == (2,) and total.dtype == torch.float32
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-4, atol=1e-5)
    mean = Patient(layers=layers)(student, teacher, BATCH)
    np.testing.assert_allclose(mean.numpy(), expected / (2 * width), rtol=1e-4, atol=1e-5)


def test_mean_is_the_element_mean_of_the_released_code() -> None:
    student, teacher = transformer(3, 6), transformer(6, 6, seed=1)
    ours = np.stack([first(student, m) for m in (1, 2)], 1)  # (B, blocks, D)
    theirs = np.stack([first(teacher, m) for m in (2, 4)], 1)
    ours /= np.linalg.norm(ours, axis=-1, keepdims=True)
    theirs /= np.linalg.norm(theirs, axis=-1, keepdims=True)
    loss = Patient()(student, teacher, BATCH).mean()
    np.testing.assert_allclose(loss.item(), ((ours - theirs) ** 2).mean(), rtol=1e-5)


def test_closed_forms() -> None:
    def net(vector: list[float]) -> Outputs:
        return Outputs(torch.zeros(1, 2), {"layer_1": torch.tensor([[vector, [9.0, 9.0]]])})

    objective = Patient(reduction="sum", skip_last=False)
    found = [objective(net([3.0, 0.0]), net(v), BATCH).item() for v in ([0.5, 0.0], [0.0, 7.0], [-1.0, 0.0])]
    assert found == pytest.approx([0.0, 2.0, 4.0], abs=1e-6)


def test_the_mean_of_the_attended_positions() -> None:
    student, teacher = transformer(3, 6), transformer(6, 6, seed=1)
    lengths = [2, 4]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    student, teacher = replace(student, mask=mask), replace(teacher, mask=mask)
    terms = []
    for m, n in ((1, 2), (2, 4)):
        a, b = (
            np.stack([state[row, :size].double().numpy().mean(0) for row, size in enumerate(lengths)])
            for state in (states(student)[f"layer_{m}"], states(teacher)[f"layer_{n}"])
        )
        terms.append(2 - 2 * (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    objective = Patient(states="mean", reduction="sum")
    np.testing.assert_allclose(objective(student, teacher, BATCH).numpy(), sum(terms), rtol=1e-5)
    assert Patient().first_only and not objective.first_only


def test_only_the_first_position_and_the_mapped_blocks_are_read() -> None:
    student, teacher = transformer(3, 4), transformer(6, 4, seed=1)
    before = Patient()(student, teacher, BATCH)
    states(student)["layer_3"].fill_(1.0)  # the last block feeds the classifier
    states(teacher)["layer_3"].fill_(1.0)
    for state in states(student).values():
        state[:, 1:] = 5.0
    assert torch.equal(before, Patient()(student, teacher, BATCH))
    assert not torch.equal(before, Patient(skip_last=False)(student, teacher, BATCH))
    states(student)["layer_2"][:, 0] += 1.0
    assert not torch.equal(before, Patient()(student, teacher, BATCH))


def test_lengths_do_not_count() -> None:
    student, teacher = transformer(3, 4), transformer(6, 4, seed=1)
    before = Patient()(student, teacher, BATCH)
    states(student)["layer_1"].mul_(250.0)
    states(teacher)["layer_4"].mul_(0.004)
    torch.testing.assert_close(Patient()(student, teacher, BATCH), before)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_agreement_gives_zero(reduction: Literal["mean", "sum"]) -> None:
    net = transformer(3, 4)
    states(net)["layer_1"][0] = 0.0
    assert Patient(reduction=reduction)(net, net, BATCH).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("width", [4, 6])
def test_gradient_reaches_student_and_projection_only(width: int) -> None:
    student, teacher = transformer(3, 4), transformer(6, width, seed=1)
    for state in [*states(student).values(), *states(teacher).values()]:
        state.requires_grad_()
    learned = Patient().prepare(student, teacher)
    Patient()(student, teacher, BATCH, learned).sum().backward()
    assert all(state.grad is None for state in states(teacher).values())
    gradients = {name: state.grad for name, state in states(student).items() if state.grad is not None}
    assert set(gradients) == {"layer_1", "layer_2"}
    assert all((g[:, 0] != 0).all() and (g[:, 1:] == 0).all() for g in gradients.values())
    parameters = [] if learned is None else list(learned.parameters())
    assert [p.shape for p in parameters] == ([] if width == 4 else [(6, 4), (6,)])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12])
def test_vectors_without_a_direction_have_small_gradients(size: float) -> None:
    student, teacher = transformer(2, 4, scale=size), transformer(2, 4, seed=1)
    state = states(student)["layer_1"].requires_grad_()
    Patient(reduction="sum")(student, teacher, BATCH).sum().backward()
    assert state.grad is not None and torch.isfinite(state.grad).all() and state.grad.abs().max() < 10


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = transformer(2, 4), transformer(2, 4, seed=1)
    half = Outputs(student.logits, {name: state.bfloat16() for name, state in states(student).items()})
    full = Outputs(student.logits, {name: state.float() for name, state in states(half).items()})
    loss = Patient()(half, teacher, BATCH)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, Patient()(full, teacher, BATCH))


@pytest.mark.parametrize(
    ("student", "teacher", "fields", "message"),
    [
        (
            transformer(3, 4),
            transformer(6, 6),
            {"projection": "none"},
            r"shape \(4, 4\), the teacher's layer_2 shape",
        ),
        (
            transformer(1, 4),
            transformer(6, 4),
            {},
            "nothing is left of the student's 1 block .*the teacher's 6",
        ),
        (transformer(4, 4), transformer(6, 4), {}, "the student has 4, the teacher 6; write the pairs out"),
    ],
)
def test_networks_that_do_not_fit(
    student: Outputs, teacher: Outputs, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Patient(**fields).prepare(student, teacher)


def test_registered() -> None:
    made = build_objective({"name": "patient", "layers": [[1, 2], [2, 4]], "reduction": "sum"}, 5.0)
    assert made == Patient(layers=((1, 2), (2, 4)), reduction="sum") and made.needs == {"hidden"}
    student, teacher = transformer(2, 4), transformer(4, 4, seed=1)  # pairs written out: the last one counts
    assert torch.equal(
        made(student, teacher, BATCH),
        Patient(skip_last=False, reduction="sum")(student, teacher, BATCH),
    )
