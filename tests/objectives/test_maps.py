"""Objectives on maps, `hint`, `attention_transfer` and `fsp`, against references in numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ensemble_kd.config import ResNetConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.resnet import ResNet
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms

BATCH = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
Shape = tuple[int, ...]


def net(*shapes: Shape, seed: int = 0, names: str = "layer", double: bool = False) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.float64 if double else torch.float32
    states = {
        f"{names}_{i}": torch.randn(3, *shape, generator=generator, dtype=kind)
        for i, shape in enumerate(shapes, start=1)
    }
    return Outputs(torch.zeros(3, 2, dtype=kind), states)


def states(outputs: Outputs) -> dict[str, Tensor]:
    assert outputs.hidden is not None
    return outputs.hidden


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def shrunk(maps: np.ndarray, size: int) -> np.ndarray:
    """Square maps averaged over squares of whole pixels, by loops."""
    each = maps.shape[2] // size
    found = np.zeros((*maps.shape[:2], size, size))
    for y in range(size):
        for x in range(size):
            part = maps[:, :, y * each : (y + 1) * each, x * each : (x + 1) * each]
            found[:, :, y, x] = part.mean((2, 3))
    return found


def reference_attention(ours: np.ndarray, theirs: np.ndarray, p: float, norm: bool) -> list[float]:
    size = min(ours.shape[2], theirs.shape[2])
    losses = []
    for a, b in zip(shrunk(ours, size), shrunk(theirs, size), strict=True):
        q = [(np.abs(maps) ** p).mean(0).ravel() for maps in (a, b)]
        difference = q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1])
        losses.append(float(np.linalg.norm(difference) if norm else (difference**2).mean()))
    return losses


@settings(max_examples=30, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sizes=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    p=st.sampled_from([1.0, 2.0, 3.0]),
    norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_transfer(
    channels: tuple[int, int], sizes: tuple[int, int], p: float, norm: bool, seed: int
) -> None:
    student, teacher = (
        net((c, s, s), (c, 2, 2), seed=seed + i, double=True)
        for i, (c, s) in enumerate(zip(channels, sizes, strict=True))
    )
    objective = build_objective(
        {"name": "attention_transfer", "p": p, "distance": "norm" if norm else "mean_square"}, 1.0
    )
    expected = np.zeros(3)
    for name in ("layer_1", "layer_2"):
        expected += reference_attention(
            numbers(states(student)[name]), numbers(states(teacher)[name]), p, norm
        )
    np.testing.assert_allclose(objective(student, teacher, BATCH).numpy(), expected, atol=2e-6)


def test_attention_transfer_closed_form() -> None:
    """Two places: one map lies in the first, the other in the second; (1, 0) - (0, 1) has squares 1, 1."""
    student = Outputs(torch.zeros(1, 2), {"layer_1": torch.tensor([[[[3.0, 0.0]]]])})
    teacher = Outputs(torch.zeros(1, 2), {"layer_1": torch.tensor([[[[0.0, 5.0]], [[0.0, 1.0]]]])})
    assert build_objective({"name": "attention_transfer"}, 1.0)(student, teacher, BATCH).tolist() == [1.0]


@pytest.mark.parametrize("distance", ["mean_square", "norm"])
def test_the_scale_of_maps_does_not_matter(distance: str) -> None:
    """Acceptance check of the paper's row: a map scaled by c > 0 gives the same loss."""
    objective = build_objective({"name": "attention_transfer", "distance": distance}, 1.0)
    student, teacher = net((4, 4, 4), (5, 2, 2)), net((3, 4, 4), (5, 2, 2), seed=1)
    before = objective(student, teacher, BATCH)
    for factor, outputs in ((0.01, student), (30.0, teacher)):
        for state in states(outputs).values():
            state.mul_(factor)
    torch.testing.assert_close(objective(student, teacher, BATCH), before)
    assert (before > 0.01).all()


