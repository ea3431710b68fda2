"""A relational objective: each row's likeness to the others of its batch, as a distribution."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.gathered import own_rows
from ensemble_kd.objectives.relations import Relation


@register("neighbours")
@dataclass(frozen=True, config=STRICT)
class Neighbours(Relation):
    """KL(q_i || p_i) for each row i, (B,); q from the teacher's features (B, E), p from the student's (B, D).

    p_ij = softmax over j != i of cos(f_i, f_j) / sharpness. After CompRess (arXiv 2010.14713), with the rows
    of the batch as anchors, where the paper keeps a queue of them.
    """

    least_rows: ClassVar[int] = 3
    sharpness: Annotated[float, Field(gt=0)] = 0.1

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        f, g = self.read(student, teacher, batch)
        p, q = self.likeness(f), self.likeness(g.detach())
        return own_rows((q.exp() * (q - p)).sum(1), batch.group)

    def likeness(self, features: Tensor) -> Tensor:
        """log p_ij, (B, B - 1)."""
        unit = F.normalize(features, dim=1)
        others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        cosines = (unit @ unit.T)[others].view(len(unit), -1)
        return F.log_softmax(cosines / self.sharpness, dim=1)
