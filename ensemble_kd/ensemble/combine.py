"""One teacher from several: the mean of the members' distributions at a temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOG_SAFE = -60.0
"""Means of float32 probabilities above exp(this) have lost nothing to underflow."""


@torch.no_grad()
def mean_logits(
    member_logits: Tensor,
    temperature: float,
    mean: str = "arithmetic",
    weights: Sequence[float] | Tensor | None = None,
    calibration: Sequence[float] | None = None,
) -> Tensor:
    """v = T * log p, (B, M, C) -> (B, C), with p the members' mean at T; so softmax(v / T) = p.

    arithmetic: p = sum_m w_m softmax(v_m / T), each member softened before averaging
    geometric:  p ~ prod_m softmax(v_m / T)^w_m = softmax(sum_m w_m v_m / T)

    value      (B, M, 1) -> (B, 1), sum_m w_m v_m: of values, which have no distribution to soften

    The first two are those of arXiv 1503.02531, section 1; w is `weights` scaled to sum 1, by default equal.
    `calibration` has a temperature of each member's own, by which its logits are divided first.
    float16 is computed in float32. Members of weight 0 are not read. No gradient: a teacher is constant.
    """
    if mean not in ("arithmetic", "geometric", "value"):
        raise ValueError(f"mean: arithmetic or geometric, got {mean!r}")
    logits = member_logits.to(torch.promote_types(member_logits.dtype, torch.float32))
    shares = _shares(weights, logits)
    own = None
    if calibration is not None and mean != "value":
        own = torch.as_tensor(calibration, dtype=logits.dtype, device=logits.device)
        if own.shape != (logits.shape[1],):
            raise ValueError(f"calibration: one per member, {logits.shape[1]} in all; got {tuple(own.shape)}")
    if shares is not None and not bool((shares > 0).all()):
        own = None if own is None else own[shares > 0]
        logits, shares = logits[:, shares > 0], shares[shares > 0]
    if own is not None:
        logits = logits / own[:, None]
    if mean == "value":
        return logits.mean(1) if shares is None else torch.einsum("bmc,m->bc", logits, shares)
    if mean == "geometric":
        averaged = logits.mean(1) if shares is None else torch.einsum("bmc,m->bc", logits, shares)
        return temperature * torch.log_softmax(averaged / temperature, dim=1)
    # By hand: torch's softmax over a short last axis takes several times as long.
    exponents = logits / temperature
    exponents -= exponents.amax(2, keepdim=True)
    weights_bmc = exponents.exp()  # (B, M, C), the largest of each member 1
    totals = weights_bmc.sum(2, keepdim=True)  # (B, M, 1)
    parts = 1 / (totals * logits.shape[1]) if shares is None else shares[:, None] / totals
    log_p = weights_bmc.mul_(parts).sum(1).log_()  # (B, C)
    # Where all members' probabilities of a class underflow (low temperatures), once more in logs.
    low = (log_p < LOG_SAFE).any(1)
    if bool(low.any()):
        log_p[low] = torch.logsumexp(exponents[low] + parts[low].log(), dim=1)
    return temperature * log_p


def _shares(weights: Sequence[float] | Tensor | None, logits: Tensor) -> Tensor | None:
    """Weights (M,) that sum to 1; None for equal ones."""
    if weights is None:
        return None
    shares = torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    if shares.shape != (logits.shape[1],):
        raise ValueError(f"weights: one per member, {logits.shape[1]} in all; got {tuple(shares.shape)}")
    if not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < float("inf"):
        raise ValueError(f"weights: at least 0, and one above 0; got {shares.tolist()}")
    return shares / shares.sum()
