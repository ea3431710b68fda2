"""The store of soft targets as the training loop reads it: member logits for any rows and views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.store import StoreLayout
from ensemble_kd.ensemble import top_k
from ensemble_kd.train.blocks import MemberLogits, as_tensor, cat


def restore(columns: dict[str, Tensor], layout: StoreLayout) -> Tensor:
    """(B, M, C) member logits from columns (B, M, ...) of one view."""
    if layout.top_k is None:
        return columns["logits"]
    return top_k.restore(top_k.TopK(columns["values"], columns["indices"], columns["rest"]), layout.classes)


class StoredLogits:
    """The store in memory."""

    def __init__(self, columns: dict[str, np.ndarray], layout: StoreLayout) -> None:
        own = layout.logits_alone.columns()
        self.columns = {name: as_tensor(column) for name, column in columns.items() if name in own}
        self.layout, self.num_views = layout, layout.views

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        """(B, M, C) logits of the members for these rows (B,) and views (B,)."""
        rows, views = rows.cpu(), views.cpu()
        return restore({name: column[rows, views] for name, column in self.columns.items()}, self.layout)


@dataclass
class StoredPart:
    """Rows of one or several stores, as they are stored; the members of several stand in a row."""

    stores: list[tuple[dict[str, Tensor], StoreLayout]]
    """Columns (B, M, ...) of one view."""

    def __getitem__(self, part: slice | Tensor) -> StoredPart:
        at = part if isinstance(part, slice) else part.cpu()
        return StoredPart(
            [
                ({name: column[at] for name, column in columns.items()}, layout)
                for columns, layout in self.stores
            ]
        )

    def join(self, other: StoredPart) -> StoredPart:
        return StoredPart(
            [
                ({name: torch.cat([column, others[name]]) for name, column in columns.items()}, layout)
                for (columns, layout), (others, _) in zip(self.stores, other.stores, strict=True)
            ]
        )

    def logits(self) -> Tensor:
        """(B, M, C)"""
        return cat([restore(columns, layout) for columns, layout in self.stores], 1)


class JoinedLogits:
    """Several stores of the same rows and views as one with all their members."""

    def __init__(self, *stores: MemberLogits) -> None:
        self.stores, self.num_views = stores, stores[0].num_views

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        """(B, M, C) of all members, store by store."""
        return torch.cat([store.pick(rows, views) for store in self.stores], 1)
