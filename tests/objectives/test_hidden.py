"""Objectives on hidden states against references in numpy float64."""

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
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.hidden import EmbeddingMSE, HiddenCosine, HiddenMSE, Projections

BATCH = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
ALL = [HiddenMSE(), EmbeddingMSE(), HiddenCosine(), HiddenCosine(layers="uniform")]


def transformer(
    depth: int, width: int, mask: Tensor | None = None, length: int = 5, seed: int = 0
) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    names = ["embedding"] + [f"layer_{i}" for i in range(1, depth + 1)]
    hidden = {name: torch.randn(3, length, width, generator=generator) for name in names}
    return Outputs(torch.zeros(3, 2), hidden, mask=mask)


def states(outputs: Outputs) -> dict[str, Tensor]:
    assert outputs.hidden is not None
    return outputs.hidden


def mask_of(*lengths: int, length: int = 5) -> Tensor:
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def reference_mse(ours: Tensor, theirs: Tensor, lengths: list[int]) -> np.ndarray:
    a, b = ours.detach().double().numpy(), theirs.double().numpy()
    return np.array([((a[i, :n] - b[i, :n]) ** 2).mean() for i, n in enumerate(lengths)])


def reference_cosine(ours: Tensor, theirs: Tensor, lengths: list[int]) -> np.ndarray:
    a, b = ours.double().numpy(), theirs.double().numpy()
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.array([(1 - cosine[i, :n]).mean() for i, n in enumerate(lengths)])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    width=st.integers(2, 9),
    blocks=st.integers(1, 3),
    times=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_against_the_references(lengths: list[int], width: int, blocks: int, times: int, seed: int) -> None:
    student = transformer(blocks, width, mask_of(*lengths), seed=seed)
    teacher = transformer(blocks * times, width, mask_of(*lengths), seed=seed + 1)
    ours, theirs = states(student), states(teacher)
    pairs = [(ours[f"layer_{m}"], theirs[f"layer_{m * times}"]) for m in range(1, blocks + 1)]
    expected: dict[Any, Any] = {
        HiddenMSE(): sum(reference_mse(*pair, lengths) for pair in pairs),
        EmbeddingMSE(): reference_mse(ours["embedding"], theirs["embedding"], lengths),
        HiddenCosine(): reference_cosine(*pairs[-1], lengths),
        HiddenCosine(layers="uniform"): sum(reference_cosine(*pair, lengths) for pair in pairs),
    }
    for objective, value in expected.items():
        loss = objective(student, teacher, BATCH)
        assert loss.shape == (3,) and loss.dtype == torch.float32
        np.testing.assert_allclose(loss.numpy(), value, rtol=1e-4, atol=1e-5)


def test_closed_forms() -> None:
    student = Outputs(torch.zeros(1, 2), {"layer_1": torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])})
    teacher = Outputs(torch.zeros(1, 2), {"layer_1": torch.tensor([[[1.0, 2.0], [4.0, 3.0]]])})
    assert HiddenMSE()(student, teacher, BATCH).tolist() == [(2.0 + 1.0) / 2]
    expected = ((1 - 1 / 5**0.5) + (1 - 24 / 25)) / 2
    torch.testing.assert_close(HiddenCosine()(student, teacher, BATCH), torch.tensor([expected]))


@pytest.mark.parametrize("objective", ALL)
def test_agreement_gives_zero(objective: Any) -> None:
    net = transformer(2, 4, mask_of(5, 3, 1))
    states(net)["layer_2"][0] = 0.0
    assert objective(net, net, BATCH).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("masked", ["both", "student", "teacher"])
def test_padding_changes_nothing(objective: Any, masked: str) -> None:
    student, teacher = transformer(2, 4), transformer(4, 4, seed=1)
    short = objective(student, teacher, BATCH)
    long = [Outputs(net.logits, {}, mask=mask_of(5, 5, 5, length=8)) for net in (student, teacher)]
    for i, net in enumerate((student, teacher)):
        padding = [float("nan"), 1e6][i]  # whatever stands there
        for name, state in states(net).items():
            states(long[i])[name] = torch.cat([state, torch.full((3, 3, 4), padding)], 1)
    if masked == "student":
        long[1].mask = None
    if masked == "teacher":
        long[0].mask = None
    torch.testing.assert_close(objective(*long, BATCH), short)


@pytest.mark.parametrize("objective", ALL)
def test_only_positions_that_both_sides_attend_to_count(objective: Any) -> None:
    student, teacher = transformer(2, 4, mask_of(5, 3, 2)), transformer(2, 4, mask_of(4, 5, 2), seed=1)
    loss = objective(student, teacher, BATCH)
    student.mask = teacher.mask = mask_of(4, 3, 2)
    assert torch.equal(loss, objective(student, teacher, BATCH))


