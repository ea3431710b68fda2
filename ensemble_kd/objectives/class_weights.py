"""The hard loss of imbalanced classes: weights by class, and the focal loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble_kd.objectives.base import over_classes
from ensemble_kd.objectives.hard import UNLABELLED, cross_entropy


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """w_y * (1 - p_y)^gamma * cross-entropy, p_y what the model gives the label y at T = 1.

    The focal loss of arXiv 1708.02002, equation 5, with one weight a class in the place of its alpha. With
    gamma = 0 and without weights it is `cross_entropy`, and like it takes stacked logits (n, B, C).
    """

    class_weights: tuple[float, ...] | None = None
    """(C,), one a class; None for 1 each."""
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
        """(B, C), (B,) -> (B,); 0 and no gradient where the label is -1."""
        losses = cross_entropy(logits, labels, label_smoothing)
        known = labels.clamp(min=0).expand(losses.shape)
        if self.focal_gamma > 0:
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            log_p = over_classes(F.log_softmax, precise).gather(-1, known.unsqueeze(-1)).squeeze(-1)
            # 1 - p in this form is exact near 0, where its power has an infinite slope below gamma = 1.
            unsure = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
            losses = losses * unsure.pow(self.focal_gamma).masked_fill(labels == UNLABELLED, 0.0)
        if self.class_weights is not None:
            losses = losses * torch.tensor(self.class_weights, device=losses.device)[known]
        return losses
