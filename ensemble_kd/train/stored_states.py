"""What the store holds of the teachers beside logits, in the place of teachers that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.data.store import Kept, StoreLayout
from ensemble_kd.models.outputs import Outputs, state_name
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.blocks import MemberLogits, as_tensor


class KeptStates:
    """Hidden states and attention scores of all members, in memory, aligned with the transfer set."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        layout: StoreLayout,
        members: Sequence[str],
        logits: MemberLogits,
    ) -> None:
        """`members` are the teachers' fingerprints, in the store's order; `logits` those of the same rows."""
        assert layout.kept is not None and layout.views == 1, "checked with the configuration"
        self.kept: Kept = layout.kept
        self.columns = {name: as_tensor(columns[name]) for name in layout.kept.columns(1, layout.members)}
        self.members, self.logits = list(members), logits

    def of(self, members: Sequence[str], wants: Mapping[str, bool], device: torch.device) -> StoredStates:
        """What stands for these teachers, in their order; `wants` as the arguments of a forward pass."""
        return StoredStates(self, [self.members.index(name) for name in members], wants, device)


@dataclass
class StoredStates:
    """As `train.online.Online`, but read: picked by row, and cut to the batch's longest text.

    Deviation: positions of padding hold 0, where a network has states as well; no loss looks at these.
    """

    store: KeptStates
    members: list[int]
    """Places of the teachers among the store's members."""
    wants: Mapping[str, bool]
    device: torch.device

    def __call__(self, batch: Batch) -> list[Outputs]:
        """Each teacher's outputs for the batch, in float32."""
        assert batch.rows is not None, "rows of the transfer set have numbers"
        rows, kept = batch.rows.cpu(), self.store.kept
        logits = self.store.logits.pick(rows, torch.zeros_like(rows))  # (B, M, C)
        if kept.features:
            columns = self.store.columns["features"][:, 0]  # (N, M, D)
            return [
                Outputs(logits[:, m].to(self.device).float(), {"features": self._pick(columns[:, m], rows)})
                for m in self.members
            ]
        length, present = batch.inputs.shape[1], batch.inputs != 0  # (B, L)
        found = []
        for m in self.members:
            hidden = attention = None
            if self.wants.get("hidden") and kept.hidden:
                states = self._pick(self.store.columns["hidden"][:, 0, m, :, :length], rows)  # (B, K, L, D)
                hidden = {state_name(k): states[:, i] for i, k in enumerate(kept.hidden)}
            if self.wants.get("attention") and kept.attention:
                scores = self.store.columns["attention"][:, 0, m, :, :, :length, :length]
                attention = self._pick(scores, rows).unbind(1)  # of (B, A, L, L) each
            found.append(
                Outputs(
                    logits[:, m].to(self.device).float(),
                    hidden,
                    attention,
                    present[:, :1] if hidden is not None and kept.first_only else present,
                    kept.depth,
                    None if attention is None else kept.attention,
                )
            )
        return found

    def _pick(self, column: Tensor, rows: Tensor) -> Tensor:
        return column[rows].to(self.device).float()
