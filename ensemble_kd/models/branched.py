"""Residual networks that share their first sections: branches over one trunk, and a gate that weighs them."""

from __future__ import annotations

from torch import Tensor, nn

from ensemble_kd.models.dropout import dropout
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.resnet import ResNet

SECTIONS = 3
"""Of a residual network."""


class Branched(nn.Module):
    """m residual networks with one trunk: branch i's logits z_i, gate g, answer v = sum_i g_i z_i.

    The gate is a linear layer on the trunk's pooled map, batch norm, ReLU and softmax over the branches
    (arXiv 1806.04606). Takes (B, H, W, channels) float; `logits` are v (B, C), hidden states `branch_1`,
    `branch_2`, ... the z_i, (B, C) each, and `gate` (B, m).
    """

    def __init__(self, networks: list[ResNet], section: int) -> None:
        """The trunk is the first one's, up to the section before `section` (2 or 3); the others' are left."""
        super().__init__()
        first, shared = networks[0], section - 1
        self.stem, self.norm = first.stem, first.norm
        self.trunk = nn.ModuleList(first.stages[i] for i in range(shared))
        self.tails = nn.ModuleList(
            nn.ModuleList(net.stages[i] for i in range(shared, SECTIONS)) for net in networks
        )
        self.heads = nn.ModuleList(net.head for net in networks)
        self.dropout = first.dropout
        channels = first.head.in_features // 2 ** (SECTIONS - shared)
        self.gate = nn.Sequential(
            nn.Linear(channels, len(networks)), nn.BatchNorm1d(len(networks)), nn.ReLU(), nn.Softmax(1)
        )
        for net in networks[1:]:
            net.stem, net.norm = first.stem, first.norm
            net.stages = nn.ModuleList([*self.trunk, *(net.stages[i] for i in range(shared, SECTIONS))])
        self._networks = networks  # not registered: their modules are those above

    def branch(self, number: int) -> ResNet:
        """Trunk and one branch, counted from 0: an ordinary network that shares its modules with this one."""
        return self._networks[number]

    def forward(self, x: Tensor, hidden: bool = False) -> Outputs:
        x = self._networks[0].enter(x)  # (B, C, H, W), through stem and norm
        for section in self.trunk:
            x = section(x)
        gate = self.gate(x.mean((2, 3)))  # (B, m)
        answers = [self._answer(i, x) for i in range(len(self.heads))]
        logits = sum(gate[:, i, None] * answer for i, answer in enumerate(answers))
        states = {f"branch_{i}": answer for i, answer in enumerate(answers, start=1)} | {"gate": gate}
        assert isinstance(logits, Tensor)
        return Outputs(logits, states if hidden else None)

    def _answer(self, number: int, x: Tensor) -> Tensor:
        tail = self.tails[number]
        assert isinstance(tail, nn.ModuleList)
        for section in tail:
            x = section(x)
        x = x.mean((2, 3))
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        found: Tensor = self.heads[number](x)
        return found