@torch.no_grad()
@pytest.mark.parametrize("block", ["grouped", "depthwise", "bottleneck"])
def test_a_cheap_copy_pairs_with_its_teacher(block: Any) -> None:
    """Acceptance check of Moonshine: maps of each section, as they are paired without a setting, whatever
    their scale."""
    torch.manual_seed(0)
    inputs = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    info = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 2, "mean": [0.5], "std": [0.3]}
    cheap, full = (build(ResNetConfig(width=8, block=kind), info).eval() for kind in (block, "basic"))
    assert sum(p.numel() for p in cheap.parameters()) < sum(p.numel() for p in full.parameters())
    student, teacher = cheap(inputs, hidden=True), full(inputs, hidden=True)
    objective: Any = build_objective({"name": "attention_transfer"}, 1.0)
    objective.prepare(student, teacher)
    expected = np.zeros(3)
    for name in ("stage_1", "stage_2", "stage_3"):
        expected += reference_attention(
            numbers(states(student)[name]), numbers(states(teacher)[name]), 2.0, False
        )
    assert (expected > 1e-4).all()
    np.testing.assert_allclose(objective(student, teacher, BATCH).numpy(), expected, rtol=1e-4)
    for state in states(student).values():
        state.mul_(7.0)
    np.testing.assert_allclose(objective(student, teacher, BATCH).numpy(), expected, rtol=1e-4)
    assert objective(teacher, teacher, BATCH).tolist() == [0.0, 0.0, 0.0]


def reference_flow(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    size = min(first.shape[2], last.shape[2])
    first, last = shrunk(first, size), shrunk(last, size)
    found = np.zeros((len(first), first.shape[1], last.shape[1]))
    for y in range(size):
        for x in range(size):
            found += first[:, :, None, y, x] * last[:, None, :, y, x]
    return found / size**2


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_fsp(reduction: str) -> None:
    shapes: list[Shape] = [(2, 4, 4), (3, 4, 4), (5, 2, 2)]
    student, teacher = net(*shapes, double=True), net(*shapes, seed=1, double=True)
    expected = np.zeros(3)
    for first, last in (("layer_1", "layer_2"), ("layer_2", "layer_3")):
        flows = [
            reference_flow(numbers(states(side)[first]), numbers(states(side)[last]))
            for side in (student, teacher)
        ]
        squares = (flows[0] - flows[1]) ** 2
        expected += squares.mean((1, 2)) if reduction == "mean" else squares.sum((1, 2))
    objective = build_objective({"name": "fsp", "reduction": reduction}, 1.0)
    np.testing.assert_allclose(objective(student, teacher, BATCH).numpy(), expected, rtol=1e-10)


def test_fsp_closed_form() -> None:
    """One pixel: G is the outer product of the two maps, (2 3)^T (1) against 0."""
    student = Outputs(
        torch.zeros(1, 2),
        {"layer_1": torch.tensor([2.0, 3.0]).view(1, 2, 1, 1), "layer_2": torch.ones(1, 1, 1, 1)},
    )
    teacher = Outputs(torch.zeros(1, 2), {k: torch.zeros_like(v) for k, v in states(student).items()})
    assert build_objective({"name": "fsp"}, 1.0)(student, teacher, BATCH).tolist() == [13.0]


def test_fsp_sees_no_places() -> None:
    """Acceptance check: the same permutation of the places of both maps leaves G as it is."""
    objective = build_objective({"name": "fsp"}, 1.0)
    student, teacher = net((4, 4, 4), (3, 4, 4), double=True), net((4, 4, 4), (3, 4, 4), seed=1, double=True)
    before = objective(student, teacher, BATCH)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for name, state in states(student).items():
        states(student)[name] = state.flatten(2)[:, :, order].view(state.shape)
    torch.testing.assert_close(objective(student, teacher, BATCH), before)
    states(student)["layer_1"] = states(student)["layer_1"].flip(3)  # of one map alone it does not
    assert not torch.allclose(objective(student, teacher, BATCH), before)


@torch.no_grad()
def test_fsp_reads_the_sections_of_a_residual_network() -> None:
    objective = build_objective({"name": "fsp"}, 1.0)
    torch.manual_seed(0)
    inputs = torch.randn(3, 8, 8, 1)
    student, teacher = (ResNet(1, 2, width=4, blocks=n).eval()(inputs, hidden=True) for n in (1, 3))
    assert objective(student, student, BATCH).tolist() == [0.0, 0.0, 0.0]
    loss = objective(student, teacher, BATCH)
    ends = ("_first", "")
    expected = np.zeros(3)
    for k in (1, 2, 3):
        flows = [
            reference_flow(*(numbers(states(side)[f"stage_{k}{end}"]) for end in ends))
            for side in (student, teacher)
        ]
        expected += ((flows[0] - flows[1]) ** 2).sum((1, 2))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("widths", [(4, 3), (2, 5), (4, 5)])
def test_fsp_projects_other_channels(widths: tuple[int, int], size: int) -> None:
    """As if the 1x1 convolutions ran over the maps, of which one is averaged down where sizes differ."""
    objective: Any = build_objective({"name": "fsp"}, 1.0)
    student = net((2, size, size), (3, 4, 4))
    teacher = net((widths[0], 8, 8), (widths[1], 8, 8), seed=1)
    torch.manual_seed(0)
    learned = objective.prepare(student, teacher)
    assert len(list(learned.parameters())) == 2 * sum(a != b for a, b in zip(widths, (2, 3), strict=True))
    mapped = dict(states(student))
    for name, linear in zip(learned.places, learned.maps, strict=True):
        mapped[name] = F.conv2d(mapped[name], linear.weight[:, :, None, None], linear.bias)
    ours = reference_flow(*map(numbers, mapped.values()))
    theirs = reference_flow(*map(numbers, states(teacher).values()))
    loss = objective(student, teacher, BATCH, learned)
    np.testing.assert_allclose(loss.detach().numpy(), ((ours - theirs) ** 2).sum((1, 2)), rtol=1e-4)
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())


