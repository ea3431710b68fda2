"""A compressor: the smallest weights become 0, more and more of them (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from ensemble_kd.config.methods import COMPRESSORS, CompressorConfig

if TYPE_CHECKING:
    from ensemble_kd.models.build import Network


@COMPRESSORS.register
class PruningConfig(CompressorConfig):
    """Of every matrix the share s(p) = sparsity * (1 - (1 - p)^3) of smallest weights is 0; p: the progress.

    A weight that was 0 may come back, as the paper's masks let it: they are drawn anew from magnitudes.
    """

    name: Literal["pruning"] = "pruning"
    """`pruning`"""
    sparsity: float = Field(0.5, gt=0, lt=1)
    """Share of the weights of each matrix that is 0 in the end."""

    @torch.no_grad()
    def before_step(self, network: Network, progress: float) -> None:
        share = self.sparsity * (1 - (1 - progress) ** 3)
        for weight in network.body.parameters():
            count = int(share * weight.numel()) if weight.dim() > 1 else 0
            if count:
                weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0.0

    def finish(self, network: Network) -> None:
        self.before_step(network, 1.0)
