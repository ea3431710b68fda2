"""Word dropout: tokens of a text are left out at random.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop_tokens(tokens: Tensor, numbers: Tensor, probability: float) -> Tensor:
    """Tokens (B, L) with each one left out, as padding (0) is, whose uniform number (L, B) is below
    `probability`; the first and the last of a text, where special tokens stand, stay."""
    there = tokens != 0
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    last = (there * positions).amax(1, keepdim=True)  # (B, 1)
    inner = (positions > 0) & (positions < last)
    return tokens.masked_fill(inner & (numbers.T < probability), 0)
