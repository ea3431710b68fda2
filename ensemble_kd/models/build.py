"""From a model's configuration to a network that takes raw inputs."""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_kd import own_code
from ensemble_kd.config import NETWORKS, CustomModelConfig, ModelConfig, TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.secret_options import revealed


class Network(nn.Module):
    """A body behind the normalisation of raw inputs: whoever holds the weights needs no preprocessing.

    `forward` takes images (B, H, W, C) uint8, numbers (B, F) float or tokens (B, L) int32/int64.
    Images and numbers become `x * input_scale + input_shift`, which is (x / range - mean) / std with the
    divisions done once; both are buffers and stored with the weights. Tokens stay as they are.
    Of values the body gives standardised ones, and what comes out is in the label's own units,
    `z * output_scale + output_shift`: a head need not learn their size, and whoever predicts sees no scale.
    """

    input_scale: Tensor | None
    input_shift: Tensor | None
    output_scale: Tensor | None
    output_shift: Tensor | None
    quantiser: Any = None
    """The `models.quantise.Quantiser` that its layers share; None in float."""

    def __init__(
        self,
        body: nn.Module,
        kind: str,
        input_shape: list[int],
        mean: list[float],
        std: list[float],
        target: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.input_range = 255.0 if kind == "image" else 1.0
        scale, shift = None, None
        if kind != "text":
            # A feature that never varies has std 0: it is centred and otherwise left alone.
            spread = torch.tensor(
                [s if s > 0 and math.isfinite(s) else 1.0 for s in std], dtype=torch.float64
            )
            scale = (1 / (spread * self.input_range)).float()
            shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float()
            if kind == "image" and len(std) > 1:
                # One whole row of pixels (W, C): several times quicker than broadcasting over C = 3.
                scale, shift = scale.repeat(input_shape[1], 1), shift.repeat(input_shape[1], 1)
        self.register_buffer("input_scale", scale)  # (W, C), (1,) for one channel, or (F,)
        self.register_buffer("input_shift", shift)
        size, middle = (target["std"], target["mean"]) if target is not None else (None, None)
        self.register_buffer("output_scale", None if size is None else torch.tensor(size).view(-1))  # (K,)
        self.register_buffer("output_shift", None if middle is None else torch.tensor(middle).view(-1))

    def forward(
        self, inputs: Tensor, hidden: bool = False, attention: bool = False, masked: Tensor | None = None
    ) -> Outputs:
        """Logits or values (B, num_outputs); with `hidden` also the body's hidden states by name.

        Transformers only: with `attention` the scores, with `masked` (B, L) the logits of words there.
        """
        if attention or masked is not None:
            outputs: Outputs = self.body(self.normalise(inputs), hidden, attention, masked)
        else:
            outputs = self.body(self.normalise(inputs), hidden)
        if self.output_scale is None or self.output_shift is None:
            return outputs
        # In float32: a mean far from 0 has no room in bfloat16.
        return replace(outputs, logits=outputs.logits.float() * self.output_scale + self.output_shift)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Raw inputs as the body takes them: float32 of mean 0 and variance 1, or tokens."""
        if self.input_scale is None or self.input_shift is None:
            return inputs
        return inputs.float().mul(self.input_scale).add_(self.input_shift)

    @property
    def mean(self) -> Tensor | None:
        """Per channel (after division by 255) or per feature; None for text."""
        if self.input_scale is None or self.input_shift is None:
            return None
        return (-self.input_shift / self.input_scale / self.input_range).view(-1, self.input_shift.shape[-1])[
            0
        ]

    @property
    def std(self) -> Tensor | None:
        """As `mean`."""
        if self.input_scale is None:
            return None
        return (1 / self.input_scale / self.input_range).view(-1, self.input_scale.shape[-1])[0]

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer, whose rows belong to the classes; None where there is none."""
        head = getattr(self.body, "head", None)
        return head if isinstance(head, nn.Linear) else None

    @torch.no_grad()
    def standardise_head_(self) -> None:
        """For a head whose outputs are values in the label's units already: standardised ones from now on,
        so that the network's outputs are what the head's were. Raises ConfigError for one without a bias."""
        if self.output_scale is None or self.output_shift is None:
            return
        if self.head is None or self.head.bias is None:
            raise ConfigError(
                "source: its last layer has no bias, so that the labels' mean cannot be taken out of it; "
                "call it as it is (teachers.source=callable), or start from another model"
            )
        self.head.weight.div_(self.output_scale[:, None])
        self.head.bias.sub_(self.output_shift).div_(self.output_scale)

    @torch.no_grad()
    def reorder_head_(self, classes: list[int]) -> None:
        """Put the outputs into the data's order, of which `classes` has the class of each.

        Raises ConfigError where there is no last layer that is known.
        """
        if self.head is None:
            raise ConfigError(
                "source: its classes stand in another order, and no last layer was found to be reordered; "
                "call it, and reorder its answers: teachers.source=callable"
            )
        order = torch.argsort(torch.tensor(classes))
        for tensor in (self.head.weight, self.head.bias):
            if tensor is not None:
                tensor.copy_(tensor[order])

    @torch.no_grad()
    def set_pixels_(self, scale: Any, shift: Any) -> None:
        """From now on make inputs of pixels by `x * scale + shift`, by channel: those of a source."""
        for own, given in ((self.input_scale, scale), (self.input_shift, shift)):
            if own is not None and given is not None:
                own.copy_(torch.as_tensor(given))

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class CustomBody(nn.Module):
    """The user's module, its output made an `Outputs`.

    It is called with normalised inputs: images (B, H, W, C) float32, numbers (B, F) float32, tokens
    (B, L) int. Where its `forward` has a parameter `hidden`, it is told whether hidden states are wanted.
    """

    def __init__(self, module: nn.Module, num_outputs: int) -> None:
        super().__init__()
        self.module = module
        self._takes_hidden = "hidden" in inspect.signature(module.forward).parameters
        linear = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == num_outputs]
        self._head = [linear[-1]] if linear else []  # in a list: it must not be registered twice

    @property
    def head(self) -> nn.Linear | None:
        return self._head[0] if self._head else None

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        outputs = self.module(x, hidden=hidden) if self._takes_hidden else self.module(x)
        return outputs if isinstance(outputs, Outputs) else Outputs(outputs)


