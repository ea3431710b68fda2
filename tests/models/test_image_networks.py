"""Blocks of residual networks and shallow ones, against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.config import ResNetConfig, WideShallowConfig, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.resnet import ResidualBlock, ResNet, Style, norm_groups
from ensemble_kd.train.stack import deterministic

IMAGE: dict[str, Any] = {"kind": "image", "input_shape": [8, 10, 3], "num_classes": 5}


def direct(x: Tensor, layer: nn.Conv2d, stride: int, groups: int = 1) -> Tensor:
    """A convolution as a sum over its window, without torch's own; x (B, C, H, W) in float64."""
    weight = layer.weight.double()
    size, padding = weight.shape[-1], weight.shape[-1] // 2
    padded = F.pad(x, (padding,) * 4)
    height, width = ((n - 1) // stride + 1 for n in x.shape[2:])
    each_in, each_out = x.shape[1] // groups, weight.shape[0] // groups
    found = x.new_zeros(len(x), weight.shape[0], height, width)
    for i in range(size):
        for k in range(size):
            window = padded[:, :, i : i + stride * height : stride, k : k + stride * width : stride]
            for g in range(groups):
                inside = window[:, g * each_in : (g + 1) * each_in]
                part = weight[g * each_out : (g + 1) * each_out, :, i, k]
                found[:, g * each_out : (g + 1) * each_out] += torch.einsum("bchw,oc->bohw", inside, part)
    return found if layer.bias is None else found + layer.bias.double()[:, None, None]


def normed(x: Tensor, layer: Any) -> Tensor:
    """Batch norm by its running statistics, group norm by each example's own, or nothing."""
    if isinstance(layer, nn.Identity):
        return x
    scale, shift = (t.double()[:, None, None] for t in (layer.weight, layer.bias))
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None and layer.running_var is not None
        mean, variance = (t.double()[:, None, None] for t in (layer.running_mean, layer.running_var))
        return (x - mean) / (variance + layer.eps).sqrt() * scale + shift
    groups = x.reshape(len(x), layer.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    deviation = (groups.var(2, unbiased=False, keepdim=True) + layer.eps).sqrt()
    return (centred / deviation).reshape(x.shape) * scale + shift


def by_hand(block: Any, x: Tensor, kind: str, stride: int, groups: int) -> Tensor:
    if kind == "basic":
        y = normed(direct(x, block.conv_1, stride), block.norm_1).relu()
        y = normed(direct(y, block.conv_2, 1), block.norm_2)
    elif kind == "bottleneck":
        y = normed(direct(x, block.conv_1, stride), block.norm_1).relu()
        y = normed(direct(y, block.conv_2, 1), block.norm_2).relu()
        y = normed(direct(y, block.conv_3, 1), block.norm_3)
    else:
        y = x
        for unit, norm, step in ((block.conv_1, block.norm_1, stride), (block.conv_2, block.norm_2, 1)):
            each = groups if kind == "grouped" else y.shape[1]
            y = normed(direct(y, unit[0], step, each), unit[1]).relu()
            y = normed(direct(y, unit[3], 1), norm)
            y = y.relu() if unit is block.conv_1 else y
    short = x
    if not isinstance(block.shortcut, nn.Identity):
        short = normed(direct(x, block.shortcut[0], stride), block.shortcut[1])
    return (y + short).relu()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "grouped", "depthwise"])
