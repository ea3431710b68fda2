"""Which classes are confused with which: covariance of predictions, counts of mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.errors import InputError


class StreamingCovariance:
    """Covariance (C, C) of probabilities that come in blocks, divided by the number of rows.

    C_ab = (n_a C_a + n_b C_b) / n + n_a n_b / n^2 d d^T, with d = mean_b - mean_a (Chan, Golub and LeVeque,
    1979), for a block as for another accumulator: any order and any chunks give the same up to rounding.
    `dtype` is float64 up to 2048 classes and float32 above, where the matrix of 15,000 classes takes
    900 MB; the mean is always float64. The matrix is held once: only blocks on and below its diagonal are
    computed, which halves the work, and `covariance` mirrors them in place.
    """

    def __init__(self, num_classes: int, dtype: torch.dtype | None = None) -> None:
        self.num_classes = num_classes
        self.dtype = dtype or (torch.float64 if num_classes <= 2048 else torch.float32)
        self.count = 0
        self.mean = torch.zeros(num_classes, dtype=torch.float64)
        self._matrix = torch.zeros(num_classes, num_classes, dtype=self.dtype)

    def update(self, probabilities: Tensor | np.ndarray, rows: int = 4096) -> None:
        """Add predictions (B, C), `rows` at a time. Raises InputError for another width or for NaN."""
        block = torch.as_tensor(probabilities)
        if block.ndim != 2 or block.shape[1] != self.num_classes:
            raise InputError(
                f"predictions of shape {tuple(block.shape)}, expected (examples, {self.num_classes} classes)"
            )
        for part in block.detach().cpu().split(rows):
            if len(part):
                self._add(part)

    def _add(self, part: Tensor) -> None:
        mean = part.mean(0, dtype=torch.float64)  # (C,)
        if not bool(mean.isfinite().all()):
            raise InputError("predictions hold NaN or infinite values; they must be probabilities")
        n, total = len(part), self.count + len(part)
        centred = torch.empty(n + 1, self.num_classes, dtype=self.dtype)
        torch.sub(part.to(self.dtype), mean.to(self.dtype), out=centred[:n])
        difference = mean - self.mean
        # The last row brings the distance between the means into the same product.
        centred[n] = (difference * (self.count * n / total) ** 0.5).to(self.dtype)
        self._accumulate(centred, self.count / total, 1 / total)
        self.mean += difference * (n / total)
        self.count = total

    def merge(self, other: StreamingCovariance) -> None:
        """Add what another accumulator has seen; `other` is not changed."""
        if other.num_classes != self.num_classes:
            raise InputError(f"covariances of {self.num_classes} and {other.num_classes} classes")
        if not other.count:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self._matrix.mul_(self.count / total).add_(other._matrix.to(self.dtype), alpha=other.count / total)
        distance = (difference * (self.count * other.count) ** 0.5 / total).to(self.dtype)
        self._accumulate(distance[None], 1.0, 1.0)
        self.mean += difference * (other.count / total)
        self.count = total

    def _accumulate(self, rows: Tensor, beta: float, alpha: float, width: int = 1024) -> None:
        """matrix <- beta matrix + alpha rows^T rows, on and below the diagonal blocks; (R, C)."""
        for i in range(0, self.num_classes, width):
            end = min(i + width, self.num_classes)
            self._matrix[i:end, :end].addmm_(rows[:, i:end].T, rows[:, :end], beta=beta, alpha=alpha)

    def covariance(self, width: int = 1024) -> np.ndarray:
        """(C, C), symmetric to the last bit. A view: later updates show in it. All 0 before any row."""
        for i in range(0, self.num_classes, width):
            end = min(i + width, self.num_classes)
            self._matrix[:i, i:end] = self._matrix[i:end, :i].T
            block = self._matrix[i:end, i:end]
            block.copy_(torch.tril(block) + torch.tril(block, -1).T)
        return self._matrix.numpy()


def confusion_affinity(confusion: np.ndarray) -> np.ndarray:
    """(N + N^T) / (2 sum N): a symmetric matrix from counts N[true, predicted], instead of a covariance."""
    counts = np.asarray(confusion, dtype=np.float64)
    check_matrix(counts)
    if (counts < 0).any() or counts.sum() <= 0:
        raise InputError("a confusion matrix holds counts: none below 0, and not all of them 0")
    return (counts + counts.T) / (2 * counts.sum())


def confusion_mass(matrix: np.ndarray, rows: int = 1024) -> np.ndarray:
    """(C,) sum of the positive entries off the diagonal in each class's column, in float64."""
    masses = [
        np.maximum(matrix[i : i + rows], 0).sum(1, dtype=np.float64) for i in range(0, len(matrix), rows)
    ]
    return np.maximum(np.concatenate(masses) - np.maximum(np.diagonal(matrix), 0), 0)


def confusion_captured(matrix: np.ndarray, cluster: Sequence[int], total: float | None = None) -> float:
    """Share of all positive off-diagonal entries that lies between classes of `cluster`.

    `total` is `confusion_mass(matrix).sum()`: give it where many clusters are asked about.
    """
    total = float(confusion_mass(matrix).sum()) if total is None else total
    index = np.asarray(cluster, dtype=np.int64)
    inside = np.maximum(matrix[np.ix_(index, index)].astype(np.float64), 0)
    return float((inside.sum() - np.diagonal(inside).sum()) / total) if total > 0 else 0.0


def check_matrix(matrix: np.ndarray) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 3:
        raise InputError(f"a square matrix of at least 3 classes is needed, got shape {matrix.shape}")
    if not np.isfinite(matrix.sum(1)).all():  # by sums: no second matrix
        raise InputError("the matrix between classes holds NaN or infinite values")