def reference_convolution(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    height, width = weight.shape[2:]
    rows, columns = maps.shape[2] - height + 1, maps.shape[3] - width + 1
    found = np.zeros((len(maps), len(weight), rows, columns)) + bias[:, None, None]
    for y in range(rows):
        for x in range(columns):
            part = maps[:, None, :, y : y + height, x : x + width]
            found[:, :, y, x] += (part * weight[None]).sum((2, 3, 4))
    return found


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 3), (8, 8)])
def test_hint_by_a_convolution(reduction: str, activation: str, sizes: tuple[int, int]) -> None:
    student, teacher = net((2, 8, 8), double=True), net((3, *sizes), seed=1, double=True)
    fields = {"name": "hint", "reduction": reduction, "activation": activation}
    objective: Any = build_objective(fields, 1.0)
    torch.manual_seed(0)
    learned = objective.prepare(student, teacher)
    convolution = learned[0].map
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (8 - sizes[0] + 1, 8 - sizes[1] + 1)
    mapped = reference_convolution(
        numbers(states(student)["layer_1"]),
        numbers(convolution.weight),
        numbers(convolution.bias),  # type: ignore[arg-type]
    )
    mapped = np.maximum(mapped, 0) if activation == "relu" else mapped
    squares = (mapped - numbers(states(teacher)["layer_1"])) ** 2
    expected = 0.5 * (squares.mean((1, 2, 3)) if reduction == "mean" else squares.sum((1, 2, 3)))
    loss = objective(student, teacher, BATCH, learned)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs", "regressor"),
    [
        ((6,), (4,), "auto"),
        ((2, 3, 3), (4,), "auto"),
        ((5,), (2, 2, 2), "auto"),
        ((2, 2, 2), (1, 4, 4), "linear"),
    ],
)
def test_hint_by_a_linear_map(ours: Shape, theirs: Shape, regressor: str) -> None:
    student, teacher = net(ours, double=True), net(theirs, seed=1, double=True)
    objective: Any = build_objective({"name": "hint", "regressor": regressor}, 1.0)
    torch.manual_seed(0)
    learned = objective.prepare(student, teacher)
    flat, target = (numbers(states(side)["layer_1"]).reshape(3, -1) for side in (student, teacher))
    mapped = np.maximum(flat @ numbers(learned[0].map.weight).T + numbers(learned[0].map.bias), 0)
    loss = objective(student, teacher, BATCH, learned)
    np.testing.assert_allclose(loss.detach().numpy(), 0.5 * ((mapped - target) ** 2).sum(1), rtol=1e-9)