@pytest.mark.parametrize("objective", ALL)
def test_an_example_without_a_position_counts_nothing(objective: Any) -> None:
    mask = mask_of(5, 0, 2)
    loss = objective(transformer(2, 4, mask), transformer(2, 4, mask, seed=1), BATCH)
    assert loss[1] == 0 and (loss[[0, 2]] > 0).all()


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("width", [4, 7])
def test_gradient_reaches_student_and_projection_only(objective: Any, width: int) -> None:
    student, teacher = transformer(2, 4, mask_of(5, 3, 4)), transformer(2, width, seed=1)
    for state in [*states(student).values(), *states(teacher).values()]:
        state.requires_grad_()
    learned = objective.prepare(student, teacher)
    assert (learned is None) == (width == 4)
    objective(student, teacher, BATCH, learned).sum().backward()
    assert all(state.grad is None for state in states(teacher).values())
    read = {"EmbeddingMSE": "embedding"}.get(type(objective).__name__, "layer_2")
    gradient = states(student)[read].grad
    assert gradient is not None and (gradient[1, :3] != 0).all() and (gradient[1, 3:] == 0).all()
    for parameter in [] if learned is None else learned.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12])
def test_vectors_without_a_direction_have_small_gradients(objective: Any, size: float) -> None:
    student, teacher = transformer(2, 4), transformer(2, 4, seed=1)
    for state in states(student).values():
        state.mul_(size).requires_grad_()
    loss = objective(student, teacher, BATCH)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for state in states(student).values():
        if state.grad is not None:
            assert torch.isfinite(state.grad).all() and state.grad.abs().max() < 10


def test_cosine_does_not_see_lengths() -> None:
    student, teacher = transformer(1, 4), transformer(1, 4, seed=1)
    scaled = Outputs(student.logits, {"layer_1": 37.0 * states(student)["layer_1"]})
    torch.testing.assert_close(
        HiddenCosine()(scaled, teacher, BATCH), HiddenCosine()(student, teacher, BATCH)
    )
    opposite = Outputs(student.logits, {"layer_1": -states(student)["layer_1"]})
    torch.testing.assert_close(HiddenCosine()(opposite, student, BATCH), torch.full((3,), 2.0))


@pytest.mark.parametrize("objective", ALL)
def test_half_precision_is_computed_in_float32(objective: Any) -> None:
    student, teacher = transformer(2, 4), transformer(2, 6, seed=1)
    learned = objective.prepare(student, teacher)
    half = Outputs(student.logits, {name: state.bfloat16() for name, state in states(student).items()})
    full = Outputs(student.logits, {name: state.float() for name, state in states(half).items()})
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(half, teacher, BATCH, learned)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(full, teacher, BATCH, learned))


# ---------------------------------------------------------------------------------------- projections


def test_the_projection_is_tinyberts() -> None:
    torch.manual_seed(0)
    student, teacher = transformer(4, 64), transformer(12, 96)
    learned = HiddenMSE().prepare(student, teacher)
    assert isinstance(learned, Projections)
    weight, bias = learned.parameters()  # one for all blocks
    assert weight.shape == (96, 64) and abs(weight.std().item() - 0.02) < 0.001
    assert bias.shape == (96,) and not bias.any()


@pytest.mark.parametrize("shared", [True, False])
def test_the_projection_is_applied(shared: bool) -> None:
    student, teacher = transformer(2, 4), transformer(4, 6, seed=1)
    objective = HiddenMSE(shared=shared)
    learned = objective.prepare(student, teacher)
    assert isinstance(learned, Projections) and len(learned.maps) == (1 if shared else 2)
    assert [p.shape for p in learned.parameters()] == [(6, 4), (6,)] * len(learned.maps)
    for parameter in learned.parameters():
        torch.nn.init.normal_(parameter)
    expected = np.zeros(3)
    for m, name in ((1, "layer_2"), (2, "layer_4")):
        weight, bias = list(learned.parameters())[:2] if shared or m == 1 else list(learned.parameters())[2:]
        projected = states(student)[f"layer_{m}"].double() @ weight.T.double() + bias.double()
        expected += reference_mse(projected, states(teacher)[name], [5, 5, 5])
    loss = objective(student, teacher, BATCH, learned)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4)


def test_which_states_are_projected() -> None:
    teacher = transformer(2, 4)
    assert HiddenMSE().prepare(transformer(1, 4), teacher) is None
    forced = HiddenMSE(projection="linear").prepare(transformer(1, 4), teacher)
    assert forced is not None and [p.shape for p in forced.parameters()] == [(4, 4), (4,)]
    uneven = Outputs(torch.zeros(3, 2), {"layer_1": torch.randn(3, 4), "layer_2": torch.randn(3, 3)})
    flat = Outputs(torch.zeros(3, 2), {"layer_1": torch.randn(3, 4), "layer_2": torch.randn(3, 5)})
    with pytest.raises(ConfigError) as caught:
        HiddenMSE().prepare(uneven, flat)
    assert caught.value.problems == [
        "shared: one projection cannot serve states of several widths; the student's layer_1 has width 4, "
        "the teacher's layer_1 width 4; the student's layer_2 has width 3, the teacher's layer_2 width 5; "
        "set shared: false"
    ]
    objective = HiddenMSE(shared=False)
    learned = objective.prepare(uneven, flat)  # where the widths are equal, nothing is learned
    assert learned is not None and [p.shape for p in learned.parameters()] == [(5, 3), (5,)]
    assert objective(uneven, flat, BATCH, learned).shape == (3,)


