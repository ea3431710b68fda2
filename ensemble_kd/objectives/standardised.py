"""KL between standardised logits."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.logits import KL

SMALLEST = 1e-7
"""Added to the standard deviation, for logits that are all equal."""


@register("standardised_kl")
@dataclass(frozen=True, config=STRICT)
class StandardisedKL(KL):
    """`kl` of logits with mean 0 and standard deviation 1 over the classes of each example; (B, C) -> (B,).

    The student has to match how far apart the teacher's logits are, not how sure it is. Sun et al.,
    arXiv 2403.01427, algorithm 1; the standard deviation is that of the paper's formula, over C, where its
    published code divides by C - 1. The paper multiplies by a weight of 9 and T^2 with T = 2: see `alpha`.
    With alpha = 1 nothing tells the student its scale; calibrate it, or leave the labels a share.
    """

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        z, v = standardised(student.logits), standardised(teacher.logits)
        return KL.__call__(self, Outputs(z), Outputs(v), batch)


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / std over the last axis."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + SMALLEST)
