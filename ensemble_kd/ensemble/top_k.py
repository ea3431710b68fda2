"""Soft targets over many classes in little space: the k largest logits and the mass of the rest.

Logits are stored relative to their maximum, which no softmax sees: the most probable classes, whose
logits are then near 0, are those that float16 rounds least. The classes not kept are restored with one
logit for all of them, such that their mass at T = 1 is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -65504.0
"""Least finite float16: lower logits are raised to it. At T = 1000 their probability is below 1e-28."""

ROUNDING = 2e-6
"""What float32 adds to any total variation here: probabilities times their logarithm times 2^-24."""


@dataclass
class TopK:
    """The outputs of M members on B examples, C classes cut to k."""

    values: Tensor
    """(B, M, k) float16: the k largest logits less the largest, descending."""
    indices: Tensor
    """(B, M, k) int16, or int32 from 32768 classes on: their classes."""
    rest: Tensor
    """(B, M) float32: logsumexp (at T = 1) of the others less the largest; -inf where all are kept."""


def compress(logits: Tensor, k: int) -> TopK:
    """Keep the `k` largest of (B, M, C) logits, all of them where k >= C."""
    num_classes = logits.shape[-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = (logits - logits.amax(-1, keepdim=True)).clamp_(min=LOWEST)
    values, indices = logits.topk(min(k, num_classes), dim=-1)
    rest = logits.scatter(-1, indices, float("-inf")).logsumexp(-1)
    return TopK(values.half(), indices.to(torch.int16 if num_classes <= 2**15 else torch.int32), rest.float())


def restore(top_k: TopK, num_classes: int) -> Tensor:
    """Logits (B, M, C) float32: what was kept, and rest - log(C - k) for each of the other classes."""
    num_rest = num_classes - top_k.values.shape[-1]
    each = top_k.rest.float() - math.log(max(num_rest, 1))
    logits = each[..., None].repeat(1, 1, num_classes)
    return logits.scatter_(-1, top_k.indices.long(), top_k.values.float())


def expand(top_k: TopK, num_classes: int, temperature: float) -> Tensor:
    """Log-probabilities (B, M, C) at a temperature."""
    return torch.log_softmax(restore(top_k, num_classes) / temperature, dim=-1)


def error_bound(top_k: TopK, num_classes: int, temperature: float) -> Tensor:
    """(B, M) float64: no less than the total variation between the true distribution at T and `expand`'s.

    Write a = 1/T, weights w_i = exp(z_i)^a, K = sum of the kept ones, u_j = exp(x_j) for the n = C - k
    others. Known are sum_j u_j = R and u_j <= U = exp(z_k). The mass of the others at T is
    S = sum_j u_j^a. Over this set of u, u^a being concave for T >= 1, S is largest for equal u_j and least
    at a corner: floor(R/U) of them at U, one with what is left, the others 0. For T < 1, convex, it is the
    other way round. With Y = U^a, s = S / (K + S), the restored S' = n (R/n)^a and s' = S' / (K + S'):

    - kept classes overlap in min(1 - s, 1 - s');
    - class j of the others in min(y_j / (K + S), s' / n), y_j = u_j^a in [0, Y]: concave in y_j and 0 at 0,
      hence at least y_j / Y times its value at Y; summed over j: min(s, s' S / (n Y));
    - total variation is 1 - overlap <= max(s, s') - min(s, s' S / (n Y)); take S at its ends.

    Rounding a kept logit by at most e_i moves its weight by a factor within exp(+-a e_i). As the total
    variation of two weightings is at most sum |w - w'| over the larger sum, this adds
    sum_i w_i (exp(a e_i) - 1) / (K + S). U and R are widened by their own rounding.
    """
    z = top_k.values.double()  # (B, M, k), the first of them 0
    num_rest = num_classes - z.shape[-1]
    rounding = z.abs() * 2.0**-11 * 1.001 + 2.0**-24  # half a unit in the last place of float16
    weights = (z / temperature).exp()
    kept = weights.sum(-1)  # K, between 1 and k
    moved = (weights * torch.expm1(rounding / temperature)).sum(-1)
    if num_rest <= 0:
        return (moved / kept + ROUNDING).clamp_(max=1.0)
    rest = top_k.rest.double()
    slack = 1e-6 * (8 + rest.abs())  # of a float32 logsumexp
    largest = z[..., -1] + rounding[..., -1]  # log U

    def equal(log_mass: Tensor) -> Tensor:
        """log S for equal u_j with log R = log_mass."""
        return math.log(num_rest) + (log_mass - math.log(num_rest)) / temperature

    def corner(log_mass: Tensor) -> Tensor:
        """log S at a corner."""
        ratio = (log_mass - largest).exp().clamp(max=num_rest)  # R / U
        whole = ratio.floor()
        return largest / temperature + (whole + (ratio - whole) ** (1 / temperature)).log()

    lower, upper = (corner, equal) if temperature >= 1 else (equal, corner)
    log_least, most, restored = lower(rest - slack), upper(rest + slack).exp(), equal(rest).exp()
    least = log_least.exp()

    share_least, share_most, share = (mass / (kept + mass) for mass in (least, most, restored))
    spread = (log_least - math.log(num_rest) - largest / temperature).exp().clamp(max=1.0)  # S / (n Y)
    unequal = torch.maximum(share, share_most) - torch.minimum(share_least, share * spread)
    return (unequal + moved / (kept + least) + ROUNDING).clamp_(0.0, 1.0)
