"""Correlations of predictions in place of their values (DIST)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, over_classes, register
from ensemble_kd.objectives.logits import precision


@register("dist")
@dataclass(frozen=True, config=STRICT)
class DIST:
    """T^2 * (a * (1 - r(q_i, p_i)) + b * mean_c (1 - r(q_:c, p_:c))); (B, C) -> (B,).

    r is Pearson's correlation; p_i are the teacher's probabilities of example i over the classes, p_:c those
    of class c over the batch, at T. Huang et al., arXiv 2205.10536: a student that is far from its teacher
    need not match it, if it ranks classes (within an example) and examples (within a class) alike. The
    paper's weights are a = b = 1 at T = 1 for ImageNet, a = b = 2 at T = 4 for CIFAR.
    The second part depends on the whole batch: gradient accumulation and replicas, which cut it, change it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    stacks: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0, le=1000)]
    """T, on both sides."""
    class_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """a, of the correlation over the classes of each example."""
    example_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """b, of the correlation over the examples of each class."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        dtype = precision(student.logits, self.temperature)
        q, p = (
            over_classes(F.softmax, x.to(dtype) / self.temperature)
            for x in (student.logits, teacher.logits.detach())
        )
        of_classes = 1 - correlation(q, p, -1)  # (..., B, 1)
        of_examples = (1 - correlation(q, p, -2)).mean(-1, keepdim=True)  # (..., 1, 1)
        loss = self.class_weight * of_classes + self.example_weight * of_examples
        loss = (loss * self.temperature**2).squeeze(-1)
        return loss.to(torch.promote_types(student.logits.dtype, torch.float32))


def correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's r along `dim`, which is kept with size 1; 0 where one side does not vary."""
    x, y = (value - value.mean(dim, keepdim=True) for value in (x, y))
    return F.cosine_similarity(x, y, dim=dim, eps=1e-12).unsqueeze(dim)
