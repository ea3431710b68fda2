"""The blocks of the networks for images and numbers, and what the block of every network of ours says."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.growth import GrowthConfig
from ensemble_kd.config.start import INITIALISERS, start_of


def linear_parameters(widths: list[int]) -> int:
    """Of fully connected layers between these widths, with biases."""
    return sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))


class NetworkConfig(Block):
    """What a network says of itself before it is built: by its block it is known everywhere.

    A plug-in's has a `name: Literal[...]`, and `body` of its own; `NETWORKS.register` enters it.
    """

    kinds: ClassVar[tuple[str, ...]]
    """Inputs that it takes: `image`, `text`, `numeric`."""
    builder: ClassVar[str]
    """`module:function` below `ensemble_kd.models`: (this block, `info`, number of outputs) -> its body."""

    def body(self, info: dict[str, Any], num_outputs: int) -> Any:
        """The torch module behind the normalisation of inputs, with random weights from torch's generator.

        `info` is `DataInfo.to_dict()`. Its `forward(x, hidden=False)` takes images (B, H, W, C) or numbers
        (B, F), both float32, or tokens (B, L), and returns `models.outputs.Outputs` with logits
        (B, num_outputs) and, where `hidden`, the hidden states by name.
        """
        module, function = self.builder.split(":")
        return getattr(import_module(f"ensemble_kd.models.{module}"), function)(self, info, num_outputs)

    def own_problems(self) -> list[str]:
        """What is wrong between its fields: one line each, starting with a field."""
        return []

    def parameters(self, features: int, classes: int, vocabulary: int) -> int | None:
        """At least so many, without what only the data tells (an image's channels); None where unknown."""
        return None

    @property
    def depth(self) -> int:
        """Layers that are built one after another."""
        return 0

    @property
    def sizes(self) -> list[int]:
        """Numbers that each are a dimension of some tensor, or less than one."""
        return []


MOST_BRANCHES = 16

Start = Annotated[
    Annotated[GrowthConfig, INITIALISERS.beside(GrowthConfig)] | None, BeforeValidator(start_of)
]


class MLPConfig(NetworkConfig):
    """Fully connected layers with ReLU."""

    later: ClassVar[frozenset[str]] = frozenset({"start"})
    kinds: ClassVar[tuple[str, ...]] = ("image", "numeric")
    builder: ClassVar[str] = "mlp:build_mlp"
    name: Literal["mlp"] = "mlp"
    """`mlp`"""
    hidden: list[Annotated[int, Field(ge=1)]] = [128, 128]
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a hidden unit."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input."""
    start: Start = None
    """What it starts from (students): `net2wider`, `net2deeper`, `net2net`, or a block with this `name` and
    its fields; null, or `random`, for random numbers."""

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        return linear_parameters([features, *self.hidden, classes])

    @property
    def depth(self) -> int:
        return len(self.hidden)

    @property
    def sizes(self) -> list[int]:
        return self.hidden


class CNNConfig(NetworkConfig):
    """Plain convolutional network for images: 3x3 convolutions with batch norm, ReLU and max pooling."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    builder: ClassVar[str] = "cnn:build_cnn"
    name: Literal["cnn"] = "cnn"
    """`cnn`"""
    channels: list[Annotated[int, Field(ge=1)]] = Field([32, 64, 64], min_length=1)
    """Channels of each convolution; each but the last halves the resolution."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the classifier."""

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        """All but the first convolution, whose size depends on the channels of the images."""
        widths = self.channels
        inner = sum(9 * a * b for a, b in zip(widths, widths[1:], strict=False))
        return inner + 2 * sum(widths) + (widths[-1] + 1) * classes

    @property
    def depth(self) -> int:
        return len(self.channels)

    @property
    def sizes(self) -> list[int]:
        return self.channels


class WideShallowConfig(NetworkConfig):
    """One wide hidden layer behind a linear layer of low rank (Ba and Caruana, arXiv 1312.6184)."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "numeric")
    builder: ClassVar[str] = "wide_shallow:build_wide_shallow"
    name: Literal["wide_shallow"] = "wide_shallow"
    """`wide_shallow`"""
    units: int = Field(2000, ge=1)
    """Units of the hidden layer, with ReLU."""
    rank: int | None = Field(100, ge=1)
    """Units of the linear layer before it, which has neither bias nor ReLU; null for none."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a hidden unit."""

    def own_problems(self) -> list[str]:
        if self.rank is None or self.rank < self.units:
            return []
        return [
            f"rank: {self.rank}, but the layer behind it has {self.units} units; lower it, or set it to null"
        ]

    def parameters(self, features: int, classes: int, vocabulary: int) -> int:
        first = features if self.rank is None else self.rank
        below = 0 if self.rank is None else features * self.rank
        return below + linear_parameters([first, self.units, classes])

    @property
    def depth(self) -> int:
        return 1

    @property
    def sizes(self) -> list[int]:
        return [self.units, *([] if self.rank is None else [self.rank])]
