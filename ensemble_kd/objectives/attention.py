"""Objectives on attention. S: scores Q K^T / sqrt(d) of a block, before mask and softmax, (B, A, L, L).

A query or key at a padded position counts nowhere. Losses of several pairs of blocks are added up.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.hidden import at_least_float32, attended
from ensemble_kd.objectives.layers import LayerMap, Layers, Pair, attention_pairs


@register("attention_mse")
@dataclass(frozen=True, config=STRICT)
class AttentionMSE:
    """sum_m 1/(A n^2) sum_a,i,j (S_s,m - S_t,g(m))^2 over the n attended positions; (B, A, L, L) -> (B,).

    TinyBERT's L_attn, arXiv 1909.10351, section 3.1. Its code sets masked scores to 0 but counts them in the
    mean; here they are left out of it, so that padding changes nothing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    layers: Layers = "uniform"
    """g: `uniform`, `last`, `final`, or pairs [student, teacher]."""

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        self._pairs(student, teacher)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        pairs = self._pairs(student, teacher)
        valid = _valid(student, teacher, pairs)  # (B, L)
        both = valid[:, None, :, None] & valid[:, None, None, :]  # (B, 1, L, L)
        terms = []
        for _, ours, theirs in pairs:
            difference = at_least_float32(ours) - at_least_float32(theirs.detach())
            squares = difference.masked_fill(~both, 0.0).square()
            terms.append(squares.mean(1).sum((1, 2)) / both.sum((1, 2, 3)).clamp(min=1))
        return torch.stack(terms).sum(0)

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[Pair]:
        return _fitting(self.layers, student, teacher, any_heads=False)


@register("attention_kl")
@dataclass(frozen=True, config=STRICT)
class AttentionKL:
    """sum_m 1/(A n) sum_a,i KL(softmax(S_t,g(m),a,i) || softmax(S_s,m,a,i)); (B, A, L, L) -> (B,).

    i: the n attended positions; the softmax runs over the same n keys. MobileBERT, arXiv 2004.02984 (every
    block); that of MiniLM, arXiv 2002.10957, is `layers: final`. `heads: mean`, for students with another
    number of heads, is an addition.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    layers: Layers = "uniform"
    """g: `uniform`, `last`, `final`, or pairs [student, teacher]."""
    heads: Literal["match", "mean"] = "match"
    """`match`: head by head. `mean`: the mean of each side's distributions over its heads."""

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        self._pairs(student, teacher)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        pairs = self._pairs(student, teacher)
        valid = _valid(student, teacher, pairs)  # (B, L)
        terms = []
        for _, ours, theirs in pairs:
            log_q, log_p = self._log_weights(ours, valid), self._log_weights(theirs.detach(), valid)
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)  # (B, L), a number per query
            terms.append((divergence * valid).sum(1) / valid.sum(1).clamp(min=1))
        return torch.stack(terms).sum(0)

    def _log_weights(self, scores: Tensor, valid: Tensor) -> Tensor:
        """log softmax over the valid keys, (B, A, L, L), or (B, 1, L, L) where heads are averaged."""
        scores = at_least_float32(scores)
        # Finite, unlike -inf: then 0 log 0 is 0, and an example without a single valid key is not NaN.
        nothing = torch.finfo(scores.dtype).min / 2
        log_weights = F.log_softmax(scores.masked_fill(~valid[:, None, None, :], nothing), dim=-1)
        if self.heads == "match":
            return log_weights
        return log_weights.logsumexp(1, keepdim=True) - math.log(scores.shape[1])

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[Pair]:
        return _fitting(self.layers, student, teacher, any_heads=self.heads == "mean")


def _fitting(layers: LayerMap, student: Outputs, teacher: Outputs, any_heads: bool) -> list[Pair]:
    """The map's pairs; ConfigError with every one that does not fit."""
    pairs, problems = attention_pairs(layers, student, teacher), []
    for (ours, theirs), s, t in pairs:
        if s.shape[-2:] != t.shape[-2:]:
            problems.append(
                f"layers: the student's {ours} attends over {s.shape[-1]} positions, the teacher's {theirs} "
                f"over {t.shape[-1]}; both must read the same tokens"
            )
        elif s.shape[1] != t.shape[1] and not any_heads:
            problems.append(
                f"layers: the student's {ours} has {s.shape[1]} heads, the teacher's {theirs} {t.shape[1]}; "
                f"give the student {t.shape[1]} heads, or use attention_kl with heads: mean"
            )
    if problems:
        raise ConfigError(problems)
    return pairs


def _valid(student: Outputs, teacher: Outputs, pairs: list[Pair]) -> Tensor:
    """(B, L) bool: positions that are not padding."""
    mask, scores = attended(student, teacher), pairs[0].student
    return scores.new_ones(len(scores), scores.shape[-1], dtype=torch.bool) if mask is None else mask