@pytest.mark.parametrize(("channels_in", "channels", "stride"), [(6, 6, 1), (6, 12, 2)])
def test_a_block_by_hand(norm: str, kind: str, channels_in: int, channels: int, stride: int) -> None:
    torch.manual_seed(0)
    style = Style(kind, norm, groups=3, reduction=2)
    block = ResidualBlock(channels_in, channels, stride, style).eval()
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
        x = torch.randn(2, channels_in, 5, 7)
        found = block(x)
        expected = by_hand(block, x.double(), kind, stride, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert block.begin(x).shape[2:] == found.shape[2:]  # as what pairs the two maps of a stage wants it


@pytest.mark.parametrize(("block", "less_than"), [("bottleneck", 0.2), ("grouped", 0.5), ("depthwise", 0.3)])
def test_cheap_blocks_have_fewer_weights(block: Any, less_than: float) -> None:
    sizes = [build(ResNetConfig(width=32, block=kind), IMAGE).num_parameters for kind in (block, "basic")]
    assert sizes[0] < less_than * sizes[1]


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (3, 1), (4, 1), (8, 2), (12, 3), (14, 2), (32, 8), (36, 6), (64, 8), (11, 1)],
)
def test_groups_of_group_norm_are_equal_and_have_several_channels(channels: int, groups: int) -> None:
    assert norm_groups(channels) == groups and channels % groups == 0
    made = Style(norm="group").normed(channels)
    assert isinstance(made, nn.GroupNorm) and made.num_groups == groups


def test_without_norm_each_block_begins_as_its_shortcut() -> None:
    torch.manual_seed(0)
    network = ResNet(3, 5, 4, 3, style=Style(norm="none")).eval()
    x = torch.randn(2, 4, 6, 6).relu()
    for block in list(network.stages[0].children()):
        torch.testing.assert_close(block(x), x)
    deep = ResNet(3, 5, 4, 20, style=Style(norm="none")).eval()
    states = deep(torch.randn(2, 8, 8, 3), hidden=True).hidden
    assert states is not None
    assert states["stage_3"].std() < 20 * states["stage_1"].std()


@pytest.mark.parametrize(("norm", "stacks"), [("batch", False), ("group", False), ("none", True)])
def test_networks_without_norm_are_stacked(norm: Any, stacks: bool) -> None:
    torch.manual_seed(0)
    network = build(ResNetConfig(width=4, block="depthwise", norm=norm), IMAGE)
    inputs = torch.randint(0, 256, (4, 8, 10, 3), dtype=torch.uint8)
    assert deterministic(network, inputs) is stacks


def test_a_shallow_network_by_hand() -> None:
    torch.manual_seed(0)
    network = build(WideShallowConfig(units=7, rank=3), {**IMAGE, "kind": "numeric", "input_shape": [6]})
    body: Any = network.body
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    state = {name: tensor.double().numpy() for name, tensor in body.state_dict().items()}
    assert set(state) == {"low_rank.weight", "wide.weight", "wide.bias", "head.weight", "head.bias"}
    together = state["wide.weight"] @ state["low_rank.weight"]
    assert np.linalg.matrix_rank(together) == 3
    units = np.maximum(x @ together.T + state["wide.bias"], 0)
    expected = units @ state["head.weight"].T + state["head.bias"]
    np.testing.assert_allclose(network(torch.from_numpy(x)).logits.detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"block": "grouped", "groups": 5}, "groups: 5 does not divide width = 16; choose one that does"),
        ({"block": "bottleneck", "reduction": 32}, "reduction: 32 does not divide width = 16"),
        (
            {"width": 4, "block": "bottleneck", "norm": "group"},
            "reduction: 4 leaves one channel of width = 4, and group norm makes 0 of a single number",
        ),
        ({"groups": 8}, "groups: 8 is read with block: grouped alone, and it is 'basic'; leave it out"),
        ({"block": "depthwise", "reduction": 2}, "reduction: 2 is read with block: bottleneck alone"),
        ({"name": "wide_shallow", "units": 50}, "rank: 100, but the layer behind it has 50 units; lower it"),
    ],
)
@pytest.mark.parametrize("path", ["teachers.model", "student.model", "student.assistants.0"])
def test_fields_that_do_not_go_together(model: dict[str, Any], says: str, path: str) -> None:
    settings = {"name": "resnet", **model}
    block: Any = {"model": settings} if path.endswith("model") else {"assistants": [settings]}
    raw = {"name": "t", "data": {"source": "digits", "kind": "image"}, path.split(".")[0]: block}
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    assert any(line.startswith(f"{path}.{says}") for line in caught.value.problems), caught.value.problems
