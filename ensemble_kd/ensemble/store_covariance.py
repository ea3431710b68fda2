"""The covariance of softened ensemble predictions from stored logits, dense or of top k, by parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse, vstack
from torch import Tensor

from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.ensemble.covariance import StreamingCovariance
from ensemble_kd.ensemble.top_k import TopK

WAITING = 65536
"""Rows whose products are summed at once."""


def softened(member_logits: Tensor, temperature: float, calibration: Sequence[float] | None = None) -> Tensor:
    """(B, C) mean over members of softmax(v / T), from (B, M, C) logits; `calibration` as `mean_logits`."""
    return (mean_logits(member_logits, temperature, calibration=calibration) / temperature).exp()


@dataclass
class SparseMoments:
    """First and second moments of predictions that are the same outside few classes.

    A prediction restored from top k is p = rho 1 + d: `rho` for every class that was not kept, and a sparse
    d. So E[p p^T] = E[rho^2] 1 1^T + E[rho d] 1^T + 1 E[rho d]^T + E[d d^T], where only the last is a matrix,
    and a sparse one: k^2 numbers a row instead of C^2. All sums are float64.
    """

    num_classes: int
    count: int = 0
    rho: float = 0.0
    rho_squared: float = 0.0
    d: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(C,) sum of d."""
    rho_d: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(C,) sum of rho d."""
    d_d: Any = None
    """(C, C) sum of d d^T: sparse until a dense one takes less memory."""
    waiting: list[csr_matrix] = field(default_factory=list)
    """d (B, C) of rows whose products are not summed yet: each sum copies the whole matrix."""

    def __post_init__(self) -> None:
        if self.d_d is None:
            self.d, self.rho_d = np.zeros(self.num_classes), np.zeros(self.num_classes)
            self.d_d = csr_matrix((self.num_classes, self.num_classes))

    @property
    def dtype(self) -> type:
        """Of the dense matrix: float64 up to 2048 classes and float32 above."""
        return np.float64 if self.num_classes <= 2048 else np.float32

    def update(self, kept: TopK, temperature: float, calibration: Sequence[float] | None = None) -> None:
        """Add the mean of the members' predictions at T; columns of `kept` are (B, M, k) and (B, M)."""
        rows, members, k = kept.values.shape
        others = self.num_classes - k
        # The rest's log-mass, spread evenly over its classes, as `top_k.restore` has it.
        even = kept.rest.double() - np.log(others)  # (B, M)
        scale = temperature * torch.tensor(calibration or [1.0] * members, dtype=torch.float64)  # (M,)
        values = kept.values.double() / scale[:, None]
        tail = even / scale
        total = torch.logsumexp(torch.cat([values, (tail + np.log(others))[..., None]], 2), 2)  # (B, M)
        rho = (tail - total).exp()  # (B, M)
        d = ((values - total[..., None]).exp() - rho[..., None]) / members  # (B, M, k)
        rho = rho.mean(1)  # (B,)
        columns = kept.indices.long().reshape(rows, members * k).numpy()
        pointers = np.arange(0, rows * members * k + 1, members * k)
        sparse = csr_matrix((d.reshape(-1).numpy(), columns.ravel(), pointers), (rows, self.num_classes))
        sparse.sum_duplicates()
        weights = rho.numpy()
        self.count += rows
        self.rho += float(weights.sum())
        self.rho_squared += float((weights**2).sum())
        self.d += np.asarray(sparse.sum(0)).ravel()
        self.rho_d += sparse.T @ weights
        self.waiting.append(sparse)
        if sum(part.shape[0] for part in self.waiting) >= WAITING:
            self.settle()

    def settle(self) -> None:
        """Sum the products of the rows that wait."""
        if self.waiting:
            if isinstance(self.d_d, np.ndarray) and not self.d_d.flags.writeable:  # came from another process
                self.d_d = self.d_d.copy()
            d = vstack(self.waiting, format="csr")
            self.waiting = []
            self._add(d.T @ d)

    def _add(self, products: Any) -> None:
        if isinstance(self.d_d, np.ndarray):
            self.d_d += products.toarray() if issparse(products) else products
            return
        if not issparse(products):
            products += self.d_d.toarray()
            self.d_d = products
            return
        total = self.d_d + products
        dense = self.num_classes**2 * np.dtype(self.dtype).itemsize
        self.d_d = total.astype(self.dtype).toarray() if 12 * total.nnz > dense else total

    def merge(self, other: SparseMoments) -> None:
        """Add what another has seen."""
        self.count += other.count
        self.rho += other.rho
        self.rho_squared += other.rho_squared
        self.d = self.d + other.d
        self.rho_d = self.rho_d + other.rho_d
        self.settle()
        other.settle()
        self._add(other.d_d.copy())

    @property
    def mean(self) -> np.ndarray:
        """(C,) mean prediction."""
        return (self.rho + self.d) / max(self.count, 1)

    def covariance(self, rows: int = 512) -> np.ndarray:
        """(C, C), symmetric to the last bit, float64 up to 2048 classes and float32 above; held once."""
        self.settle()
        n, size = max(self.count, 1), self.num_classes
        d, cross = self.d / n, self.rho_d / n
        rho, square = self.rho / n, self.rho_squared / n
        # E[p p^T] - m m^T with m = rho 1 + E[d]: what is constant, what depends on one class, the products.
        constant = square - rho * rho
        one = cross - rho * d
        out: np.ndarray = np.empty((size, size), self.dtype)
        for i in range(0, size, rows):
            part = slice(i, min(i + rows, size))
            block = self.d_d[part]
            block = (block.toarray() if issparse(block) else block).astype(np.float64) / n
            block += constant
            block += one[part, None] + one[None, :]
            block -= d[part, None] * d[None, :]
            out[part] = block
        for i in range(0, size, rows):  # d d^T is summed in one order on both sides but for rounding
            part = slice(i, min(i + rows, size))
            out[: part.stop, part] = out[part, : part.stop].T
            square_block = out[part, part]
            out[part, part] = np.tril(square_block) + np.tril(square_block, -1).T
        return out


Moments = StreamingCovariance | SparseMoments
"""What a part of the pass sums up; both `merge` and give a `covariance`."""
