"""A teacher that writes a line to a file at every forward pass; workers import it by name."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Counted(nn.Module):
    def __init__(self, num_classes: int, num_features: int, path: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(num_features, num_classes))
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("pass\n")
        logits: Tensor = self.layers(x)
        return logits


def make(num_classes: int, input_shape: tuple[int, ...], path: str) -> nn.Module:
    return Counted(num_classes, math.prod(input_shape), path)
