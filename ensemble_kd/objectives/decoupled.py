"""KL in two parts: the label's class against all others, and the others among themselves."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, over_classes, register
from ensemble_kd.objectives.divergences import LEAST_LOG
from ensemble_kd.objectives.hard import UNLABELLED
from ensemble_kd.objectives.logits import precision


@register("decoupled_kd")
@dataclass(frozen=True, config=STRICT)
class DecoupledKD:
    """T^2 * (a * KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + b * KL(p' || q')); (B, C) -> (B,).

    p = softmax(v / T), q = softmax(z / T); y is the label, and p', q' are the distributions over the other
    classes. Zhao et al., arXiv 2203.08679: KL(p || q) is the same sum with a = 1 and b = 1 - p_y, so that a
    sure teacher hides what it knows about the other classes. The paper takes a = 1 and b from 1 to 8.
    Deviation: for a row without a label, y is the teacher's most likely class.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    stacks: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0, le=1000)]
    """T, on both sides."""
    target_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """a, of the label's class against all others."""
    other_weight: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """b, of the others among themselves."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        dtype = precision(student.logits, self.temperature)
        z, v = student.logits.to(dtype), teacher.logits.detach().to(dtype)
        labels = batch.labels.expand(z.shape[:-1])
        target = torch.where(labels == UNLABELLED, v.argmax(-1), labels).unsqueeze(-1)  # (..., B, 1)
        is_target = torch.zeros_like(z, dtype=torch.bool).scatter_(-1, target, True)
        target_q, rest_q, others_q = parts(z / self.temperature, target, is_target)
        target_p, rest_p, others_p = parts(v / self.temperature, target, is_target)
        binary = target_p.exp() * (target_p - target_q) + rest_p.exp() * (rest_p - rest_q)
        others = (others_p.exp() * (others_p - others_q)).masked_fill(is_target, 0.0).sum(-1, keepdim=True)
        loss = self.target_weight * binary + self.other_weight * others
        loss = (loss * self.temperature**2).squeeze(-1)
        return loss.to(torch.promote_types(student.logits.dtype, torch.float32))


def parts(logits: Tensor, target: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y (..., B, 1), log (1 - p_y) (..., B, 1), and log p' (..., B, C), without meaning at y."""
    log_p = over_classes(F.log_softmax, logits).clamp(min=LEAST_LOG)
    rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(-1, keepdim=True)
    return log_p.gather(-1, target), rest, log_p - rest
