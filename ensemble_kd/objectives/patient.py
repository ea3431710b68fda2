"""Patient distillation: the directions of the hidden states that a classifier reads, block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.hidden import ProjectionChoice, compared, make_projections, unit
from ensemble_kd.objectives.layers import Layers, Pair, state_pairs


@register("patient")
@dataclass(frozen=True, config=STRICT)
class Patient:
    """sum_m ||h_s,m / ||h_s,m|| - h_t,g(m) / ||h_t,g(m)|| ||^2, h by `states`; (B, L, D) of both -> (B,).

    PKD, arXiv 1908.09355: its PKD-skip is `uniform`, its PKD-last is `last`. A term is 2 - 2 cos. The paper's
    formula is the sum; the released code, and so the published weights (10 to 1000), go with the mean over
    blocks and width. A projection for students of another width and `states: mean` are additions.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Layers = "uniform"
    """g: `uniform`, `last`, `final`, or pairs [student, teacher]."""
    skip_last: bool = True
    """Leave the student's last block out of `uniform` and `last`, as it feeds the classifier anyway. Pairs
    that are written out are taken as they are."""
    reduction: Literal["mean", "sum"] = "mean"
    """`mean`: over blocks and width, the sum divided by M D_t. `sum`: over both."""
    projection: ProjectionChoice = "auto"
    """`auto`, `linear` or `none`."""
    shared: bool = True
    """One projection for all pairs, or one each."""
    states: Literal["first", "mean"] = "first"
    """`first`: the first position's, [CLS], which a BERT's own classifier reads. `mean`: the mean over the
    attended positions, which one with `pooling: mean` reads."""

    @property
    def first_only(self) -> bool:
        return self.states == "first"

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module | None:
        student = _as_long(student, teacher)
        return make_projections(self._pairs(student, teacher), self.projection, self.shared)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        terms, student = [], _as_long(student, teacher)
        for ours, theirs, mask in compared(self._pairs(student, teacher), student, teacher, learned):
            read = (ours[:, 0], theirs[:, 0]) if self.first_only else (_mean(ours, mask), _mean(theirs, mask))
            squares = (unit(read[0]) - unit(read[1])).square()  # (B, D)
            terms.append(squares.mean(1) if self.reduction == "mean" else squares.sum(1))
        each = torch.stack(terms)  # (blocks, B)
        return each.mean(0) if self.reduction == "mean" else each.sum(0)

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[Pair]:
        return state_pairs(self.layers, student, teacher, self.skip_last)


def _mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, D) -> (B, D) over the positions of the mask (B, L)."""
    if mask is None:
        return states.mean(1)
    return states.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _as_long(student: Outputs, teacher: Outputs) -> Outputs:
    """The student at the first position alone, where that is all there is of the teacher."""
    states = (teacher.hidden or {}).values()
    if student.hidden is None or not any(state.dim() == 3 and state.shape[1] == 1 for state in states):
        return student
    first = {name: state[:, :1] if state.dim() == 3 else state for name, state in student.hidden.items()}
    mask = None if student.mask is None else student.mask[:, :1]
    return replace(student, hidden=first, mask=mask)
