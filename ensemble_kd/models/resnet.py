"""Small residual networks for images, in the form that their paper uses on CIFAR (arXiv 1512.03385, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import ResNetConfig
from ensemble_kd.models.dropout import dropout
from ensemble_kd.models.outputs import Outputs

MOST_GROUPS, CHANNELS_OF_GROUP = 8, 4
"""Of group norm: most groups, and fewest channels in each. With one, an image of a pixel would be 0."""


def norm_groups(channels: int) -> int:
    """The most groups of equal size that so many channels are cut into."""
    most = min(MOST_GROUPS, channels // CHANNELS_OF_GROUP)
    return max((n for n in range(1, most + 1) if channels % n == 0), default=1)


@dataclass(frozen=True)
class Style:
    """What the blocks of a network are made of; fields as in `ResNetConfig`."""

    block: str = "basic"
    norm: str = "batch"
    groups: int = 4
    reduction: int = 4

    def normed(self, channels: int) -> nn.Module:
        """What follows a convolution with so many outputs."""
        if self.norm == "group":
            return nn.GroupNorm(norm_groups(channels), channels)
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.Identity()

    def convolution(
        self, channels_in: int, channels: int, size: int, stride: int = 1, groups: int = 1
    ) -> Any:
        """With a bias where no norm follows that has one."""
        padding = size // 2
        bias = self.norm == "none"
        return nn.Conv2d(channels_in, channels, size, stride, padding, groups=groups, bias=bias)

    def spatial(self, channels_in: int, channels: int, stride: int = 1) -> nn.Module:
        """A 3x3 convolution; of cheap blocks one within groups, norm, ReLU, and 1x1 across them."""
        if self.block in ("basic", "bottleneck"):
            return self.convolution(channels_in, channels, 3, stride)
        groups = channels_in if self.block == "depthwise" else self.groups
        return nn.Sequential(
            self.convolution(channels_in, channels_in, 3, stride, groups),
            self.normed(channels_in),
            nn.ReLU(inplace=True),
            self.convolution(channels_in, channels, 1),
        )


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))); a 1x1 convolution on the shortcut where the shape changes.

    A `bottleneck` has three convolutions, and its first one, 1x1, has the stride, as in the paper.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, style: Style | None = None) -> None:
        super().__init__()
        style = style or Style()
        if style.block == "bottleneck":
            inner = channels // style.reduction
            self.conv_1: nn.Module = style.convolution(channels_in, inner, 1, stride)
            self.norm_1 = style.normed(inner)
            self.conv_2: nn.Module = style.spatial(inner, inner)
            self.norm_2 = style.normed(inner)
            self.conv_3 = style.convolution(inner, channels, 1)
            self.norm_3 = style.normed(channels)
        else:
            self.conv_1 = style.spatial(channels_in, channels, stride)
            self.norm_1 = style.normed(channels)
            self.conv_2 = style.spatial(channels, channels)
            self.norm_2 = style.normed(channels)
        self.bottleneck = style.block == "bottleneck"
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                style.convolution(channels_in, channels, 1, stride), style.normed(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.end(x, self.begin(x))

    def begin(self, x: Tensor) -> Tensor:
        """The first convolution's map, after norm and ReLU."""
        return F.relu(self.norm_1(self.conv_1(x)), inplace=True)

    def end(self, x: Tensor, first: Tensor) -> Tensor:
        """What the block makes of its input and its first map."""
        y = self.norm_2(self.conv_2(first))
        if self.bottleneck:
            y = self.norm_3(self.conv_3(F.relu(y, inplace=True)))
        return F.relu(y + self.shortcut(x), inplace=True)

    @property
    def last(self) -> Any:
        """The last convolution before the shortcut is added."""
        last: Any = self.conv_3 if self.bottleneck else self.conv_2
        return last[-1] if isinstance(last, nn.Sequential) else last


class ResNet(nn.Module):
    """A stem, three stages of `blocks` residual blocks, average pooling, a linear layer.

    Stage s has width * 2^(s-1) channels; stages 2 and 3 halve the resolution. Any image size does.
    Deviation: projection shortcuts where the paper pads with zeros. Takes (B, H, W, channels) float.
    Hidden states: per stage `stage_1_first` and `stage_1`, its first convolution's map (after norm and ReLU)
    and its last block's, (B, C, H, W), and `pooled` (B, 4 * width).
    """

    def __init__(
        self,
        channels_in: int,
        num_outputs: int,
        width: int = 16,
        blocks: int = 1,
        dropout: float = 0.0,
        *,
        style: Style | None = None,
        large_stem: bool = False,
    ) -> None:
        super().__init__()
        style = style or Style()
        size, stride = (7, 2) if large_stem else (3, 1)
        self.stem = style.convolution(channels_in, width, size, stride)
        self.norm = style.normed(width)
        self.large_stem = large_stem
        stages, before = [], width
        for stage in range(3):
            channels = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            inputs = [before] + [channels] * (blocks - 1)
            pairs = zip(inputs, strides, strict=True)
            stages.append(nn.Sequential(*(ResidualBlock(a, channels, stride, style) for a, stride in pairs)))
            before = channels
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(before, num_outputs)
        self.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if style.norm == "none":  # maps would grow with each block that is added
            for block in self.modules():
                if isinstance(block, ResidualBlock):
                    nn.init.zeros_(block.last.weight)

    def enter(self, x: Tensor) -> Tensor:
        """The map that the first section takes, of images (B, H, W, channels)."""
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory as the convolutions like it
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        return F.max_pool2d(x, 3, 2, padding=1) if self.large_stem else x

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

    style = Style(model.block, model.norm, model.groups, model.reduction)
    channels, large = info["input_shape"][2], model.stem == "large"
    settings = (model.width, model.blocks, model.dropout)
    networks = [
        ResNet(channels, num_outputs, *settings, style=style, large_stem=large) for _ in range(model.branches)
    ]
    return networks[0] if model.branches == 1 else Branched(networks, model.branch_section)
