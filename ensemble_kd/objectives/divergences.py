"""Other distances between the softened distributions of student and teacher: reverse KL, Jensen-Shannon.

z: student (B, C), v: teacher (B, C), the members' mean at T; or (n, B, C) each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, over_classes, register
from ensemble_kd.objectives.logits import precision

LEAST_LOG = -80.0
"""Least log probability that is told apart: a class that the teachers rule out costs a finite loss."""


@dataclass(frozen=True, config=STRICT)
class Divergence(ABC):
    """Base: both sides' log probabilities at T, and T^2 times what `between` makes of them."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    stacks: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0, le=1000)]
    """T, on both sides."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        z, v = student.logits, teacher.logits.detach()
        dtype = precision(z, self.temperature)
        log_q, log_p = (
            over_classes(F.log_softmax, x.to(dtype) / self.temperature).clamp(min=LEAST_LOG) for x in (z, v)
        )
        loss = self.between(log_q, log_p).sum(-1, keepdim=True) * self.temperature**2
        return loss.squeeze(-1).to(torch.promote_types(z.dtype, torch.float32))

    @abstractmethod
    def between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Each class's share (..., C), from log probabilities of the student, q, and the teacher, p."""


@register("reverse_kl")
@dataclass(frozen=True, config=STRICT)
class ReverseKL(Divergence):
    """T^2 * sum_c q_c (log q_c - log p_c), p = softmax(v / T), q = softmax(z / T); (B, C) -> (B,).

    The other direction of `kl`: it counts what the student finds likely and the teacher does not, and lets
    the student leave out what it is too small for. MiniLLM (arXiv 2306.08543) argues for it where the student
    is much smaller than its teacher, for sequences; here it is per example.
    """

    def between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return log_q.exp() * (log_q - log_p)


@register("jensen_shannon")
@dataclass(frozen=True, config=STRICT)
class JensenShannon(Divergence):
    """T^2 / 2 * sum_c (p_c log(p_c / m_c) + q_c log(q_c / m_c)), m = (p + q) / 2; (B, C) -> (B,).

    Symmetric, and at most T^2 log 2, so that single examples on which teacher and student disagree weigh less
    than in `kl`; for near distributions it is a quarter of that. Lin, IEEE Trans. Inf. Theory 37 (1991); for
    distillation e.g. arXiv 2306.13649.
    """

    def between(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_q, log_p) - math.log(2)
        return (log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)) / 2
