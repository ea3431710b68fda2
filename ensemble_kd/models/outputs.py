"""What every network returns, and all that an objective sees of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Outputs:
    """Logits and, where they were asked for, hidden states and attention."""

    logits: Tensor
    """(B, C); of a masked language model (P, V), one row per masked position of the batch."""
    hidden: dict[str, Tensor] | None = None
    """(B, ...) each; the names are documented by the network. A transformer's: `embedding`, `layer_1`,
    `layer_2`, ..., each (B, L, D), the output of the embeddings and of each block."""
    attention: tuple[Tensor, ...] | None = None
    """Per block the scores Q K^T / sqrt(d), before mask and softmax: (B, A, L, L)."""
    mask: Tensor | None = None
    """(B, L) bool: positions that are not padding; None where there is no padding."""
    depth: int | None = None
    """Number of the network's blocks, where not all of them are in `hidden` and `attention`."""
    blocks: tuple[int, ...] | None = None
    """Which block each entry of `attention` belongs to, counted from 1; None for all in order."""

    def __getitem__(self, part: slice) -> Outputs:
        """The outputs of some examples of the batch."""
        return Outputs(
            self.logits[part],
            None if self.hidden is None else {name: state[part] for name, state in self.hidden.items()},
            None if self.attention is None else tuple(scores[part] for scores in self.attention),
            None if self.mask is None else self.mask[part],
            self.depth,
            self.blocks,
        )


def state_name(number: int) -> str:
    """What a transformer's hidden state is called: 0 is the output of the embeddings, then the blocks."""
    return f"layer_{number}" if number else "embedding"
