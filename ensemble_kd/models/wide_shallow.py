"""A shallow network that is as good as a deep one, once that has taught it (arXiv 1312.6184)."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import WideShallowConfig
from ensemble_kd.models.dropout import dropout
from ensemble_kd.models.outputs import Outputs


class WideShallow(nn.Module):
    """head(relu(W x)), with W (units, F) as the product of two matrices of rank k where `rank` says so.

    The product costs k (F + units) in place of F * units; it is not multiplied out afterwards, which would
    cost more. Takes (B, ...) float, flattened to (B, F). Hidden states: `layer_1` (B, units), after its ReLU
    and before dropout.
    """

    def __init__(
        self, num_features: int, num_outputs: int, units: int, rank: int | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.low_rank = nn.Identity() if rank is None else nn.Linear(num_features, rank, bias=False)
        self.wide = nn.Linear(num_features if rank is None else rank, units)
        self.head = nn.Linear(units, num_outputs)
        self.dropout = dropout

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        x = F.relu(self.wide(self.low_rank(x.flatten(1))), inplace=True)  # (B, units)
        states = {"layer_1": x} if hidden else None
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        return Outputs(self.head(x), states)


def build_wide_shallow(model: WideShallowConfig, info: dict[str, Any], num_outputs: int) -> WideShallow:
    return WideShallow(math.prod(info["input_shape"]), num_outputs, model.units, model.rank, model.dropout)
