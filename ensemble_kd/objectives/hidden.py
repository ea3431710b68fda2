"""Objectives on hidden states: (B, L, D) of a transformer, (B, D), or (B, C, H, W), which is flattened.

h_s: student, h_t: teacher, i: the n attended positions of an example (one, where a state has no positions).
Losses of several pairs of states are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.layers import Layers, Pair, state_pairs

ProjectionChoice = Literal["auto", "linear", "none"]
"""`linear`: the student's states go through a learned linear map with bias to the teacher's width. `auto`: so
where the widths differ. `none`: the widths must be equal."""

NO_DIRECTION = 1e-6
"""Vectors of at most this length are left as they are by `unit`; dividing by their length would give them
gradients that drown all others."""


class Projections(nn.Module):
    """Linear maps of the student's states: one for all, or one each (None: the state stays as it is).

    Drawn as BERT draws its weights (normal, 0.02; bias 0), as TinyBERT's code does.
    """

    def __init__(self, widths: list[tuple[int, int] | None], shared: bool, like: Tensor) -> None:
        super().__init__()
        self.shared = shared
        self.maps = nn.ModuleList()
        for pair in widths[:1] if shared else widths:
            if pair is None:
                self.maps.append(nn.Identity())
                continue
            linear = nn.Linear(*pair, device=like.device, dtype=at_least_float32(like).dtype)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.maps.append(linear)

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        # A loss computed in bfloat16 would be noise where student and teacher are close.
        with torch.autocast(states[0].device.type, enabled=False):
            return [self.maps[0 if self.shared else i](state) for i, state in enumerate(states)]


def make_projections(pairs: list[Pair], projection: ProjectionChoice, shared: bool) -> Projections | None:
    """What `prepare` returns for these pairs. Raises ConfigError with every pair that does not fit."""
    problems = []
    widths = [(pair.student.shape[-1], pair.teacher.shape[-1]) for pair in pairs]
    for pair in pairs:
        vectors = pair.student.dim() == pair.teacher.dim() in (2, 3)
        if problem := _misfit(pair, any_width=vectors and projection != "none"):
            problems.append(problem)
        elif projection == "linear" and not vectors:
            problems.append(
                f"projection: linear is for states (B, D) and (B, L, D); {_sides(pair)}; set projection: none"
            )
    if problems:
        raise ConfigError(problems)
    wanted = [pair if projection == "linear" or pair[0] != pair[1] else None for pair in widths]
    if projection == "none" or not any(wanted):
        return None
    if shared and len(set(widths)) > 1:
        each = "; ".join(map(_sides, pairs))
        raise ConfigError(
            f"shared: one projection cannot serve states of several widths; {each}; set shared: false"
        )
    return Projections(list(wanted), shared, pairs[0].student)


def compared(
    pairs: list[Pair], student: Outputs, teacher: Outputs, learned: nn.Module | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Per pair both sides (B, L, D), float32 at least and of one width, and the attended positions (B, L)."""
    states = [at_least_float32(pair.student) for pair in pairs]
    if learned is not None:
        states = learned(states)
    for pair, ours in zip(pairs, states, strict=True):
        if problem := _misfit(pair._replace(student=ours), any_width=False):
            raise ConfigError(problem)
        theirs = at_least_float32(pair.teacher.detach())
        mask = None
        if ours.dim() == 3:
            mask = attended(student, teacher)
            if mask is not None and mask.shape != ours.shape[:2]:
                raise ConfigError(
                    f"layers: {_sides(pair)}, but the mask counts {mask.shape[1]} positions; a state with "
                    "three axes is (B, L, D), L as in the mask"
                )
        else:
            ours, theirs = ours.flatten(1).unsqueeze(1), theirs.flatten(1).unsqueeze(1)  # (B, 1, D)
        yield ours, theirs, mask


def attended(student: Outputs, teacher: Outputs) -> Tensor | None:
    """(B, L) bool: positions that neither side takes for padding; None where there is none."""
    if student.mask is None or teacher.mask is None:
        return teacher.mask if student.mask is None else student.mask
    return student.mask & teacher.mask


def at_least_float32(state: Tensor) -> Tensor:
    return state.to(torch.promote_types(state.dtype, torch.float32))


def unit(state: Tensor) -> Tensor:
    """h / ||h|| along the last axis; vectors without a direction, all but 0, stay as they are."""
    squared = state.square().sum(-1, keepdim=True)
    return state * squared.where(squared > NO_DIRECTION**2, 1.0).rsqrt()


