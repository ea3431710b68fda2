"""Layer maps against the published tables, and what is said where one does not fit."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import build_objective
from ensemble_kd.objectives.layers import LayerMap, Layers, attention_pairs, layer_pairs, state_pairs


def network(depth: int, heads: int = 2, **states: int) -> Outputs:
    """Outputs whose states and scores hold their own block's number."""
    hidden = {"embedding": torch.zeros(1, 3, 4)}
    hidden |= {f"layer_{i}": torch.full((1, 3, 4), float(i)) for i in range(1, depth + 1)}
    hidden |= {name: torch.zeros(1, width) for name, width in states.items()}
    scores = tuple(torch.full((1, heads, 3, 3), float(i)) for i in range(1, depth + 1))
    return Outputs(torch.zeros(1, 2), hidden, scores)


@pytest.mark.parametrize(("student", "teacher", "step"), [(4, 12, 3), (6, 12, 2), (12, 12, 1), (1, 5, 5)])
def test_uniform_is_tinyberts_map(student: int, teacher: int, step: int) -> None:
    assert layer_pairs("uniform", student, teacher) == [(m, step * m) for m in range(1, student + 1)]


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "expected"),
    [
        (6, 12, "uniform", [2, 4, 6, 8, 10]),
        (6, 12, "last", [7, 8, 9, 10, 11]),
        (3, 12, "uniform", [4, 8]),
        (3, 12, "last", [10, 11]),
        (6, 24, "uniform", [4, 8, 12, 16, 20]),
    ],
)
def test_pkds_skip_and_last(
    student: int, teacher: int, layers: Literal["uniform", "last"], expected: list[int]
) -> None:
    pairs = layer_pairs(layers, student, teacher, skip_last=True)
    assert pairs == list(zip(range(1, student), expected, strict=True))


@given(student=st.integers(1, 12), times=st.integers(1, 4), skip_last=st.booleans())
def test_maps_climb_and_end_at_the_teachers_last_block(student: int, times: int, skip_last: bool) -> None:
    teacher = student * times
    if student == 1 and skip_last:
        return
    for layers in ("uniform", "last"):
        pairs = layer_pairs(layers, student, teacher, skip_last)
        ours, theirs = zip(*pairs, strict=True)
        assert list(ours) == list(range(1, student + 1 - skip_last))
        assert list(theirs) == sorted(set(theirs)) and 1 <= theirs[0] and theirs[-1] <= teacher
        assert (pairs[-1] == (student, teacher)) != skip_last
    assert layer_pairs("final", student, teacher) == [(student, teacher)]


def test_states_and_scores_are_those_of_the_map() -> None:
    student, teacher = network(2), network(6)
    for pairs in (state_pairs("uniform", student, teacher), attention_pairs("uniform", student, teacher)):
        assert [(p.student.mean().item(), p.teacher.mean().item()) for p in pairs] == [(1.0, 3.0), (2.0, 6.0)]
    (pair,) = state_pairs("final", student, teacher)
    assert pair.names == ("layer_2", "layer_6")
    written = state_pairs(((0, 0), (2, 5)), student, teacher, skip_last=True)  # skip_last does not touch them
    assert [pair.names for pair in written] == [("embedding", "embedding"), ("layer_2", "layer_5")]
    named = state_pairs((("pooled", 2),), network(0, pooled=4), teacher)
    assert named[0].student.shape == (1, 4) and named[0].names == ("pooled", "layer_2")


@pytest.mark.parametrize("value", ["uniform", "last", "final", [[1, 3], [2, 6]], [["pooled", 2]], ((0, 0),)])
def test_what_a_configuration_may_hold(value: Any) -> None:
    read = TypeAdapter(Layers).validate_python(value)
    assert read == (value if isinstance(value, str) else tuple(map(tuple, value)))
    hash(read)


@pytest.mark.parametrize(
    "value", ["first", [], [1, 2], [[1]], [[1, -1]], [[True, 1]], [[1.0, 2]], [[1, 2], [1, 2]], 3, None]
)
def test_what_it_may_not(value: Any) -> None:
    with pytest.raises(ValidationError, match="list of different pairs"):
        TypeAdapter(Layers).validate_python(value)


def test_a_wrong_map_is_told_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        build_objective({"name": "hidden_mse", "layers": "unifrom"}, 1.0)
    assert caught.value.problems == [
        "student.objective.layers: input should be 'uniform', 'last', 'final', or a list of different pairs "
        "[student, teacher], each a block's number or a state's name, got 'unifrom'"
    ]


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "skip_last", "message"),
    [
        (
            5,
            12,
            "uniform",
            False,
            "the student has 5, the teacher 12; write the pairs out, as "
            "layers: [[1, 3], [2, 5], [3, 8], [4, 10], [5, 12]]",
        ),
        (
            4,
            2,
            "uniform",
            False,
            "the student has 4, the teacher 2; write the pairs out, as "
            "layers: [[1, 1], [2, 1], [3, 2], [4, 2]]",
        ),
        (4, 2, "last", False, "at least as many blocks in the teacher .* student has 4, the teacher 2"),
        (
            1,
            2,
            "last",
            True,
            "skip_last: nothing is left of the student's 1 block .* teacher's 2; set skip_last",
        ),
        (4, 12, ((1, 13),), False, r"the pair \[1, 13\] .* student has .*4.*, the teacher .*12; choose"),
        (4, 12, ((5, 12),), False, r"the pair \[5, 12\] .* student has .*4.*, the teacher .*12; choose"),
    ],
)
def test_maps_that_do_not_fit(
    student: int, teacher: int, layers: LayerMap, skip_last: bool, message: str
) -> None:
    pattern = message if ".*" in message else message.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ConfigError, match=pattern):
        state_pairs(layers, network(student), network(teacher), skip_last)
    if not skip_last:
        with pytest.raises(ConfigError, match=pattern):
            attention_pairs(layers, network(student), network(teacher))


def test_every_wrong_pair_is_told() -> None:
    for pairs in (state_pairs, attention_pairs):
        with pytest.raises(ConfigError) as caught:
            pairs(((1, 1), (3, 1), (1, 9)), network(2), network(4))
        assert len(caught.value.problems) == 2
        assert all(line.startswith("layers: ") for line in caught.value.problems)


def test_attention_has_no_embeddings_and_no_names() -> None:
    for layers in (((0, 0),), (("layer_1", "layer_1"),)):
        with pytest.raises(ConfigError, match="not a pair of blocks, counted from 1"):
            attention_pairs(layers, network(2), network(2))


def test_networks_without_states() -> None:
    bare = Outputs(torch.zeros(1, 2))
    with pytest.raises(ConfigError) as caught:
        state_pairs("uniform", network(0, pooled=4), bare)
    assert caught.value.problems == [
        "layers: uniform pairs the states layer_1, layer_2, ... of both networks; the student has embedding, "
        "pooled, the teacher no hidden states; write pairs of states out, as layers: [[pooled, pooled]], or "
        "use an objective on logits"
    ]
    with pytest.raises(
        ConfigError, match="the student has attention scores of 2 blocks, the teacher of 0; let"
    ):
        attention_pairs("uniform", network(2), bare)
