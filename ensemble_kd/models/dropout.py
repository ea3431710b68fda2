"""Dropout whose masks can be given from outside: stacked students draw what each would alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

Noise = Callable[[Tensor, float], Tensor]

_given: ContextVar[Noise | None] = ContextVar("noise", default=None)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`; inside `given_noise` times what that gives in place of torch's draw."""
    if not training or not probability:
        return x
    noise = _given.get()
    return F.dropout(x, probability) if noise is None else x * noise(x, probability)


@contextmanager
def given_noise(noise: Noise) -> Iterator[None]:
    """`noise(x, probability)` gives 0 or 1 / (1 - probability) in x's shape and type."""
    token = _given.set(noise)
    try:
        yield
    finally:
        _given.reset(token)


class SeededNoise:
    """The noise that several networks would draw one by one, each after `torch.manual_seed` of its seed.

    On a CPU these are the draws of `F.dropout` to the bit; an accelerator's own kernels draw others.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in dict.fromkeys(seeds)]

    def __call__(self, x: Tensor, probability: float) -> Tensor:
        """(s, *x.shape), one for each different seed in the order of `seeds`."""
        drawn = [
            torch.empty(x.shape, dtype=x.dtype).bernoulli_(1 - probability, generator=generator)
            for generator in self.generators
        ]
        return torch.stack(drawn).div_(1 - probability).to(x.device)
