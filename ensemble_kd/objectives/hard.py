"""The loss on labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -1


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-sum_c t_c log softmax(z)_c at T = 1, t = (1 - s) onehot(y) + s / C; (B, C), (B,) -> (B,).

    Smoothing: arXiv 1512.00567, section 7. Examples with label -1 get 0 and no gradient.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(
        logits, labels, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )
