"""Objectives on logits. z: student (B, C), v: teacher (B, C), the members' mean at T; or (n, B, C) each."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, over_classes, register

FLOAT64_FROM = 32.0
"""Above this temperature the KL is computed in float64: it is T^2 times smaller than the numbers whose
difference it is, and float32 would leave an error of about 1e-7 T^2 in the loss."""


def precision(logits: Tensor, temperature: float | Tensor) -> torch.dtype:
    """float64 where `FLOAT64_FROM` asks for it, in a stack for any of its members; else at least float32."""
    hot = bool(torch.as_tensor(temperature).max() >= FLOAT64_FROM)
    return torch.float64 if hot else torch.promote_types(logits.dtype, torch.float32)


@register("kl")
@dataclass(frozen=True, config=STRICT)
class KL:
    """T^2 * sum_c p_c (log p_c - log q_c), p = softmax(v / T), q = softmax(z / T); (B, C) -> (B,).

    Hinton, Vinyals, Dean, arXiv 1503.02531, section 2. T^2 keeps the gradient's size when T changes: it
    tends to (z - v) / C, both zero-meaned, as T grows. KL in place of the paper's cross-entropy: the same
    gradient, and 0 where student and teacher agree.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    stacks: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0, le=1000)]
    """T, on both sides."""

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        z, v = student.logits, teacher.logits.detach()
        dtype = torch.float64 if self._float64 else torch.promote_types(z.dtype, torch.float32)
        log_q = over_classes(F.log_softmax, z.to(dtype) / self.temperature)
        p = over_classes(F.softmax, v.to(dtype) / self.temperature)
        # Classes of probability 0 count 0, which the form with log p would make NaN.
        loss = F.kl_div(log_q, p, reduction="none").sum(-1, keepdim=True) * self.temperature**2
        return loss.squeeze(-1).to(torch.promote_types(z.dtype, torch.float32))

    @cached_property
    def _float64(self) -> bool:
        """Of a stack: whether one of its members asks for it."""
        return bool(torch.as_tensor(self.temperature).max() >= FLOAT64_FROM)


@register("mse")
@dataclass(frozen=True, config=STRICT)
class LogitMSE:
    """1/2 * sum_c (z_c - v_c)^2, z and v zero-meaned over the classes of each example; (B, C) -> (B,).
    Of values (B, K), which have no classes to be zero-meaned over: 1/K * sum_k (z_k - v_k)^2, as the loss on
    labels.

    Ba and Caruana, arXiv 1312.6184, in the form of arXiv 1503.02531, section 2.1: C times the limit of
    `KL` as T grows. Zero-meaning, because the ensemble's logits are defined up to a constant.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    stacks: ClassVar[bool] = True
    values: ClassVar[bool] = True

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        difference = student.logits.to(torch.promote_types(student.logits.dtype, torch.float32))
        difference = difference - teacher.logits.detach()
        if difference.shape[-1] == 1:
            return difference.squeeze(-1).square()
        if batch.labels.is_floating_point():  # so these are values
            return difference.square().mean(-1)
        return 0.5 * (difference - difference.mean(-1, keepdim=True)).square().sum(-1)
