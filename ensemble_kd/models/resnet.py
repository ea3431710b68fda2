"""Small residual network for images, in the form that its paper uses on CIFAR (arXiv 1512.03385, 4.2)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import ResNetConfig
from ensemble_kd.models.dropout import dropout
from ensemble_kd.models.outputs import Outputs


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))); a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.end(x, self.begin(x))

    def begin(self, x: Tensor) -> Tensor:
        """The first convolution's map, after norm and ReLU."""
        return F.relu(self.norm_1(self.conv_1(x)), inplace=True)

    def end(self, x: Tensor, first: Tensor) -> Tensor:
        """What the block makes of its input and its first map."""
        return F.relu(self.norm_2(self.conv_2(first)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """One convolution, three stages of `blocks` residual blocks, average pooling, a linear layer.

    Stage s has width * 2^(s-1) channels; stages 2 and 3 halve the resolution. Any image size does.
    Deviation: projection shortcuts where the paper pads with zeros. Takes (B, H, W, channels) float.
    Hidden states: per stage `stage_1_first` and `stage_1`, its first convolution's map (after norm and ReLU)
    and its last block's, (B, C, H, W), and `pooled` (B, 4 * width).
    """

    def __init__(
        self, channels_in: int, num_outputs: int, width: int = 16, blocks: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, before = [], width
        for stage in range(3):
            channels = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            inputs = [before] + [channels] * (blocks - 1)
            stages.append(
                nn.Sequential(
                    *(ResidualBlock(a, channels, stride) for a, stride in zip(inputs, strides, strict=True))
                )
            )
            before = channels
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(before, num_outputs)
        self.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def enter(self, x: Tensor) -> Tensor:
        """The map that the first section takes, of images (B, H, W, channels)."""
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory as the convolutions like it
        return F.relu(self.norm(self.stem(x)), inplace=True)

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        states: dict[str, Tensor] = {}
        x = self.enter(x)
        for i, stage in enumerate(self.stages, start=1):
            if not hidden:
                x = stage(x)
                continue
            block: Any
            for k, block in enumerate(stage.children()):
                first = block.begin(x)
                if k == 0:
                    states[f"stage_{i}_first"] = first
                x = block.end(x, first)
            states[f"stage_{i}"] = x
        x = x.mean((2, 3))  # (B, 4 * width)
        if hidden:
            states["pooled"] = x
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        return Outputs(self.head(x), states if hidden else None)


def build_resnet(model: ResNetConfig, info: dict[str, Any], num_outputs: int) -> nn.Module:
    from ensemble_kd.models.branched import Branched  # which is made of networks of this kind

    networks = [
        ResNet(info["input_shape"][2], num_outputs, model.width, model.blocks, model.dropout)
        for _ in range(model.branches)
    ]
    return networks[0] if model.branches == 1 else Branched(networks, model.branch_section)
