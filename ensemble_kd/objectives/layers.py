"""Which block of the teacher each block of the student learns from.

The student has M blocks, the teacher N, both counted from 1; 0 is the output of the embeddings. A map is
`uniform` (m -> m N / M), `last` (m -> N - M + m), `final` (M -> N alone), or a list of pairs
[student, teacher], each place a block's number or, for hidden states, the name of a state.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs, state_name

Place = int | str
LayerMap = Literal["uniform", "last", "final"] | tuple[tuple[Place, Place], ...]


def read_layers(value: Any) -> LayerMap:
    """A map as it stands in a configuration; pairs become tuples, so that objectives stay immutable."""
    if value in ("uniform", "last", "final"):
        return value
    if isinstance(value, list | tuple) and value and all(map(_is_pair, value)):
        if len(pairs := tuple((pair[0], pair[1]) for pair in value)) == len(set(pairs)):
            return pairs
    raise PydanticCustomError(
        "layer_map",
        "input should be 'uniform', 'last', 'final', or a list of different pairs [student, teacher], each a "
        "block's number or a state's name",
    )


def _is_pair(value: Any) -> bool:
    # A bool is an int to Python, but no number of a block.
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(place, str) or (type(place) is int and place >= 0) for place in value)
    )


Layers = Annotated[LayerMap, PlainValidator(read_layers)]
"""The type of an objective's field `layers`."""


class Pair(NamedTuple):
    """One tensor of each side that are to agree."""

    names: tuple[str, str]
    """What the student and the teacher call it."""
    student: Tensor
    teacher: Tensor


def layer_pairs(
    layers: Literal["uniform", "last", "final"],
    student_depth: int,
    teacher_depth: int,
    skip_last: bool = False,
) -> list[tuple[int, int]]:
    """The map's pairs (m, g(m)). `skip_last` leaves the student's last block out of `uniform` and `last`."""
    m, n = student_depth, teacher_depth
    if layers == "final":
        return [(m, n)]
    spread = [[block, -(-block * n // m)] for block in range(1, m + 1)]  # rounded up, so that M -> N
    remedy = f"write the pairs out, as layers: {spread}"
    if layers == "uniform" and n % m:
        raise ConfigError(
            "layers: uniform needs the number of the teacher's blocks to be a multiple of the student's; the "
            f"student has {m}, the teacher {n}; {remedy}"
        )
    if m > n:
        raise ConfigError(
            "layers: last needs at least as many blocks in the teacher as in the student; the student has "
            f"{m}, the teacher {n}; {remedy}"
        )
    blocks = range(1, m if skip_last else m + 1)
    if not blocks:
        raise ConfigError(
            f"skip_last: nothing is left of the student's {m} block to pair with the teacher's {n}; set "
            "skip_last: false"
        )
    return [(block, block * n // m if layers == "uniform" else n - m + block) for block in blocks]


def state_pairs(
    layers: LayerMap, student: Outputs, teacher: Outputs, skip_last: bool = False, setting: str = "layers"
) -> list[Pair]:
    """The hidden states that a map pairs.

    Raises ConfigError where a side has none of that name; its lines start with `setting`.
    """
    ours, theirs = student.hidden or {}, teacher.hidden or {}
    have = f"the student has {_listing(ours)}, the teacher {_listing(theirs)}"
    places: Any = layers
    if isinstance(layers, str):
        depths = student.depth or _depth(ours), teacher.depth or _depth(theirs)
        if 0 in depths:
            raise ConfigError(
                f"{setting}: {layers} pairs the states layer_1, layer_2, ... of both networks; {have}; write "
                "pairs of states out, as layers: [[pooled, pooled]], or use an objective on logits"
            )
        places = layer_pairs(layers, *depths, skip_last)
    names = [(_name(a), _name(b)) for a, b in places]
    problems = [
        f"{setting}: the pair [{a}, {b}] needs the student's {_name(a)} and the teacher's {_name(b)}; "
        f"{have}; choose among these"
        for a, b in places
        if _name(a) not in ours or _name(b) not in theirs
    ]
    if problems:
        raise ConfigError(problems)
    return [Pair(pair, ours[pair[0]], theirs[pair[1]]) for pair in names]


def attention_pairs(layers: LayerMap, student: Outputs, teacher: Outputs) -> list[Pair]:
    """The attention scores, (B, A, L, L) each, that a map pairs."""
    ours, theirs = student.attention or (), teacher.attention or ()
    have = f"the student has attention scores of {len(ours)} blocks, the teacher of {len(theirs)}"
    if not (ours and theirs):
        raise ConfigError(
            f"name: attention scores of both networks are needed; {have}; let both be transformers, or use "
            "an objective on logits"
        )
    places: Any = layers
    if isinstance(layers, str):
        places = layer_pairs(layers, student.depth or len(ours), teacher.depth or len(theirs))
    students, teachers = _by_block(student), _by_block(teacher)
    problems = [
        f"layers: the pair [{a}, {b}] is not a pair of blocks, counted from 1; {have}; choose among these"
        for a, b in places
        if not (type(a) is type(b) is int and a in students and b in teachers)
    ]
    if problems:
        raise ConfigError(problems)
    return [Pair((f"block {a}", f"block {b}"), students[a], teachers[b]) for a, b in places]


def _by_block(outputs: Outputs) -> dict[int, Tensor]:
    """Attention scores by the number of their block."""
    scores = outputs.attention or ()
    return dict(zip(outputs.blocks or range(1, len(scores) + 1), scores, strict=True))


def _name(place: Place) -> str:
    if isinstance(place, str):
        return place
    return state_name(place)


def _depth(states: dict[str, Tensor]) -> int:
    """Number of the states layer_1, layer_2, ..."""
    return sum(re.fullmatch(r"layer_\d+", name) is not None for name in states)


def _listing(states: dict[str, Tensor]) -> str:
    """The states' names; those of the blocks in short, since there may be dozens."""
    depth = _depth(states)
    blocks = [] if not depth else ["layer_1"] if depth == 1 else [f"layer_1 to layer_{depth}"]
    if any(state_name(number) not in states for number in range(1, depth + 1)):  # some of them alone
        blocks = [name for name in states if re.fullmatch(r"layer_\d+", name)]
    others = [name for name in states if not re.fullmatch(r"layer_\d+", name)]
    return ", ".join(others + blocks) or "no hidden states"