def test_float64_stays_float64() -> None:
    def double(outputs: Outputs) -> Outputs:
        return Outputs(outputs.logits, {name: state.double() for name, state in states(outputs).items()})

    student, teacher = double(transformer(1, 4)), double(transformer(1, 6, seed=1))
    loss = HiddenMSE()(student, teacher, BATCH, HiddenMSE().prepare(student, teacher))
    assert loss.dtype == torch.float64


# ------------------------------------------------------------------------------------ other networks


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
def test_states_without_positions(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(3, *shape), torch.randn(3, *shape)
    mask = mask_of(2, 1, 5)  # of tokens, which these states do not have
    student, teacher = Outputs(a, {"stage": a}, mask=mask), Outputs(b, {"stage": b}, mask=mask)
    mse = HiddenMSE(layers=(("stage", "stage"),))
    assert mse.prepare(student, teacher) is None
    x, y = a.flatten(1).double().numpy(), b.flatten(1).double().numpy()
    np.testing.assert_allclose(mse(student, teacher, BATCH).numpy(), ((x - y) ** 2).mean(1), rtol=1e-5)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    loss = HiddenCosine(layers=(("stage", "stage"),))(student, teacher, BATCH)
    np.testing.assert_allclose(loss.numpy(), 1 - cosine, rtol=1e-4, atol=1e-6)


def one_state(*shape: int, mask: Tensor | None = None) -> Outputs:
    return Outputs(torch.zeros(3, 2), {"state": torch.zeros(3, *shape)}, mask=mask)


@pytest.mark.parametrize(
    ("student", "teacher", "projection", "message"),
    [
        (
            one_state(4),
            one_state(6),
            "none",
            "projection: the student's state has width 4, the teacher's state width 6; set projection: auto",
        ),
        (
            one_state(5, 4),
            one_state(5, 6),
            "none",
            "projection: the student's state has shape (5, 4), the teacher's state shape (5, 6); set",
        ),
        (
            one_state(5, 4),
            one_state(7, 4),
            "auto",
            "layers: the student's state has shape (5, 4), the teacher's state shape (7, 4); pair states",
        ),
        (
            one_state(2, 3, 3),
            one_state(2, 3, 4),
            "auto",
            "layers: the student's state has shape (2, 3, 3), the teacher's state shape (2, 3, 4); pair",
        ),
        (
            one_state(4),
            one_state(5, 4),
            "auto",
            "layers: the student's state has width 4, the teacher's state shape (5, 4); pair states",
        ),
        (
            one_state(2, 3, 3),
            one_state(2, 3, 3),
            "linear",
            "projection: linear is for states (B, D) and (B, L, D); the student's state has shape (2, 3, 3), "
            "the teacher's state shape (2, 3, 3); set projection: none",
        ),
    ],
)
def test_states_that_do_not_fit(student: Outputs, teacher: Outputs, projection: str, message: str) -> None:
    settings_ = {"layers": [["state", "state"]], "projection": projection}
    for name in ("hidden_mse", "hidden_cosine"):
        objective: Any = build_objective({"name": name, **settings_}, 1.0)
        with pytest.raises(ConfigError) as caught:
            objective.prepare(student, teacher)
        assert caught.value.problems[0].startswith(message)
    if projection != "linear":
        with pytest.raises(ConfigError, match="the student's state has .*, the teacher's state "):
            objective(student, teacher, BATCH)


def test_a_projection_that_was_not_given_is_told() -> None:
    with pytest.raises(
        ConfigError, match="shape .5, 4., the teacher's layer_2 shape .5, 6.; .*what is learned"
    ):
        HiddenMSE()(transformer(1, 4), transformer(2, 6), BATCH)


def test_a_mask_of_another_length_is_told() -> None:
    with pytest.raises(ConfigError, match=r"shape \(4, 2\), .* but the mask counts 5 positions"):
        HiddenMSE(layers=(("state", "state"),))(
            one_state(4, 2, mask=mask_of(5, 5, 5)), one_state(4, 2), BATCH
        )


def test_embeddings_that_are_not_there() -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddingMSE().prepare(one_state(4), transformer(12, 4))
    assert caught.value.problems == [
        "name: the pair [0, 0] needs the student's embedding and the teacher's embedding; the student has "
        "state, the teacher embedding, layer_1 to layer_12; choose among these"
    ]


def test_registered() -> None:
    made = build_objective({"name": "hidden_mse", "layers": [[1, 3]], "projection": "linear"}, 2.0)
    assert made == HiddenMSE(layers=((1, 3),), projection="linear") and made.needs == {"hidden"}
    assert build_objective({"name": "embedding_mse"}, 2.0) == EmbeddingMSE()
    assert build_objective({"name": "hidden_cosine"}, 2.0) == HiddenCosine(layers="final")
