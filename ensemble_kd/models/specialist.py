"""From a generalist to a specialist: some of its classes and a dustbin for all others."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import CustomBody, Network


class DustbinHead(nn.Linear):
    """(B, W) -> (B, |S| + 1): w_i x for the classes i of S, then logsumexp of w_j x over all other classes.

    `weight` and `bias` are the rows of S, `outside_weight` and `outside_bias` those of the others; the
    latter are trained along or stay as they are. `correction` is added to the dustbin (see
    `correct_dustbin_`). It is a `Linear` to whoever looks for the output layer.
    """

    correction: Tensor

    def __init__(self, head: nn.Linear, classes: Sequence[int], train_outside: bool = True) -> None:
        super().__init__(
            head.in_features,
            len(classes),
            bias=head.bias is not None,
            device=head.weight.device,
            dtype=head.weight.dtype,
        )
        inside = torch.tensor(list(classes), device=head.weight.device)
        outside = torch.ones(head.out_features, dtype=torch.bool, device=head.weight.device)
        outside[inside] = False
        with torch.no_grad():
            self.weight.copy_(head.weight[inside])
            self.outside_weight = nn.Parameter(head.weight[outside].clone(), requires_grad=train_outside)
            self.outside_bias = None
            if head.bias is not None:
                self.bias.copy_(head.bias[inside])
                self.outside_bias = nn.Parameter(head.bias[outside].clone(), requires_grad=train_outside)
        self.register_buffer("correction", torch.zeros((), device=head.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        outside = F.linear(x, self.outside_weight, self.outside_bias)  # (B, C - |S|)
        dustbin = torch.logsumexp(outside, 1, keepdim=True) + self.correction
        return torch.cat([super().forward(x), dustbin], dim=1)


OUTPUTS = ("aggregate", "row", "full")
"""Forms of a specialist's output layer."""


def specialise(
    network: Network,
    classes: Sequence[int],
    output: str = "aggregate",
    *,
    train_outside: bool = True,
    logits: Tensor | None = None,
) -> Network:
    """A copy of a generalist with |S| + 1 outputs: the rows of `classes`, in their order, and the dustbin.

    aggregate: the dustbin's logit is the logsumexp of the inherited rows of all other classes, so that the
               specialist starts as the generalist; `train_outside` says whether these rows are trained
    row:       one new row, as in arXiv 1503.02531, section 5.3: zeros, with a bias such that the dustbin's
               mean probability over `logits` (N, C), the generalist's, is the mean mass outside; or 0
    full:      all C outputs, for the training that section 5.5 proposes against overfitting

    The paper does not say how its row starts. `load_weights` fits a network made with the same arguments.
    Raises ConfigError where there is no output layer to copy, and for classes that cannot be.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output: {', '.join(OUTPUTS)}, got {output!r}")
    head = network.head
    if head is None:
        raise ConfigError(
            "specialists start from the generalist's output layer, and this model shows none; give its body "
            "a `head` that is a torch.nn.Linear with one row for each class, or run without specialists"
        )
    _check_classes(classes, head.out_features)
    specialist = copy.deepcopy(network)
    if output == "full":
        return specialist
    copied = specialist.head
    assert copied is not None
    new = (
        DustbinHead(copied, classes, train_outside)
        if output == "aggregate"
        else _row_head(copied, classes, logits)
    )
    _replace(specialist, copied, new)
    return specialist


@torch.no_grad()
def correct_dustbin_(network: Network, classes: Sequence[int], output: str, bias: float) -> None:
    """Add `bias` to the dustbin's logit, for good: the specialist's weights carry it from now on.

    full: the logits of S are lowered instead, which moves the same odds; the output layer needs a bias.
    """
    head = network.head
    assert head is not None, "specialise has looked for it"
    if isinstance(head, DustbinHead):
        head.correction.add_(bias)
    elif output == "row":
        head.bias[-1] += bias
    elif head.bias is not None:
        head.bias[list(classes)] -= bias


def _check_classes(classes: Sequence[int], num_classes: int) -> None:
    unknown = [c for c in classes if not 0 <= c < num_classes]
    if unknown:
        raise ConfigError(f"a specialist's classes lie within 0 .. {num_classes - 1}, got {unknown}")
    if len(set(classes)) != len(classes):
        raise ConfigError(f"a specialist's classes are different ones, got {list(classes)}")
    if not 2 <= len(classes) < num_classes:
        raise ConfigError(
            f"a specialist has 2 to {num_classes - 1} of {num_classes} classes, got {len(classes)}; change "
            "the sizes of the clusters"
        )


@torch.no_grad()
def _row_head(head: nn.Linear, classes: Sequence[int], logits: Tensor | None) -> nn.Linear:
    weight = head.weight
    new = nn.Linear(head.in_features, len(classes) + 1, device=weight.device, dtype=weight.dtype)
    inside = torch.tensor(list(classes), device=weight.device)
    new.weight.zero_()
    new.bias.zero_()
    new.weight[:-1] = weight[inside]
    if head.bias is not None:
        new.bias[:-1] = head.bias[inside]
    if logits is not None:
        new.bias[-1] = _matching_bias(logits, inside)
    return new


def _matching_bias(logits: Tensor, inside: Tensor, limit: float = 50.0) -> float:
    """b with mean sigmoid(b - logsumexp_S z) = mean mass outside S; rising in b, so by bisection."""
    logits = logits.double()
    known = torch.logsumexp(logits[:, inside.to(logits.device)], 1)  # (N,)
    wanted = 1 - float((known - torch.logsumexp(logits, 1)).exp().mean())
    low, high = -limit, limit
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(middle - known).mean()) < wanted else (low, middle)
    return (low + high) / 2


def _replace(network: Network, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's place, wherever it is registered."""
    places = [name for name, module in network.named_modules(remove_duplicate=False) if module is old]
    for name in places:
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, new)
    if isinstance(network.body, CustomBody):
        assert isinstance(new, nn.Linear)
        network.body._head = [new]
