"""What every network returns, and all that an objective sees of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Outputs:
    """Logits and, where they were asked for, hidden states by name."""

    logits: Tensor
    """(B, C)"""
    hidden: dict[str, Tensor] | None = None
    """(B, ...) each; the names are documented by the network."""

    def __getitem__(self, part: slice) -> Outputs:
        """The outputs of some examples of the batch."""
        hidden = None if self.hidden is None else {name: state[part] for name, state in self.hidden.items()}
        return Outputs(self.logits[part], hidden)
