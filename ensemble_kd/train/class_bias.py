"""One bias per class, fitted on validation rows: what a class that the transfer set lacks needs."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_kd.models.build import Network
from ensemble_kd.objectives.hard import cross_entropy

PENALTY = 1e-4
"""Of the squared biases: keeps that of a class finite which no validation row has."""


def fit_class_bias(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,) b of mean 0 that minimises mean CE(z + b, y) + PENALTY |b|^2; (N, C), (N,) with labels >= 0.

    Convex in b, so there is one answer. arXiv 1503.02531, section 3, raised the bias of the class that the
    transfer set lacked, by the test set; here all classes share in it, and validation rows decide.
    """
    logits = logits.detach().double()
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits + bias, labels).mean() + PENALTY * bias.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = bias.detach()
    return (found - found.mean()).float()


@torch.no_grad()
def add_class_bias_(network: Network, bias: Tensor) -> None:
    """Add (C,) to the biases of the network's last layer, in place, so that it travels with the weights."""
    head = network.head
    assert head is not None and head.bias is not None, "checked before anything is trained"
    head.bias.add_(bias.to(head.bias))