def test_a_hint_takes_the_middle_of_both() -> None:
    student = net((1, 4, 4), (1, 4, 4), (1, 2, 2))
    teacher = net((2, 4, 4), (2, 4, 4), (3, 4, 4), (2, 2, 2), (2, 2, 2), seed=1, names="stage")
    objective: Any = build_objective({"name": "hint"}, 1.0)
    (regressor,) = objective.prepare(student, teacher)
    assert regressor.shape == (3, 4, 4)  # the third of five, for the second of three
    states(teacher)["stage_3"].zero_()
    states(student)["layer_2"].zero_()
    nn.init.zeros_(regressor.map.bias)
    assert objective(student, teacher, BATCH, nn.ModuleList([regressor])).tolist() == [0.0, 0.0, 0.0]


def test_the_first_stage_of_fitnets_leaves_what_is_above_the_hint_alone() -> None:
    """Acceptance check: the hint gives no gradient above the guided layer."""
    torch.manual_seed(0)
    student, teacher = ResNet(1, 2, width=4), ResNet(1, 2, width=8, blocks=2).eval()
    inputs = torch.randn(3, 8, 8, 1)
    loss = DistillationLoss(alpha=1.0, terms=build_terms([{"name": "hint"}], 1.0, "student.terms"))
    own, other = student(inputs, hidden=True), teacher(inputs, hidden=True)
    learned = loss.prepare(own, [other])
    loss(own, None, BATCH, [other]).backward()
    below = ("stem", "norm.", "stages.0", "stages.1")
    for name, parameter in student.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == name.startswith(below), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(p.grad is not None for p in learned.parameters())


