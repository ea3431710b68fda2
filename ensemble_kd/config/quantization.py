"""The `student.quantization` block."""

from __future__ import annotations

from pydantic import Field

from ensemble_kd.config.base import Block


class QuantizationConfig(Block):
    """Training for a student that is shipped in integers (Q8BERT, arXiv 1910.06188): it computes with rounded
    weights and activations, and its weights end as multiples of one step each."""

    bits: int = Field(8, ge=2, le=8)
    """Bits of each weight, and of each activation."""
    activations: bool = True
    """Whether inputs of linear layers and convolutions are rounded too."""
    start_fraction: float = Field(0.3, ge=0, lt=1)
    """Share of the steps that come before, in float; 0 where the student starts from trained weights."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the moving average of the largest activation, which is the end of the activations' range."""
