"""Quantisation-aware training in Q8BERT's scheme (Zafrir et al., arXiv 1910.06188): train in float on what
integers of few bits will hold, then ship weights that they hold exactly.

    M = 2^(bits - 1) - 1;  step = threshold / M;  Q(x) = clamp(round(x / step), -M, M);  xhat = Q(x) * step

symmetric and linear, one step per tensor. A weight's threshold is its max|W|, anew in every pass; that of a
layer's input is a moving average of max|x| over the training steps, a buffer beside the weights. The gradient
passes straight through, where x is clamped too. Linear layers, embeddings and convolutions are quantised;
biases, softmax, norms, activation functions, and the recurrent weights of an LSTM stay in float.

Deviations: a linear layer's input is quantised, its output is not once more; convolutions are quantised too
(the paper has none); the step keeps 16 bits of its mantissa.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network

THRESHOLD = "input_threshold"
"""Buffer of a layer: () float32, the threshold of its input; 0 as long as it saw nothing."""


def largest(bits: int) -> int:
    """M, the largest of the integers: 127 for 8 bits."""
    return 2 ** (bits - 1) - 1


def step_of(threshold: Tensor, bits: int) -> Tensor:
    """() float32, the width of a step. Its last 8 bits are 0, so that each multiple up to M is exact.

    So quantising what is quantised changes no bit, and max|xhat| / M gives the very step back.
    """
    step = threshold.detach().float() / largest(bits)
    return (step.view(torch.int32) & -256).view(torch.float32)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bits: int) -> Tensor:
        return _nearest(x, step, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


def _integers(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """Q(x) as float32."""
    limit = largest(bits)
    return (x.float() / step).round_().clamp_(-limit, limit)


def _nearest(x: Tensor, step: Tensor, bits: int) -> Tensor:
    # In float32 whatever x is: bfloat16 would round x / step before round() does.
    return torch.where(step > 0, _integers(x, step, bits).mul_(step), x.float()).to(x.dtype)


def fake_quantise(x: Tensor, threshold: Tensor, bits: int = 8) -> Tensor:
    """xhat of the same shape and type as x, whose gradient is x's. A `threshold` () of 0 leaves x alone."""
    return _straight_through(x, step_of(threshold, bits), bits)


def _straight_through(x: Tensor, step: Tensor, bits: int) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _nearest(x, step, bits)
    found: Tensor = _StraightThrough.apply(x, step, bits)
    return found


# -------------------------------------------------------------------------------------------- layers

NO_LAYERS = (
    "student.quantization: the model has no torch.nn.Linear, Conv1d, Conv2d, Embedding or EmbeddingBag; "
    "give it one, or set student.quantization=null"
)


@dataclass
class Quantiser:
    """What the quantised layers of one network share."""

    bits: int = 8
    activations: bool = True
    """Whether inputs of layers are quantised as well."""
    start_fraction: float = 0.0
    """Share of the training before which it runs in float, and thresholds follow the last batch."""
    ema_decay: float = 0.9999
    hard: bool = False
    """Whether the weights are multiples of their step already."""
    started: bool = True
    group: Any = None
    """torch.distributed process group of the replicas, whose largest inputs count together; None for one."""

    def at(self, progress: float) -> None:
        """Tell it which share of the training's steps is done."""
        self.started = progress >= self.start_fraction


class _Quantised(nn.Module):
    """A layer that computes with quantised weights and inputs; its state has one buffer more, `THRESHOLD`.

    In evaluation always, so that epochs are judged by what would be shipped; in training once it `started`.
    """

    weight: Tensor
    quantiser: Quantiser
    input_threshold: Tensor | None

    def used_weight(self) -> Tensor:
        shared = self.quantiser
        if shared.hard or (self.training and not shared.started):
            return self.weight
        return fake_quantise(self.weight, self.weight.detach().abs().amax(), shared.bits)

    def used_input(self, x: Tensor) -> Tensor:
        shared, threshold = self.quantiser, self.input_threshold
        if threshold is None or not x.numel():
            return x
        if self.training:
            with torch.no_grad():
                seen = x.abs().amax().float()
                if shared.group is not None:
                    dist.all_reduce(seen, dist.ReduceOp.MAX, group=shared.group)
                decay = shared.ema_decay if shared.started else 0.0
                # The first value is taken as it is. No question asked of the device: it would have to wait.
                threshold.copy_(torch.where(threshold > 0, seen + decay * (threshold - seen), seen))
            if not shared.started:
                return x
        if shared.hard and not self.training:  # M * step already: nothing but arithmetic is left to export
            return _straight_through(x, threshold / largest(shared.bits), shared.bits)
        return fake_quantise(x, threshold, shared.bits)