@pytest.mark.parametrize("name", ["hint", "attention_transfer", "fsp"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student, teacher = (
        net((2, 4, 4), (3, 2, 2), double=True),
        net((3, 4, 4), (4, 2, 2), seed=1, double=True),
    )
    objective: Any = build_objective({"name": name}, 1.0)
    torch.manual_seed(0)
    learned = objective.prepare(student, teacher)
    extra = () if learned is None else (learned,)
    given = [state.requires_grad_() for state in states(student).values()]

    def loss(*maps: Tensor) -> Tensor:
        named = dict(zip(states(student), maps, strict=True))
        value: Tensor = objective(Outputs(student.logits, named), teacher, BATCH, *extra)
        return value

    assert torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("name", ["hint", "attention_transfer", "fsp"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_and_types(name: str, kind: torch.dtype) -> None:
    """A row's loss is its own; states in bfloat16 are compared in float32; teachers get no gradient."""
    student, teacher = net((2, 4, 4), (3, 2, 2)), net((2, 4, 4), (3, 2, 2), seed=1)
    for side in (student, teacher):
        side.hidden = {k: state.to(kind).requires_grad_() for k, state in states(side).items()}
    objective: Any = build_objective({"name": name}, 1.0)
    learned = objective.prepare(student, teacher)
    extra = () if learned is None else (learned,)
    loss = objective(student, teacher, BATCH, *extra)
    assert loss.shape == (3,) and loss.dtype == torch.float32
    order = slice(1, 3)
    torch.testing.assert_close(objective(student[order], teacher[order], BATCH, *extra), loss[order])
    loss.sum().backward()
    assert all(state.grad is None for state in states(teacher).values())
    assert all(torch.isfinite(s.grad).all() for s in states(student).values() if s.grad is not None)


@pytest.mark.parametrize(
    ("fields", "ours", "theirs", "says"),
    [
        (
            {"name": "hint"},
            [(2, 4, 4)],
            [(2, 8, 8)],
            r"layers: the student's layer_1 has shape \(2, 4, 4\), the teacher's layer_1 \(2, 8, 8\); a "
            "valid convolution makes maps smaller alone; pair a lower map .* or set regressor: linear",
        ),
        (
            {"name": "hint", "regressor": "convolution"},
            [(2, 4, 4)],
            [(7,)],
            "regressor: the student's .* a convolution is for two maps; set regressor: linear",
        ),
        (
            {"name": "hint", "regressor": "linear"},
            [(64, 32, 32)],
            [(64, 32, 32)],
            "regressor: .* fully connected that is 4,294,967,296 weights; set regressor: convolution",
        ),
        ({"name": "hint"}, [(5, 4)], [(5, 4)], r"layers: .* for states with positions use hidden_mse"),
        (
            {"name": "attention_transfer"},
            [(4,)],
            [(2, 8, 8)],
            r"layers: the student's layer_1 has shape \(4,\), the .* \(2, 8, 8\); maps .* of both",
        ),
        (
            {"name": "attention_transfer", "layers": [[2, 1]]},
            [(2, 4, 4)],
            [(2, 8, 8)],
            r"layers: the pair \[2, 1\] is not there; the student has layer_1, the teacher layer_1; choose",
        ),
        (
            {"name": "attention_transfer"},
            [(2, 4, 4)] * 2,
            [(2, 8, 8)] * 3,
            "layers: uniform needs .* the student has 2, the teacher 3; write the pairs out",
        ),
        (
            {"name": "fsp"},
            [(2, 4, 4)] * 2,
            [(2, 8, 8)] * 3,
            r"sections: 1 of the student \(layer_1 to layer_2\), 2 of the teacher .* write out as many",
        ),
        ({"name": "fsp"}, [(2, 4, 4)], [(2, 8, 8)], "sections: no two maps; the student has layer_1"),
        ({"name": "fsp"}, [(4,)] * 2, [(4,)] * 2, r"sections: the student's layer_1 has shape \(4,\), the"),
        (
            {"name": "fsp", "projection": "none"},
            [(2, 4, 4)] * 2,
            [(3, 4, 4)] * 2,
            r"projection: the student's layer_1 has shape \(2, 4, 4\), the .* \(3, 4, 4\); set",
        ),
        (
            {"name": "fsp", "sections": [["layer_1", "top"]]},
            [(2, 4, 4)] * 2,
            [(2, 4, 4)] * 2,
            "sections: top not there; the student has layer_1, layer_2, the teacher",
        ),
        (
            {
                "name": "fsp",
                "sections": [["layer_1", "layer_2"]] * 2,
                "teacher_sections": [["layer_1", "layer_2"], ["layer_2", "layer_3"]],
            },
            [(2, 4, 4)] * 2,
            [(3, 4, 4), (4, 4, 4), (4, 4, 4)],
            "sections: the student's layer_1 .* and layer_1 is held against 3 channels elsewhere; pair each",
        ),
    ],
)
def test_maps_that_cannot_be_paired(fields: Any, ours: Any, theirs: Any, says: str) -> None:
    objective: Any = build_objective(fields, 1.0)
    student, teacher = net(*ours), net(*theirs, seed=1)
    with pytest.raises(ConfigError, match=says):
        objective.prepare(student, teacher)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "hint", "layers": "center"}, "student.terms.0.layers: input should be 'uniform', 'last'"),
        (
            {"name": "fsp", "sections": [["a"]]},
            r"student.terms.0.sections: input should be null or a list of",
        ),
        (
            {"name": "attention_transfer", "p": 0},
            "student.terms.0.p: input should be greater than",
        ),
        (
            {"name": "rkd_angle", "states": "pooled"},
            "student.terms.0.states: input should be null or two names",
        ),
    ],
)
def test_settings_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_objective(fields, 1.0, "student.terms.0")