def build(
    model: ModelConfig, info: dict[str, Any], num_outputs: int | None = None, masked_lm: bool = False
) -> Network:
    """A freshly initialised network for the data that `info` describes (`DataInfo.to_dict()`).

    `num_outputs` replaces the number of classes, for a network over some of them; with `masked_lm` a
    transformer guesses words instead. Initial weights come from torch's global generator.
    Raises ConfigError for a custom model or a transformer that does not fit.
    """
    kind, shape = info["kind"], list(info["input_shape"])
    target = None if masked_lm else info.get("target")
    num_outputs = num_outputs or info["num_classes"]
    mean, std = info.get("mean") or [0.0] * shape[-1], info.get("std") or [1.0] * shape[-1]
    if isinstance(model, CustomModelConfig):
        body: nn.Module = CustomBody(_call(model, num_outputs, shape), num_outputs)
        network = Network(body, kind, shape, mean, std, target)
        _check_custom(network, f"custom model {model.callable!r}", kind, shape, num_outputs)
        return network
    if isinstance(model, TransformerConfig):
        from ensemble_kd.models.transformer import build_transformer  # takes seconds to import

        body = build_transformer(model, info, num_outputs, masked_lm)
        return Network(body, kind, shape, mean, std, target)
    if kind not in model.kinds:
        raise ConfigError(f"model {model.name!r} takes {' or '.join(model.kinds)} inputs, the data is {kind}")
    network = Network(model.body(info, num_outputs), kind, shape, mean, std, target)
    if NETWORKS.origin(model.name) is not None and torch.get_default_device().type != "meta":
        _check_custom(network, f"model {model.name!r}", kind, shape, num_outputs)
    return network


def _call(model: CustomModelConfig, num_outputs: int, shape: list[int]) -> nn.Module:
    """The module that the user's callable makes."""
    module_name, name = model.callable.split(":")
    options = revealed(model.callable, model.options)
    try:
        own = own_code.find(model.callable)
        made_by = getattr(importlib.import_module(module_name), name) if own is None else own.made_by
    except ImportError as error:
        raise ConfigError(
            f"custom model {model.callable!r} cannot be imported ({error}); {own_code.advice(module_name)}"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"custom model {model.callable!r}: {error}") from error
    if not callable(made_by):
        raise ConfigError(f"custom model {model.callable!r} is {type(made_by).__name__}, not callable")
    try:
        module = made_by(num_classes=num_outputs, input_shape=tuple(shape), **options)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"custom model {model.callable!r} raised {type(error).__name__}: {error}; it is called with "
            "num_classes, input_shape and the model's `options`"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"custom model {model.callable!r} returned {type(module).__name__}, not a torch.nn.Module"
        )
    return module


def made_up_inputs(kind: str, shape: list[int]) -> Tensor:
    """Two raw inputs of ones, to try a network on."""
    return torch.ones(2, *shape, dtype={"image": torch.uint8, "text": torch.int32}.get(kind, torch.float32))


@torch.no_grad()
def _check_custom(network: Network, name: str, kind: str, shape: list[int], num_outputs: int) -> None:
    """Run a batch of two through a network of the user's, so that a wrong shape shows before training."""
    inputs = made_up_inputs(kind, shape)
    was_training = network.training
    network.eval()
    try:
        logits = network(inputs).logits
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{name} raised {type(error).__name__} on inputs of shape {tuple(inputs.shape)}: {error}"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, num_outputs):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"{name} must return logits of shape (2, {num_outputs}) for two examples, got {got}"
        )
