"""What losses on networks for images read: maps (B, C, H, W), and features (B, D).

A network's blocks are its states `stage_1`, `stage_2`, ... or `layer_1`, `layer_2`, ..., counted from 1. Its
features are the state that it computes last, which its classifier reads.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import PlainValidator
from pydantic_core import PydanticCustomError
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.hidden import attended
from ensemble_kd.objectives.layers import LayerMap, Pair, Place, layer_pairs, read_layers

BLOCK = re.compile(r"(?:stage|layer)_(\d+)")
MapChoice = Literal["middle"] | LayerMap


def _read_maps(value: Any) -> MapChoice:
    return "middle" if value == "middle" else read_layers(value)


Maps = Annotated[MapChoice, PlainValidator(_read_maps)]
"""The type of a field that pairs blocks: `middle` (of both networks), `uniform`, `last`, `final`, or pairs
[student, teacher] of numbers or names."""


def _read_states(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(name, str) for name in value):
        return value[0], value[1]
    raise PydanticCustomError(
        "states", "input should be null or two names of states, the student's and the teacher's"
    )


States = Annotated[tuple[str, str] | None, PlainValidator(_read_states)]
"""The type of a field that names one state of each network; None for what the loss reads by itself."""


def blocks(outputs: Outputs) -> list[str]:
    """Names of a network's blocks in order."""
    numbers = {name: int(found[1]) for name in outputs.hidden or {} if (found := BLOCK.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


def block_pairs(layers: MapChoice, student: Outputs, teacher: Outputs, setting: str = "layers") -> list[Pair]:
    """The states of the blocks that a map pairs. Raises ConfigError, its lines starting with `setting`."""
    ours, theirs = blocks(student), blocks(teacher)
    have = f"the student has {listing(student)}, the teacher {listing(teacher)}"
    places: Any = layers
    if isinstance(layers, str):
        if not (ours and theirs):
            raise ConfigError(
                f"{setting}: {layers} pairs the blocks stage_1 or layer_1, ... of both networks; {have}; "
                "write pairs of states out, or use an objective on logits"
            )
        if layers == "middle":
            places = [((len(ours) + 1) // 2, (len(theirs) + 1) // 2)]
        else:
            places = layer_pairs(layers, len(ours), len(theirs))
    found, problems = [], []
    for a, b in places:
        names = _name(a, ours), _name(b, theirs)
        if names[0] in (student.hidden or {}) and names[1] in (teacher.hidden or {}):
            found.append(Pair(names, student.hidden[names[0]], teacher.hidden[names[1]]))  # type: ignore[index]
        else:
            problems.append(f"{setting}: the pair [{a}, {b}] is not there; {have}; choose among these")
    if problems:
        raise ConfigError(problems)
    return found


def _name(place: Place, own: list[str]) -> str:
    if isinstance(place, str):
        return place
    return own[place - 1] if 1 <= place <= len(own) else ""


def maps_only(pairs: list[Pair], setting: str = "layers") -> list[Pair]:
    """These pairs, if all are maps. Raises ConfigError with every one that is none."""
    problems = [
        f"{setting}: {sides(pair)}; maps (channels, height, width) are needed of both: use networks for "
        "images, or hidden_mse for states without a place"
        for pair in pairs
        if not pair.student.dim() == pair.teacher.dim() == 4
    ]
    if problems:
        raise ConfigError(problems)
    return pairs


def sides(pair: Pair) -> str:
    """Both sides of a pair with their shapes, the batch aside."""
    ours, theirs = (tuple(state.shape[1:]) for state in (pair.student, pair.teacher))
    return f"the student's {pair.names[0]} has shape {ours}, the teacher's {pair.names[1]} {theirs}"


def listing(outputs: Outputs) -> str:
    return ", ".join(outputs.hidden or {}) or "no hidden states"


def pooled_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) averaged down to `size`; those that have it already as they are."""
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return F.adaptive_avg_pool2d(maps, size)


def pooled_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return pooled_to(first, size), pooled_to(second, size)


def one_state(states: tuple[str, str] | None, student: Outputs, teacher: Outputs, maps: bool = False) -> Pair:
    """The state of each side that a relation is about: those named; else the last map of each side that has
    one, with `maps`; else the features.

    Raises ConfigError where a side has none of that name.
    """
    have = f"the student has {listing(student)}, the teacher {listing(teacher)}"
    ours, theirs = student.hidden or {}, teacher.hidden or {}
    if not (ours and theirs):
        raise ConfigError(
            f"states: both networks must give hidden states; {have}; use an objective on logits"
        )
    names = states
    if names is None:
        names = _last(student, maps), _last(teacher, maps)
    if names[0] not in ours or names[1] not in theirs:
        raise ConfigError(f"states: {list(names)} are not there; {have}; choose among these")
    return Pair(names, ours[names[0]], theirs[names[1]])


def _last(outputs: Outputs, maps: bool) -> str:
    states = outputs.hidden or {}
    with_place = [name for name, state in states.items() if state.dim() == 4]
    return with_place[-1] if maps and with_place else list(states)[-1]


def vectors(pair: Pair, student: Outputs, teacher: Outputs, first: bool, flat: bool) -> tuple[Tensor, Tensor]:
    """Both states as vectors (B, D): maps averaged over their places, or flattened with `flat`; texts
    (B, L, D) at the `first` position, or averaged over the attended ones."""
    mask = attended(student, teacher)
    ours, theirs = (_as_vectors(state, mask, first, flat) for state in (pair.student, pair.teacher.detach()))
    return ours, theirs


def _as_vectors(state: Tensor, mask: Tensor | None, first: bool, flat: bool) -> Tensor:
    if state.dim() == 4:
        return state.flatten(1) if flat else state.mean((2, 3))
    if state.dim() == 3:
        if first or mask is None or mask.shape[1] != state.shape[1]:
            return state[:, 0] if first else state.mean(1)
        return state.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return state.flatten(1)