def _mean_square(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the width and the attended positions: (B, L, D) twice -> (B,)."""
    difference = ours - theirs
    if mask is None:
        return difference.square().mean((1, 2))
    # Filled before it is squared: whatever stands at padding, its gradient is 0.
    squares = difference.masked_fill(~mask.unsqueeze(-1), 0.0).square().mean(-1)  # (B, L)
    return squares.sum(1) / mask.sum(1).clamp(min=1)


def _misfit(pair: Pair, any_width: bool) -> str | None:
    """What is wrong with the two shapes, the batch aside."""
    ours, theirs = pair.student.shape[1:], pair.teacher.shape[1:]
    if ours == theirs:
        return None
    if ours[:-1] != theirs[:-1] or len(ours) not in (1, 2):
        return f"layers: {_sides(pair)}; pair states that differ in their width at most"
    return (
        None if any_width else f"projection: {_sides(pair)}; set projection: auto, and give what is learned"
    )


def _sides(pair: Pair) -> str:
    def shape(state: Tensor) -> Any:
        return f"width {state.shape[-1]}" if state.dim() == 2 else f"shape {tuple(state.shape[1:])}"

    ours, theirs = pair.names
    return f"the student's {ours} has {shape(pair.student)}, the teacher's {theirs} {shape(pair.teacher)}"


@register("hidden_mse")
@dataclass(frozen=True, config=STRICT)
class HiddenMSE:
    """sum_m 1/n sum_i 1/D_t ||W h_s,m,i + b - h_t,g(m),i||^2; (B, L, D_s), (B, L, D_t) per block -> (B,).

    TinyBERT's L_hidn, arXiv 1909.10351, section 3.1, with the shared projection of its code. Its code takes
    the mean over padding too; here padding changes nothing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Layers = "uniform"
    """g: `uniform`, `last`, `final`, or pairs [student, teacher]; [0, 0] are the embeddings."""
    projection: ProjectionChoice = "auto"
    """`auto`, `linear` or `none`. TinyBERT's code: `linear`, also where the widths are equal."""
    shared: bool = True
    """One projection for all pairs (TinyBERT's code), or one each."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        return make_projections(state_pairs(self.layers, student, teacher), self.projection, self.shared)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        pairs = state_pairs(self.layers, student, teacher)
        terms = [_mean_square(*parts) for parts in compared(pairs, student, teacher, learned)]
        return torch.stack(terms).sum(0)


@register("embedding_mse")
@dataclass(frozen=True, config=STRICT)
class EmbeddingMSE:
    """1/n sum_i 1/D_t ||W e_s,i + b - e_t,i||^2, e: `embedding`; (B, L, D_s), (B, L, D_t) -> (B,).

    TinyBERT's L_embd, arXiv 1909.10351, section 3.1, with a W of its own as there. To share it with the
    blocks, as TinyBERT's code does, give `hidden_mse` the pair [0, 0] instead.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    projection: ProjectionChoice = "auto"
    """`auto`, `linear` or `none`."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        return make_projections(self._pairs(student, teacher), self.projection, shared=True)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        (parts,) = compared(self._pairs(student, teacher), student, teacher, learned)
        return _mean_square(*parts)

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[Pair]:
        return state_pairs(((0, 0),), student, teacher, setting="name")


@register("hidden_cosine")
@dataclass(frozen=True, config=STRICT)
class HiddenCosine:
    """sum_m 1/n sum_i (1 - cos(h_s,m,i, h_t,g(m),i)); (B, L, D) of both per block -> (B,).

    DistilBERT, arXiv 1910.01108, section 2: the last block alone. Computed as half the squared distance of
    the unit vectors, which is the same number, and exactly 0 where both agree. Vectors of length 0 count as
    agreeing with each other, and 1/2 apart from others. The mean is per example, not over the batch's tokens.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Layers = "final"
    """g: `final`, `uniform`, `last`, or pairs [student, teacher]."""
    projection: ProjectionChoice = "auto"
    """`auto`, `linear` or `none`."""
    shared: bool = True
    """One projection for all pairs, or one each."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        return make_projections(state_pairs(self.layers, student, teacher), self.projection, self.shared)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        pairs = state_pairs(self.layers, student, teacher)
        terms = [
            0.5 * ours.shape[-1] * _mean_square(unit(ours), unit(theirs), mask)
            for ours, theirs, mask in compared(pairs, student, teacher, learned)
        ]
        return torch.stack(terms).sum(0)
