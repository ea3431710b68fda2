"""Plain convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import CNNConfig
from ensemble_kd.models.outputs import Outputs


class CNN(nn.Module):
    """relu(bn(conv3x3)) per entry of `channels`, average pooling, dropout, a linear layer.

    2x2 max pooling halves the resolution after each convolution but the last, rounded up, so that any image
    size does. The last stays at the resolution before it: on 8 x 8 pixels this beat pooling later, at two
    thirds of the cost. Takes (B, H, W, channels_in) float.
    Hidden states: `layer_1`, `layer_2`, ... (B, C, H, W), each after its pooling, and `pooled` (B, C).
    """

    def __init__(
        self, channels_in: int, num_outputs: int, channels: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [channels_in, *channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels)
        self.head = nn.Linear(widths[-1], num_outputs)
        self.dropout = dropout

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        states: dict[str, Tensor] = {}
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory as the convolutions like it
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), start=1):
            x = F.relu(norm(convolution(x)), inplace=True)
            if i < len(self.convolutions):
                x = F.max_pool2d(x, 2, ceil_mode=True)
            if hidden:
                states[f"layer_{i}"] = x
        x = x.mean((2, 3))  # (B, C)
        if hidden:
            states["pooled"] = x
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return Outputs(self.head(x), states if hidden else None)


def build_cnn(model: CNNConfig, info: dict[str, Any], num_outputs: int) -> CNN:
    return CNN(info["input_shape"][2], num_outputs, model.channels, model.dropout)
