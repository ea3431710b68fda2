"""A network: one hidden layer of maxout units (Goodfellow et al., arXiv 1302.4389)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ensemble_kd.config import NETWORKS, NetworkConfig
from ensemble_kd.models.outputs import Outputs


@NETWORKS.register
class MaxoutConfig(NetworkConfig):
    """One hidden layer, each unit of it the largest of some linear functions (arXiv 1302.4389)."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "numeric")
    name: Literal["maxout"] = "maxout"
    """`maxout`"""
    units: int = Field(16, ge=1)
    """Units of the hidden layer."""
    linear: int = Field(2, ge=1)
    """Linear functions of a unit."""

    def own_problems(self) -> list[str]:
        return ["linear: 1 makes the whole network linear; raise it"] if self.linear == 1 else []

    def body(self, info: dict[str, Any], num_outputs: int) -> nn.Module:
        features = 1
        for size in info["input_shape"]:
            features *= size
        return Maxout(features, self.units, self.linear, num_outputs)


class Maxout(nn.Module):
    def __init__(self, features: int, units: int, linear: int, outputs: int) -> None:
        super().__init__()
        self.linear = linear
        self.layer = nn.Linear(features, units * linear)
        self.head = nn.Linear(units, outputs)

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        """Logits (B, num_outputs); with `hidden` the units, (B, units)."""
        units = self.layer(x.flatten(1)).unflatten(1, (-1, self.linear)).amax(2)
        return Outputs(self.head(units), {"layer_1": units} if hidden else None)
