"""Fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import MLPConfig
from ensemble_kd.models.dropout import dropout
from ensemble_kd.models.outputs import Outputs


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them (arXiv 1503.02531, section 3: 784-1200-1200-10).

    Takes (B, ...) float, flattened to (B, F). Hidden states: `layer_1`, `layer_2`, ... (B, units), each
    after its ReLU and before dropout.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [num_features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(widths[-1], num_outputs)
        self.dropout, self.input_dropout = dropout, input_dropout

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        states: dict[str, Tensor] = {}
        x = x.flatten(1)  # (B, F)
        if self.input_dropout:
            x = dropout(x, self.input_dropout, self.training)
        for i, layer in enumerate(self.layers, start=1):
            x = F.relu(layer(x), inplace=True)  # in place: neither backward pass needs the value before it
            if hidden:
                states[f"layer_{i}"] = x
            if self.dropout:
                x = dropout(x, self.dropout, self.training)
        return Outputs(self.head(x), states if hidden else None)


def build_mlp(model: MLPConfig, info: dict[str, Any], num_outputs: int) -> MLP:
    features = math.prod(info["input_shape"])
    return MLP(features, num_outputs, model.hidden, model.dropout, model.input_dropout)
