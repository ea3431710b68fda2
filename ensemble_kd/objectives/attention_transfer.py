"""Attention transfer: where in an image a network's maps are large."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.hidden import at_least_float32, unit
from ensemble_kd.objectives.layers import Pair
from ensemble_kd.objectives.maps import Maps, block_pairs, maps_only, pooled_alike


class _MeanSquare(torch.autograd.Function):
    """mean_c F_c^2, (B, C, H, W) -> (B, H, W).

    autograd's own gradient of a mean over channels lies in memory channel by channel, unlike the maps, and
    all that a network does with it would take several times as long.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        return torch.linalg.vector_norm(maps, dim=1).square() / maps.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        return maps * (gradients[0] * (2 / maps.shape[1]))[:, None]


@register("attention_transfer")
@dataclass(frozen=True, config=STRICT)
class AttentionTransfer:
    """sum_m D(Q_s,m / ||Q_s,m||, Q_t,m / ||Q_t,m||), Q = vec(mean_c |F_c|^p); F (B, C, H, W) -> (B,).

    Zagoruyko and Komodakis, arXiv 1612.03928. D is the mean of squares over the places, as in the released
    code (weight 1000 / 2), or with `distance: norm` the L2 norm, as in the paper. Numbers of channels may
    differ; the larger map is averaged down to the smaller one's size, as in the released code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Maps = "uniform"
    """Pairs of blocks: `uniform`, `last`, `final`, `middle`, or pairs [student, teacher]."""
    p: Annotated[float, Field(ge=1, le=8)] = 2.0
    """Power of the activations."""
    distance: Literal["mean_square", "norm"] = "mean_square"
    """`mean_square` over the places, or their `norm`, whose slope stays 1 up to agreement."""

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        self._pairs(student, teacher)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.Module | None = None
    ) -> Tensor:
        terms = []
        for pair in self._pairs(student, teacher):
            ours, theirs = pooled_alike(
                at_least_float32(pair.student), at_least_float32(pair.teacher.detach())
            )
            squares = (unit(self._attention(ours)) - unit(self._attention(theirs))).square()  # (B, HW)
            if self.distance == "mean_square":
                terms.append(squares.mean(1))
            else:
                terms.append(squares.sum(1).clamp(min=1e-12).sqrt())  # a gradient at 0 would be infinite
        return torch.stack(terms).sum(0)

    def _attention(self, maps: Tensor) -> Tensor:
        if self.p == 2:
            squares: Tensor = _MeanSquare.apply(maps)
            return squares.flatten(1)
        return maps.abs().pow(self.p).mean(1).flatten(1)

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[Pair]:
        return maps_only(block_pairs(self.layers, student, teacher))