class QuantisedLinear(_Quantised, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.used_input(input), self.used_weight(), self.bias)


class QuantisedConv1d(_Quantised, nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.used_input(input), self.used_weight(), self.bias)


class QuantisedConv2d(_Quantised, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.used_input(input), self.used_weight(), self.bias)


class QuantisedEmbedding(_Quantised, nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        weight, frequency = self.used_weight(), self.scale_grad_by_freq
        return F.embedding(input, weight, self.padding_idx, scale_grad_by_freq=frequency, sparse=self.sparse)


class QuantisedEmbeddingBag(_Quantised, nn.EmbeddingBag):
    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return F.embedding_bag(
            input,
            self.used_weight(),
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )


QUANTISED: dict[type[nn.Module], type[_Quantised]] = {
    nn.Linear: QuantisedLinear,
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Embedding: QuantisedEmbedding,
    nn.EmbeddingBag: QuantisedEmbeddingBag,
}
"""By exact type: a subclass may compute something else."""
PLAIN = {quantised: plain for plain, quantised in QUANTISED.items()}


def layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every layer that is quantised, or can be."""
    for name, module in network.named_modules():
        # An embedding with max_norm writes to its weights while it reads them.
        if type(module) in PLAIN or (type(module) in QUANTISED and getattr(module, "max_norm", None) is None):
            yield name, module


def quantise_(network: Network, quantiser: Quantiser) -> None:
    """Make every layer of a known type its quantised form, in place: parameters and their names stay.

    Raises ConfigError where there is no such layer.
    """
    found = list(layers(network))
    if not found:
        raise ConfigError(NO_LAYERS)
    network.quantiser = quantiser
    for _, layer in found:
        if type(layer) in QUANTISED:
            layer.__class__ = QUANTISED[type(layer)]
        layer.quantiser = quantiser
        reads_numbers = not isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
        threshold = torch.zeros((), device=layer.weight.device) if reads_numbers else None
        layer.register_buffer(THRESHOLD, threshold if quantiser.activations else None)


@torch.no_grad()
def harden_(network: Network) -> None:
    """Put Q * step in the place of every weight, and M * step in that of every threshold.

    The inputs' quantisation stays: the network was trained with inputs cut off at their thresholds, so
    without it another function would be shipped than was trained and judged.
    """
    quantiser: Quantiser = network.quantiser
    for _, layer in layers(network):
        integers, step = _quantised(layer, quantiser.bits)
        layer.weight.copy_(integers.float() * step)
        if (threshold := layer.input_threshold) is not None:
            threshold.copy_(step_of(threshold, quantiser.bits) * largest(quantiser.bits))
    quantiser.hard = True


def plain_(network: Network) -> dict[str, Any] | None:
    """Take the quantisation out of a hardened network again; returns `description`.

    What is left are layers of torch's own types with the same weights, for whoever quantises inputs himself.
    """
    described = description(network)
    assert network.quantiser is None or network.quantiser.hard, "its weights are not those it computes with"
    for _, layer in layers(network):
        if type(layer) in PLAIN:
            layer.__class__ = PLAIN[type(layer)]
            del layer._buffers[THRESHOLD], layer.quantiser
    network.quantiser = None
    return described


# ------------------------------------------------------------------------------------- what it amounts to


@torch.no_grad()
def quantised_weights(network: Network, bits: int | None = None) -> dict[str, tuple[Tensor, float]]:
    """By name in the state: integers as int8, of the weight's shape, and the step: W = integers * step.

    `bits` are the network's own where it has some, else 8.
    """
    bits = bits or (network.quantiser.bits if network.quantiser else 8)
    found = {}
    for name, layer in layers(network):
        integers, step = _quantised(layer, bits)
        found[f"{name}.weight" if name else "weight"] = (integers, float(step))
    return found


def _quantised(layer: Any, bits: int) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach()
    step = step_of(weight.abs().amax(), bits)
    return _integers(weight, torch.where(step > 0, step, 1.0), bits).to(torch.int8), step


def description(network: Network) -> dict[str, Any] | None:
    """What the model folder says of it: `bits`, `activations`, and `thresholds`, by layer, of their inputs.

    threshold / M is a layer's step, exactly. A layer that no input has reached is left out.
    """
    quantiser: Quantiser | None = network.quantiser
    if quantiser is None:
        return None
    thresholds = {
        name: float(layer.input_threshold)
        for name, layer in layers(network)
        if getattr(layer, THRESHOLD, None) is not None and float(layer.input_threshold) > 0
    }
    return {"bits": quantiser.bits, "activations": quantiser.activations, "thresholds": thresholds}
