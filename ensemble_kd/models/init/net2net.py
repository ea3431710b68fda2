"""A larger network that computes what a smaller one does, until it learns more (Net2Net, arXiv 1511.05641).

Wider, from n to n' units, with g(j) = j for j < n, else one of the n at random, and c_j the number of k with
g(k) = g(j):

    W'[j] = W[g(j)],  b'[j] = b[g(j)]       the layer: copies of its units
    V'[:, j] = V[:, g(j)] / c_j             the next one: each copy counts for its part

Batch norm's scale, shift and statistics are copied by g. What a shortcut adds must be in the same order, so
that all of a residual stage has one g. Deeper: a fully connected layer is the identity, which ReLU leaves
alone; a residual block adds nothing, as its last norm has scale and shift 0 (without norm, its last
convolution). The paper inserts identities into plain networks, where batch norm has to be undone; a residual
block needs no such thing. The noise, on copies alone, breaks their symmetry; the paper has it where there is
no dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ensemble_kd.config.growth import places
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.models.mlp import MLP
from ensemble_kd.models.resnet import ResidualBlock, ResNet


@torch.no_grad()
def grow_(network: Network, donor: Network, noise: float) -> None:
    """Give `network`, freshly made, the function of the smaller `donor`; random numbers are torch's own.

    Raises ConfigError where it is no larger network of the same kind; the configuration is checked before.
    """
    body, old = network.body, donor.body
    if isinstance(body, MLP) and isinstance(old, MLP):
        _grow_mlp(body, old, noise)
    elif isinstance(body, ResNet) and isinstance(old, ResNet):
        _grow_resnet(body, old, noise)
    else:
        raise ConfigError(
            f"start: a {type(body).__name__} cannot be grown from a {type(old).__name__}; use a teacher of "
            "the same kind"
        )


def copies(old: int, new: int) -> Tensor:
    """(new,) int64, g: which of the old units each new one is."""
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,))])


def spread(weight: Tensor, units: Tensor | None) -> Tensor:
    """A weight (outputs, inputs, ...) that reads copied inputs, each for its part; None for none copied."""
    if units is None:
        return weight
    parts = torch.bincount(units)[units].to(weight.dtype)  # (inputs',) c_j
    return weight[:, units] / parts.view(-1, *[1] * (weight.dim() - 2))


def _fill(layer: Any, old: Any, read: Tensor | None, made: Tensor | None, noise: float) -> None:
    """A layer from the old one, given the copies that it reads and those that it makes."""
    weight = spread(old.weight, read)
    made = torch.arange(len(weight)) if made is None else made
    weight = weight[made].clone()
    first = len(old.weight)
    if noise and len(weight) > first:
        weight[first:] += noise * old.weight.std() * torch.randn_like(weight[first:])
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(old.bias[made])


def _copy_norm(norm: nn.Module, old: nn.Module, units: Tensor) -> None:
    """Scale, shift and statistics, by channel."""
    given = dict(old.state_dict())
    for name, tensor in norm.state_dict().items():
        tensor.copy_(given[name][units] if given[name].dim() else given[name])


def _grow_mlp(body: MLP, old: MLP, noise: float) -> None:
    layers: list[Any] = list(body.layers)
    before: list[Any] = list(old.layers)
    where = places([layer.out_features for layer in before], [layer.out_features for layer in layers])
    if where is None:
        raise ConfigError("start: the layers are no larger ones of the teacher's; see hidden")
    read: Tensor | None = None
    for layer, place in zip(layers, where, strict=True):
        if place is None:
            layer.weight.copy_(torch.eye(layer.out_features))
            layer.bias.zero_()
            continue
        made = copies(before[place].out_features, layer.out_features)
        _fill(layer, before[place], read, made, noise)
        read = made
    _fill(body.head, old.head, read, None, noise)


def _grow_resnet(body: ResNet, old: ResNet, noise: float) -> None:
    stream = copies(old.stem.out_channels, body.stem.out_channels)
    _fill(body.stem, old.stem, None, stream, noise)
    _copy_norm(body.norm, old.norm, stream)
    for new_stage, old_stage in zip(body.stages, old.stages, strict=True):
        blocks: list[Any] = list(new_stage.children())
        given: list[Any] = list(old_stage.children())
        read, made = stream, stream
        if not isinstance(given[0].shortcut, nn.Identity):
            made = copies(given[0].shortcut[0].out_channels, blocks[0].shortcut[0].out_channels)
        for block, source in zip(blocks, given, strict=False):
            _grow_block(block, source, read, made, noise)
            read = made
        for block in blocks[len(given) :]:
            _silence(block)
        stream = made
    _fill(body.head, old.head, stream, None, noise)


def _grow_block(block: Any, old: Any, read: Tensor, made: Tensor, noise: float) -> None:
    """`read` and `made` are the copies before and behind the block, which its shortcut has too."""
    names = ("1", "2", "3") if block.bottleneck else ("1", "2")
    inner = read
    for name in names:
        unit, source = getattr(block, f"conv_{name}"), getattr(old, f"conv_{name}")
        if isinstance(unit, nn.Sequential):  # depthwise: one filter a channel, norm, ReLU, 1x1
            _fill(unit[0], source[0], None, inner, noise)
            _copy_norm(unit[1], source[1], inner)
            unit, source = unit[-1], source[-1]
        last = name == names[-1]
        outputs = made if last else copies(source.out_channels, unit.out_channels)
        _fill(unit, source, inner, outputs, noise)
        _copy_norm(getattr(block, f"norm_{name}"), getattr(old, f"norm_{name}"), outputs)
        inner = outputs
    if not isinstance(block.shortcut, nn.Identity):
        _fill(block.shortcut[0], old.shortcut[0], read, made, noise)
        _copy_norm(block.shortcut[1], old.shortcut[1], made)


def _silence(block: ResidualBlock) -> None:
    """A block that gives back its input, which is not negative."""
    last: Any = block.norm_3 if block.bottleneck else block.norm_2
    zero: Any = block.last if isinstance(last, nn.Identity) else last
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
