"""The rows of all replicas as one batch, for losses on the relations between rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """(B, ...) of each replica -> (R B, ...) on all of them; the gradient is summed over replicas."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.rows = group, len(state)
        parts = [torch.empty_like(state) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, state.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole, group=ctx.group)
        begin = dist.get_rank(ctx.group) * ctx.rows
        return whole[begin : begin + ctx.rows], None


def gathered(state: Tensor, group: Any) -> Tensor:
    """The rows (B, D) of this replica and of the others (R B, D), in the replicas' order; `state` itself for
    one replica, whose group is None.

    Each replica's loss is the mean over its own rows; the mean of their gradients is then that of the whole
    batch's loss.
    """
    if group is None:
        return state
    whole: Tensor = _Gather.apply(state, group)
    return whole


def own_rows(values: Tensor, group: Any) -> Tensor:
    """Of values (R B, ...) of the whole batch those of this replica's rows (B, ...)."""
    if group is None:
        return values
    return values.chunk(dist.get_world_size(group))[dist.get_rank(group)]
