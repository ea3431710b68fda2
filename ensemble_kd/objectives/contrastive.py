"""Contrastive distillation: a row's two representations belong together, those of two rows do not."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.gathered import own_rows
from ensemble_kd.objectives.hidden import at_least_float32, unit
from ensemble_kd.objectives.maps import one_state, vectors
from ensemble_kd.objectives.relations import Relation


class Embeddings(nn.Module):
    """A linear map of each side to one space, and vectors of length 1 there."""

    def __init__(self, ours: Tensor, theirs: Tensor, size: int) -> None:
        super().__init__()
        made: Any = {"device": ours.device, "dtype": at_least_float32(ours).dtype}
        self.student = nn.Linear(ours.shape[1], size, **made)
        self.teacher = nn.Linear(theirs.shape[1], size, **made)

    def forward(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(ours.device.type, enabled=False):
            return unit(self.student(ours)), unit(self.teacher(theirs))


@register("crd")
@dataclass(frozen=True, config=STRICT)
class CRD(Relation):
    """-log exp(a_i.b_i / tau) / sum_j exp(a_i.b_j / tau) - log exp(a_i.b_i / tau) / sum_j exp(a_j.b_i / tau),
    a = unit(W f), b = unit(V g), both learned; (B, D), (B, E) -> (B,).

    After Tian et al., arXiv 1910.10699: learned linear maps of both sides to 128 numbers of length 1, tau
    0.07, both sides as anchors; their weight is 0.8. Deviation: the negatives are the batch's other rows
    (InfoNCE, arXiv 1807.03748); the paper draws 16,384 of other classes from a memory of the whole data set,
    with a loss of noise-contrastive estimation. So large batches help here.
    """

    size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Width of the common space."""
    tau: Annotated[float, Field(gt=0, le=100)] = 0.07
    """Temperature of the similarities."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module:
        pair = one_state(self.states, student, teacher)
        return Embeddings(*vectors(pair, student, teacher, self.first_only, flat=False), self.size)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        assert learned is not None, "prepare returns it"
        a, b = learned(*self.read(student, teacher, batch))
        with torch.autocast(a.device.type, enabled=False):
            similar = a @ b.T / self.tau  # (B, B)
        rows = torch.arange(len(a), device=a.device)
        losses = sum(F.cross_entropy(side, rows, reduction="none") for side in (similar, similar.T))
        assert isinstance(losses, Tensor)
        return own_rows(losses, batch.group)
