"""The loss on labels: cross-entropy of classes, squared error of values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble_kd.objectives.base import over_classes

UNLABELLED = -1


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """-sum_c t_c log softmax(z)_c at T = 1, t = (1 - s) onehot(y) + s / C; (B, C), (B,) -> (B,).

    Smoothing: arXiv 1512.00567, section 7. Examples with label -1 get 0 and no gradient. Stacked:
    (n, B, C), (B,) or (n, B) -> (n, B), and the smoothing may be (n, 1).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.dim() == 2 and not isinstance(label_smoothing, Tensor):
        return F.cross_entropy(
            logits, labels, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
        )
    log_q, labels = over_classes(F.log_softmax, logits), labels.expand(logits.shape[:-1])
    found = log_q.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        found = found + label_smoothing * (log_q.mean(-1) - found)
    return -found.masked_fill(labels == UNLABELLED, 0.0)


def squared_error(values: Tensor, labels: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """1/K * sum_k (z_k - y_k)^2; (B, K), (B, K) -> (B,). Of one value labels are (B,), the outputs (B, 1).

    Stacked: (n, B, K) and labels as above, or with (n, ...) in front -> (n, B). Labels that are NaN add 0 and
    have no gradient. `label_smoothing` is for classes, and 0 here.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.shape[-1] == 1:
        return (values.squeeze(-1) - labels).masked_fill(torch.isnan(labels), 0.0).square()
    return (values - labels).masked_fill(torch.isnan(labels), 0.0).square().mean(-1)
